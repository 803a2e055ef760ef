"""The self-checks: each accepts the right solution, and rejects typical wrong ones with a fitting hint."""

import re

import pytest
import torch

from lab_utils import rewards
from lab_utils.tasks import answers, completion_text, load_task
from lab_utils.tasks.countdown import is_solution
from lab_utils.tasks.expressions import ExpressionError, evaluate, numbers_used
from lab_utils.teaching import checks, grpo_math
from lab_utils.teaching.checks import CheckFailed


def accepts(check, solution, capsys):
    check(solution)
    assert capsys.readouterr().out.startswith("OK: ")


def rejects(check, wrong, hint):
    with pytest.raises(CheckFailed, match=hint):
        check(wrong)


def not_written(*arguments, **columns):
    raise NotImplementedError("Write this part, then run the cell again.")


ALL = [getattr(checks, name) for name in dir(checks) if name.startswith("check_")]


@pytest.mark.parametrize(  # one takes a learner's dictionary, and the runs that it is about
    "check", [check for check in ALL if check is not checks.check_diagnosis], ids=lambda check: check.__name__
)
def test_an_error_in_the_solution_is_shown_as_it_is(check):
    with pytest.raises(NotImplementedError):
        check(not_written)


# --- 00 --------------------------------------------------------------------------------------------------------------


def test_solves_accepts(capsys):
    accepts(checks.check_solves, lambda text, nums, target: is_solution(text, {"nums": nums, "target": target}), capsys)


@pytest.mark.parametrize(
    ("used", "value", "hint"),
    [
        (lambda text, nums: True, evaluate, "3 is not used"),
        (lambda text, nums: set(numbers_used(text)) == set(nums), evaluate, "two fives"),
        (lambda text, nums: numbers_used(text) == nums, evaluate, "in any order"),
        (lambda text, nums: True, lambda text: 45, "exactly 1"),
        (lambda text, nums: sorted(numbers_used(text)) == sorted(nums), lambda text: eval(text), "floats are not"),
    ],
)
def test_solves_rejects(used, value, hint):
    def solves(text, nums, target):
        try:
            return used(text, nums) and value(text) == target
        except (ExpressionError, SyntaxError):
            return False

    rejects(checks.check_solves, solves, hint)


def test_solves_shows_the_error_that_a_solution_does_not_catch():
    with pytest.raises(ExpressionError):
        checks.check_solves(lambda text, nums, target: sorted(numbers_used(text)) == nums and evaluate(text) == target)


# --- 01 --------------------------------------------------------------------------------------------------------------


def pattern(expression, group=1):
    def extract(text):
        match = re.search(expression, text)
        return match[group] if match else None

    return extract


def test_extract_hash_answer_accepts(capsys):
    accepts(checks.check_extract_hash_answer, answers.extract_hash_answer, capsys)
    accepts(checks.check_extract_hash_answer, pattern(r"#### (-?[\d,]*\.?\d+)"), capsys)


@pytest.mark.parametrize(
    ("extract", "hint"),
    [
        (answers.extract_last_number, "strict means strict"),
        (pattern(r"#### (\d+)"), "comma"),
        (pattern(r"#### ([\d,]+)"), "minus"),
        (pattern(r"#### (-?[\d,]+)"), "decimal point"),
        (pattern(r"#### ?(.*\d)"), "3 is another number"),
        (pattern(r"#### (.+)"), "where the digits end"),
        (lambda text: text.split("####")[-1].strip() if "####" in text else None, "first one"),
        (lambda text: "72" if "####" in text else None, "comma"),
    ],
)
def test_extract_hash_answer_rejects(extract, hint):
    rejects(checks.check_extract_hash_answer, extract, hint)


def test_make_labels_accepts(capsys):
    accepts(checks.check_make_labels, lambda prompt, completion: [-100] * len(prompt) + completion, capsys)


@pytest.mark.parametrize(
    ("make_labels", "hint"),
    [
        (lambda prompt, completion: prompt + completion, "-100 for every token of the prompt"),
        (lambda prompt, completion: completion, "-100 for every token of the prompt"),
        (lambda prompt, completion: [-100] * 3 + completion, "ends the turn"),
        (lambda prompt, completion: [-100 if t in prompt else t for t in prompt + completion], "where a token stands"),
    ],
)
def test_make_labels_rejects(make_labels, hint):
    rejects(checks.check_make_labels, make_labels, hint)


# --- 02 --------------------------------------------------------------------------------------------------------------


