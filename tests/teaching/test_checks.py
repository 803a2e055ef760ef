"""The self-checks of notebooks 00 to 03, and what a learner sees: solutions pass, typical mistakes get their hint."""

import re

import pytest

from lab_utils import rewards
from lab_utils.tasks import answers, completion_text, load_task
from lab_utils.tasks.countdown import is_solution
from lab_utils.tasks.expressions import ExpressionError, evaluate, numbers_used
from lab_utils.teaching import checks
from lab_utils.teaching.checks import CheckFailed
from lab_utils.teaching.checks.runner import Check

CHECKS = {name: check for name, check in vars(checks).items() if isinstance(check, Check)}
GSM8K = load_task("gsm8k")

# --- Typical solutions, right and wrong ------------------------------------------------------------------------------


def solves(used=lambda text, nums: True, value=evaluate):
    def solution(text, nums, target):
        try:
            return used(text, nums) and value(text) == target
        except (ExpressionError, SyntaxError):
            return False

    return solution


def pattern(expression):
    def extract(text):
        match = re.search(expression, text)
        return match[1] if match else None

    return extract


def correctness(extract=answers.extract_xml_answer, equal=answers.numbers_match, text_of=completion_text):
    def reward(completions, answer, **columns):
        extracted = [extract(text_of(completion)) for completion in completions]
        return [2.0 if equal(one, gold) else 0.0 for one, gold in zip(extracted, answer, strict=True)]

    return reward


STRICT = r"<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n?"


def strict_format(expression=STRICT, flags=re.DOTALL, match=re.fullmatch):
    return lambda completions, **columns: [
        0.5 if match(expression, completion_text(completion), flags) else 0.0 for completion in completions
    ]


def one_answer_tag(completions, **columns):
    once = [completion_text(completion).count("<answer>") == 1 for completion in completions]
    return [score * one for score, one in zip(strict_format()(completions), once, strict=True)]


def share_to_right(bonuses, right):
    earned = sum(bonus for bonus, is_right in zip(bonuses, right, strict=True) if is_right)
    return earned / sum(bonuses) if sum(bonuses) else 0.0


def short_and_right(judge=GSM8K.is_correct, short=lambda tokens, limit: max(0.0, 1 - tokens / limit)):
    def reward(completions, answer, completion_ids, limit=40, **columns):
        rows = zip(completions, answer, completion_ids, strict=True)
        return [4.0 * short(len(ids), limit) * judge(text, {"answer": gold}) for text, gold, ids in rows]

    return reward


SOLUTIONS = {
    "check_solves": [lambda text, nums, target: is_solution(text, {"nums": nums, "target": target})],
    "check_extract_hash_answer": [answers.extract_hash_answer, pattern(r"#### (-?[\d,]*\.?\d+)")],
    "check_make_labels": [lambda prompt, completion: [-100] * len(prompt) + completion],
    "check_correctness_reward": [rewards.correctness_reward, correctness()],
    "check_strict_format_reward": [rewards.strict_format_reward],
    "check_share_to_right": [share_to_right],
    "check_short_and_right_reward": [short_and_right()],
}
MISTAKES = {
    "check_solves": [
        (solves(), "3 is not used"),
        (solves(lambda text, nums: set(numbers_used(text)) == set(nums)), "two fives"),
        (solves(lambda text, nums: numbers_used(text) == nums), "in any order"),
        (solves(value=lambda text: 45), "Exactly 1"),
        (solves(lambda text, nums: sorted(numbers_used(text)) == sorted(nums), eval), "floats are not"),
    ],
    "check_extract_hash_answer": [
        (answers.extract_last_number, "strict means strict"),
        (pattern(r"#### (\d+)"), "comma"),
        (pattern(r"#### ([\d,]+)"), "minus"),
        (pattern(r"#### (-?[\d,]+)"), "decimal point"),
        (pattern(r"#### ?(.*\d)"), "3 is another number"),
        (pattern(r"#### (.+)"), "where the digits end"),
        (lambda text: text.split("####")[-1].strip() if "####" in text else None, "first one"),
        (lambda text: "72" if "####" in text else None, "comma"),
    ],
    "check_make_labels": [
        (lambda prompt, completion: prompt + completion, "-100 for every prompt token"),
        (lambda prompt, completion: completion, "-100 for every prompt token"),
        (lambda prompt, completion: [-100] * 3 + completion, "ends the turn"),
        (lambda prompt, completion: [-100 if t in prompt else t for t in prompt + completion], "position of a token"),
        (lambda prompt, completion: None, "-100 for every prompt token"),
    ],
    "check_correctness_reward": [
        (correctness(pattern("<answer>(.*?)</answer>")), "DOTALL"),
        (correctness(equal=lambda predicted, gold: predicted == gold), "by value"),
        (correctness(answers.extract_last_number), "format counts too"),
        (correctness(equal=lambda predicted, gold: predicted is not None), "wrong number"),
        (correctness(lambda text: "<answer>" in text and answers.extract_last_number(text) or None), "inside the tags"),
        (correctness(pattern(r"(?s)<answer>(.*?)</answer>")), "last complete answer"),
        (correctness(text_of=str), "list of messages"),
        (lambda completions, answer, **columns: 2.0, "list with one number"),
        (rewards.int_reward, "earns 2.0"),
    ],
    "check_strict_format_reward": [
        (strict_format(flags=0), "several lines"),
        (strict_format(), "count each tag"),
        (one_answer_tag, "count each tag"),
        (strict_format(STRICT.replace(".*?", "[^<]*")), "not a tag"),
        (strict_format(match=re.search), "before the first tag"),
        (strict_format(match=re.match), "after the last tag"),
        (strict_format(STRICT.removesuffix(r"\n?")), "very end"),
        (strict_format(r"\s*" + STRICT.replace(r"\n", r"\s*")), "lines of their own"),
        (rewards.soft_format_reward, "lines of their own"),
        (lambda completions, **columns: [0.0] * len(completions), "never fires"),
    ],
    "check_share_to_right": [
        (lambda bonuses, right: sum(right) / len(right), "0.6 of 4.0"),
        (lambda bonuses, right: share_to_right([bonus > 0 for bonus in bonuses], right), "0.6 of 4.0"),
        (lambda bonuses, right: 0.15 if bonuses[0] == 2.4 else sum(right) / 4, "Weigh by the bonus"),
        (lambda bonuses, right: share_to_right(bonuses, right) if any(bonuses) else 1.0, "do not divide by 0"),
    ],
    "check_short_and_right_reward": [
        (short_and_right(lambda text, row: True), "this is the hole"),
        (short_and_right(lambda text, row: row["answer"] in completion_text(text)), "1,000 is 1000"),
        (short_and_right(lambda text, row: answers.extract_xml_answer(completion_text(text)) == row["answer"]),
         "1,000 is 1000"),
        (short_and_right(lambda text, row: answers.numbers_match(
            answers.extract_last_number(completion_text(text)), row["answer"])), "Without <answer> tags"),
        (short_and_right(lambda text, row: isinstance(text, str) and GSM8K.is_correct(text, row)), "takes messages"),
        (short_and_right(short=lambda tokens, limit: tokens < limit), "Correct and short"),
        (short_and_right(short=lambda tokens, limit: 1 - tokens / limit), "no penalty"),
        (short_and_right(short=lambda tokens, limit: max(0.0, 1 - tokens / 40)), "parameter `limit`"),
        (lambda completions, answer, completion_ids, limit: 2.4, "one number for each completion"),
        (lambda completions, answer, completion_ids, limit: short_and_right()(
            completions[:1], answer[:1], completion_ids[:1], limit), "one number for each completion"),
    ],
}


