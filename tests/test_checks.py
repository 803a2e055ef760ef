"""Tests of lab_utils.checks: each accepts the right solution, and rejects typical wrong ones with a hint that fits."""

import re

import pytest
import torch

from lab_utils import answers, checks, grpo_math, rewards
from lab_utils.checks import CheckFailed
from lab_utils.expressions import ExpressionError, evaluate, numbers_used
from lab_utils.tasks import completion_text
from lab_utils.tasks.countdown import is_solution


def accepts(check, solution, capsys):
    check(solution)
    assert capsys.readouterr().out.startswith("OK: ")


def rejects(check, wrong, hint):
    with pytest.raises(CheckFailed, match=hint):
        check(wrong)


def not_written(*arguments, **columns):
    raise NotImplementedError("Write this part, then run the cell again.")


@pytest.mark.parametrize(
    "check", [getattr(checks, name) for name in dir(checks) if name.startswith("check_")], ids=lambda c: c.__name__
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


def attempts(text):
    return sum("=" in line for line in text.splitlines())


def test_wasted_attempts_accepts(capsys):
    accepts(checks.check_wasted_attempts, lambda text: attempts(text.partition("</answer>")[2]), capsys)
    accepts(checks.check_wasted_attempts,
            lambda text: attempts(text.split("</answer>", 1)[1]) if "</answer>" in text else 0, capsys)


@pytest.mark.parametrize(
    ("wasted_attempts", "hint"),
    [
        (attempts, "before the answer"),
        (lambda text: 0, "Two lines after"),
        (lambda text: attempts(text.rpartition("</answer>")[2]), "the \\*first\\*"),
        (lambda text: attempts(text.split("</answer>")[-1]), "the \\*first\\*"),
        (lambda text: attempts(text.partition("</answer>\n")[2]), "on the line of"),
        (lambda text: attempts(text.split("</answer>", 1)[-1]), "Without </answer>"),
        (lambda text: text.partition("</answer>")[2].count("="), "one attempt"),
        (lambda text: text.partition("</answer>")[2].strip().count("\n"), "Two lines after"),
    ],
)
def test_wasted_attempts_rejects(wasted_attempts, hint):
    rejects(checks.check_wasted_attempts, wasted_attempts, hint)


def closed(has_format=rewards.format_reward, judge=is_solution):
    def reward(completions, nums, target, **columns):
        found = [answers.extract_xml_answer(completion_text(completion)) for completion in completions]
        rows = [{"nums": n, "target": t} for n, t in zip(nums, target, strict=True)]
        right = [answer is not None and judge(answer, row) for answer, row in zip(found, rows, strict=True)]
        return [float(a and b) for a, b in zip(right, has_format(completions), strict=True)]

    return reward


def without_numbers(answer, row):
    try:
        return evaluate(answer) == row["target"]
    except ExpressionError:
        return False


def with_sets(answer, row):
    return without_numbers(answer, row) and set(numbers_used(answer)) == set(row["nums"])


def with_subset(answer, row):
    return without_numbers(answer, row) and set(numbers_used(answer)) <= set(row["nums"])


def with_floats(answer, row):
    return is_solution(answer, row) and eval(answer) == row["target"]


def any_format(completions):
    return [1.0] * len(completions)


def test_closed_reward_accepts(capsys):
    accepts(checks.check_closed_reward, closed(), capsys)


@pytest.mark.parametrize(
    ("reward", "hint"),
    [
        (rewards.equation_reward, "after the answer"),
        (rewards.format_reward, "only a claim"),
        (closed(has_format=any_format), "after the answer"),
        (closed(has_format=lambda texts: ["<think>" in completion_text(t) for t in texts]), "after the answer"),
        (closed(has_format=lambda texts: [completion_text(t).endswith("</answer>") for t in texts]), "twice"),
        (closed(judge=without_numbers), "none of the numbers"),
        (closed(judge=with_subset), "Every number has to be"),
        (closed(judge=with_sets), "Two fives"),
        (closed(judge=with_floats), "eval\\(\\) is not"),
        (lambda completions, **columns: [float("yes<" in completion_text(t)) for t in completions], "about itself"),
        (lambda completions, **columns: [0.0] * len(completions), "earns 1.0"),
    ],
)
def test_closed_reward_rejects(reward, hint):
    rejects(checks.check_closed_reward, reward, hint)


def test_closed_reward_shows_the_error_that_a_solution_does_not_catch():
    def judge(answer, row):
        return sorted(numbers_used(answer)) == sorted(row["nums"]) and evaluate(answer) == row["target"]

    with pytest.raises(ExpressionError):
        checks.check_closed_reward(closed(judge=judge))


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