def correctness(extract, equal, text_of=completion_text):
    def reward(completions, answer, **columns):
        extracted = [extract(text_of(completion)) for completion in completions]
        return [2.0 if equal(one, gold) else 0.0 for one, gold in zip(extracted, answer, strict=True)]

    return reward


def as_floats(predicted, gold):
    return predicted is not None and float(predicted.strip()) == float(gold)


def test_correctness_reward_accepts(capsys):
    accepts(checks.check_correctness_reward, rewards.correctness_reward, capsys)
    accepts(checks.check_correctness_reward, correctness(answers.extract_xml_answer, answers.numbers_match), capsys)


@pytest.mark.parametrize(
    ("reward", "hint"),
    [
        (correctness(pattern("<answer>(.*?)</answer>"), answers.numbers_match), "DOTALL"),
        (correctness(answers.extract_xml_answer, lambda predicted, gold: predicted == gold), "by value"),
        (correctness(answers.extract_last_number, answers.numbers_match), "format counts too"),
        (correctness(answers.extract_xml_answer, lambda predicted, gold: predicted is not None), "wrong number"),
        (lambda completions, answer, **columns: 2.0, "list with one number"),
        (rewards.int_reward, "earns 2.0"),
        (correctness(lambda text: answers.extract_last_number(text) if "<answer>" in text else None,
                     answers.numbers_match), "Only what stands in the tags"),
        (correctness(pattern(r"(?s)<answer>(.*?)</answer>"), answers.numbers_match), "last complete answer"),
    ],
)
def test_correctness_reward_rejects(reward, hint):
    rejects(checks.check_correctness_reward, reward, hint)


def test_correctness_reward_shows_the_error_that_banana_causes():
    with pytest.raises(ValueError, match="convert"):
        checks.check_correctness_reward(correctness(answers.extract_xml_answer, as_floats))


STRICT = r"<reasoning>\n.*?\n</reasoning>\n<answer>\n.*?\n</answer>\n?"


def strict_format(expression=STRICT, flags=re.DOTALL, match=re.fullmatch):
    return lambda completions, **columns: [
        0.5 if match(expression, completion_text(completion), flags) else 0.0 for completion in completions
    ]


def test_strict_format_reward_accepts(capsys):
    accepts(checks.check_strict_format_reward, rewards.strict_format_reward, capsys)


@pytest.mark.parametrize(
    ("reward", "hint"),
    [
        (strict_format(flags=0), "several lines"),
        (strict_format(), "count each of the four"),
        (lambda completions, **columns: [score if completion_text(completion).count("<answer>") == 1 else 0.0 for
         completion, score in zip(completions, strict_format()(completions), strict=True)], "count each of the four"),
        (strict_format(STRICT.replace(".*?", "[^<]*")), "no tag"),
        (strict_format(match=re.search), "before the first tag"),
        (strict_format(match=re.match), "after the last tag"),
        (strict_format(STRICT.removesuffix(r"\n?")), "very end"),
        (strict_format(r"\s*" + STRICT.replace(r"\n", r"\s*")), "lines of their own"),
        (rewards.soft_format_reward, "lines of their own"),
        (lambda completions, **columns: [0.0] * len(completions), "never fires"),
    ],
)
def test_strict_format_reward_rejects(reward, hint):
    rejects(checks.check_strict_format_reward, reward, hint)


def test_a_reward_that_reads_only_strings_is_told_about_messages():
    def text_or_its_repr(completion):
        return completion if isinstance(completion, str) else str(completion)

    rejects(checks.check_correctness_reward,
            correctness(answers.extract_xml_answer, answers.numbers_match, text_of=text_or_its_repr),
            "list of messages")


# --- 03 --------------------------------------------------------------------------------------------------------------


def share_to_right(bonuses, right):
    earned = sum(bonus for bonus, is_right in zip(bonuses, right, strict=True) if is_right)
    return earned / sum(bonuses) if sum(bonuses) else 0.0


def test_share_to_right_accepts(capsys):
    accepts(checks.check_share_to_right, share_to_right, capsys)


@pytest.mark.parametrize(
    ("share", "hint"),
    [
        (lambda bonuses, right: sum(right) / len(right), "0.6 of 4.0"),
        (lambda bonuses, right: share_to_right([bonus > 0 for bonus in bonuses], right), "0.6 of 4.0"),
        (lambda bonuses, right: 0.15 if len(bonuses) == 4 and bonuses[0] > 2 else sum(right) / 4, "Weigh by the bonus"),
        (lambda bonuses, right: share_to_right(bonuses, right) if any(bonuses) else 1.0, "do not divide by 0"),
    ],
)
def test_share_to_right_rejects(share, hint):
    rejects(checks.check_share_to_right, share, hint)