@pytest.mark.parametrize(("name", "solution"), [(name, one) for name, them in SOLUTIONS.items() for one in them])
def test_solutions_pass(name, solution, capsys):
    CHECKS[name](solution)
    assert capsys.readouterr().out.startswith("OK: ")


@pytest.mark.parametrize(("name", "wrong", "hint"), [(name, *row) for name, rows in MISTAKES.items() for row in rows])
def test_mistakes_get_their_hint(name, wrong, hint):
    with pytest.raises(CheckFailed, match=rf"gave [\s\S]*expected [\s\S]*\nHint: .*{hint}"):
        CHECKS[name](wrong)


# --- Errors in the learner's function --------------------------------------------------------------------------------


def as_floats(predicted, gold):
    return predicted is not None and float(predicted.strip()) == float(gold)


@pytest.mark.parametrize(
    ("name", "wrong", "error", "hint"),
    [
        ("check_solves", lambda text, nums, target: sorted(numbers_used(text)) == nums and evaluate(text) == target,
         "ExpressionError", "catch ExpressionError"),
        ("check_extract_hash_answer", lambda text: text.split("#### ")[1].split()[0], "IndexError", "strict means"),
        ("check_correctness_reward", correctness(equal=as_floats), "ValueError", r"\$1,000 is 1000"),
        ("check_correctness_reward", correctness(text_of=lambda text: text), "AttributeError", "list of messages"),
        ("check_share_to_right", lambda bonuses, right: sum(b for b, r in zip(bonuses, right, strict=True) if r)
         / sum(bonuses), "ZeroDivisionError", "do not divide by 0"),
        ("check_share_without_signal", lambda rewards, size: rewards.view(-1, size), "AttributeError", "is a list"),
    ],
)
def test_an_error_in_the_solution_gets_the_hint_of_its_case(name, wrong, error, hint):
    with pytest.raises(CheckFailed, match=rf"raised {error}: .*\nin your line: .*\nHint: .*{hint}"):
        CHECKS[name](wrong)


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_blank_is_named_as_one(check):
    def blank(*arguments, **columns):
        raise NotImplementedError("Write this part, then run the cell again.")

    with pytest.raises(CheckFailed, match="^blank is not written yet"):
        check(blank)


def test_a_check_leaves_its_cases_as_they_are(capsys):
    def sorts_in_place(text, nums, target):
        nums.clear()
        return None

    for _ in range(2):
        with pytest.raises(CheckFailed, match=re.escape("[3, 6, 7], 45) gave None; expected True.")):
            checks.check_solves(sorts_in_place)


CELLS = """\
def share_to_right(bonuses, right):
    total = sum(bonuses)
    return sum(b for b, r in zip(bonuses, right) if r) / total
"""


def test_a_notebook_shows_the_message_and_no_traceback(capsys):
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    shell = InteractiveShell(config=Config({"HistoryManager": {"enabled": False}}))
    for cell in (CELLS, "from lab_utils.teaching import checks\nchecks.check_share_to_right(share_to_right)"):
        shell.run_cell(cell)
    assert capsys.readouterr().out.splitlines() == [
        "Not yet: share_to_right([0.0, 0.0], [True, False]) raised ZeroDivisionError: float division by zero",
        "in your line: return sum(b for b, r in zip(bonuses, right) if r) / total",
        "Hint: Nothing is paid: return 0.0, do not divide by 0.",
    ]