GSM8K = load_task("gsm8k")


def short_and_right(judge=GSM8K.is_correct, short=lambda tokens, limit: max(0.0, 1 - tokens / limit)):
    def reward(completions, answer, completion_ids, limit=40, **columns):
        rows = zip(completions, answer, completion_ids, strict=True)
        return [4.0 * short(len(ids), limit) * judge(text, {"answer": gold}) for text, gold, ids in rows]

    return reward


def test_short_and_right_reward_accepts(capsys):
    accepts(checks.check_short_and_right_reward, short_and_right(), capsys)


def same_text(text, row):
    return answers.extract_xml_answer(completion_text(text)) == row["answer"]


def gold_somewhere(text, row):
    return answers.numbers_match(answers.extract_last_number(completion_text(text)), row["answer"])


def judged_as_text(text, row):
    return isinstance(text, str) and GSM8K.is_correct(text, row)


@pytest.mark.parametrize(
    ("reward", "hint"),
    [
        (short_and_right(judge=lambda text, row: True), "this is the hole"),
        (short_and_right(judge=lambda text, row: row["answer"] in completion_text(text)), "1,000 is 1000"),
        (short_and_right(judge=same_text), "1,000 is 1000"),
        (short_and_right(judge=gold_somewhere), "Without <answer> tags"),
        (short_and_right(judge=judged_as_text), "takes messages"),
        (short_and_right(short=lambda tokens, limit: tokens < limit), "Right and short"),
        (short_and_right(short=lambda tokens, limit: 1 - tokens / limit), "no penalty"),
        (short_and_right(short=lambda tokens, limit: max(0.0, 1 - tokens / 40)), "parameter `limit`"),
        (lambda completions, answer, completion_ids, limit: 2.4, "one number for each completion"),
        (lambda completions, answer, completion_ids, limit: short_and_right()(
            completions[:1], answer[:1], completion_ids[:1], limit), "one number for each completion"),
    ],
)
def test_short_and_right_reward_rejects(reward, hint):
    rejects(checks.check_short_and_right_reward, reward, hint)


# --- 05 --------------------------------------------------------------------------------------------------------------


def test_group_advantages_accepts(capsys):
    accepts(checks.check_group_advantages, grpo_math.group_advantages, capsys)


def whole_batch(rewards, num_generations):
    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)


def grouped(finish):
    def advantages(rewards, num_generations):
        groups = rewards.view(-1, num_generations)
        return finish(groups, groups - groups.mean(1, keepdim=True)).view(-1)

    return advantages


@pytest.mark.parametrize(
    ("advantages", "hint"),
    [
        (whole_batch, "Two groups"),
        (grouped(lambda groups, centred: centred), "divided by the standard deviation"),
        (grouped(lambda groups, centred: centred / (groups.std(1, keepdim=True, correction=0) + 1e-4)), "n - 1"),
        (grouped(lambda groups, centred: centred / groups.std(1, keepdim=True)), "0 / 0"),
        (grouped(lambda groups, centred: -centred / (groups.std(1, keepdim=True) + 1e-4)), "Less the mean"),
        (lambda rewards, num_generations: rewards.view(-1, num_generations), "shape"),
        (lambda rewards, num_generations: rewards.tolist(), "list, but a tensor"),
    ],
)
def test_group_advantages_rejects(advantages, hint):
    rejects(checks.check_group_advantages, advantages, hint)


def loss(sign=-1, pick=torch.min, ratio=lambda new, old: (new - old).exp(), column=lambda a: a[:, None]):
    def clipped_loss(logps, old_logps, advantages, epsilon):
        r, a = ratio(logps, old_logps), column(advantages)
        return sign * pick(r * a, r.clamp(1 - epsilon, 1 + epsilon) * a)

    return clipped_loss


def test_clipped_loss_accepts(capsys):
    accepts(checks.check_clipped_loss, loss(), capsys)


@pytest.mark.parametrize(
    ("clipped_loss", "hint"),
    [
        (loss(sign=1), "minus"),
        (loss(pick=lambda plain, clipped: plain), r"1 \+ epsilon"),
        (loss(pick=lambda plain, clipped: clipped), "way back"),
        (loss(pick=torch.max), r"1 \+ epsilon"),
        (loss(ratio=lambda new, old: (old - new).exp()), "within the clip range"),
        (loss(ratio=lambda new, old: new - old), r"exp\(0\)"),
        (loss(column=lambda a: a), r"\(B, 1\)"),
    ],
)
def test_clipped_loss_rejects(clipped_loss, hint):
    rejects(checks.check_clipped_loss, clipped_loss, hint)
