"""Tests of lab_utils.rewards: tables of good and bad text, what other people's rewards get wrong, and bounded work."""

import copy
import doctest
import functools
import importlib
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab_utils import rewards
from lab_utils.rewards import (
    combine_rewards,
    conciseness_reward,
    correctness_reward,
    cosine_scaled_accuracy_reward,
    equation_reward,
    format_reward,
    int_reward,
    numeric_match_reward,
    reasoning_reward,
    repetition_penalty_reward,
    soft_format_reward,
    strict_format_reward,
    xmlcount_reward,
)
from lab_utils.tasks import load_task

pytestmark = pytest.mark.unit
repeatable = settings(deadline=None, derandomize=True)

REWARDS = [getattr(rewards, name) for name in rewards.__all__ if name != "combine_rewards"]
RANGES = {  # the lowest and the highest value that a reward can take
    "correctness_reward": (0, 2),
    "int_reward": (0, 0.5),
    "strict_format_reward": (0, 0.5),
    "soft_format_reward": (0, 0.5),
    "xmlcount_reward": (0, 0.5),
    "format_reward": (0, 1),
    "equation_reward": (0, 1),
    "numeric_match_reward": (0, 1),
    "cosine_scaled_accuracy_reward": (-1, 1),
    "reasoning_reward": (0, 1),
    "conciseness_reward": (0, 1),
    "repetition_penalty_reward": (-1, 0),
}

STRICT = "<reasoning>\n48 / 2 = 24\n48 + 24 = 72\n</reasoning>\n<answer>\n72\n</answer>"
THINK = "<think>48 / 2 = 24\n48 + 24 = 72</think><answer>72</answer>"
HASH = "48 / 2 = 24\n48 + 24 = 72\n#### 72"


def score(reward, text, **columns):
    """Score one completion against the gold 72 and, for Countdown, the numbers 3, 6, 7 and the target 45."""
    values = {"answer": "72", "nums": [3, 6, 7], "target": 45, **columns}
    return reward([text], **{name: [value] for name, value in values.items()})[0]


# --- GSM8K, <reasoning> and <answer> -------------------------------------------------------------------------------


def test_the_requested_format_earns_everything():
    for text in (STRICT, STRICT + "\n"):
        assert [score(reward, text) for reward in (
            correctness_reward, int_reward, strict_format_reward, soft_format_reward, xmlcount_reward
        )] == [2.0, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("text", "correct", "whole"),
    [
        ("<answer>72</answer>", 2.0, 0.5),
        ("<answer>\n72\n</answer>", 2.0, 0.5),
        ("<answer>$72</answer>", 2.0, 0.5),
        ("<answer>72.0</answer>", 2.0, 0.5),
        ("<answer>72.</answer>", 2.0, 0.5),
        ("<answer>71</answer> <answer>72</answer>", 2.0, 0.5),  # the last complete answer counts
        ("<answer>72</answer> <answer>71</answer>", 0.0, 0.5),
        ("<answer>72</answer> <answer>71", 2.0, 0.5),
        ("<answer>71</answer>", 0.0, 0.5),
        ("<answer>-72</answer>", 0.0, 0.5),
        ("<answer>1,072</answer>", 0.0, 0.5),
        ("<answer>72.5</answer>", 0.0, 0.0),
        ("<answer>banana</answer>", 0.0, 0.0),
        ("<answer>72 clips</answer>", 0.0, 0.0),
        ("<answer>48 + 24 = 72</answer>", 0.0, 0.0),
        ("<answer></answer>", 0.0, 0.0),
        ("<answer>72", 0.0, 0.0),
        ("72</answer>", 0.0, 0.0),
        ("72", 0.0, 0.0),  # untagged
        ("#### 72", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_correctness_and_int(text, correct, whole):
    assert score(correctness_reward, text) == correct
    assert score(int_reward, text) == whole


@pytest.mark.parametrize("gold", ["1000", "1,000", "500 + 500 = <<500+500=1000>>1000\n#### 1,000"])
@pytest.mark.parametrize("written", ["1000", "1,000", "$1,000", "1000.00"])
def test_gold_is_a_number_or_a_whole_solution(written, gold):
    assert score(correctness_reward, f"<answer>{written}</answer>", answer=gold) == 2.0
    assert score(numeric_match_reward, f"#### {written.replace('$', '')}", answer=gold) == 1.0
    assert score(cosine_scaled_accuracy_reward, f"<think></think><answer>{written}</answer>", answer=gold) > 0.5


@pytest.mark.parametrize(
    ("text", "strict", "soft", "xmlcount"),
    [
        (STRICT, 0.5, 0.5, 0.5),
        (STRICT + "\n", 0.5, 0.5, 0.5),
        (STRICT + "\n\n", 0.0, 0.5, 0.5),
        ("\n" + STRICT, 0.0, 0.5, 0.5),
        ("Sure!\n" + STRICT, 0.0, 0.5, 0.5),
        (STRICT + "abc", 0.0, 0.5, 0.5 - 0.003),
        (STRICT + "\nabc\n", 0.0, 0.5, 0.5 - 0.003),
        (STRICT + "x" * 10_000, 0.0, 0.5, 0.0),  # never below 0
        (STRICT + "\n" + STRICT, 0.0, 0.5, 0.0),  # every tag twice
        (STRICT.replace("\n", ""), 0.0, 0.5, 0.5),
        (STRICT.replace("\n</answer>", " </answer>"), 0.0, 0.5, 0.5),
        (STRICT.replace("</answer>", ""), 0.0, 0.0, 0.375),
        (STRICT.replace("<reasoning>", "<think>"), 0.0, 0.0, 0.375),
        ("<answer>\n72\n</answer>\n<reasoning>\n48 + 24\n</reasoning>", 0.0, 0.0, 0.5 - 0.001 * 32),
        ("<answer>72</answer>", 0.0, 0.0, 0.25),
        ("</answer>" + "x" * 100, 0.0, 0.0, 0.025),
        ("<answer>", 0.0, 0.0, 0.125),
        ("72", 0.0, 0.0, 0.0),
        ("", 0.0, 0.0, 0.0),
    ],
)
def test_reasoning_format(text, strict, soft, xmlcount):
    assert score(strict_format_reward, text) == strict
    assert score(soft_format_reward, text) == soft
    assert score(xmlcount_reward, text) == pytest.approx(xmlcount)


@given(st.text())
@repeatable
def test_strict_format_takes_any_content(content):
    """Line breaks, "." and any other character inside the tags make no difference (a DOTALL forgotten would)."""
    text = f"<reasoning>\n{content}\n</reasoning>\n<answer>\n{content}\n</answer>"
    assert score(strict_format_reward, text) == score(soft_format_reward, text) == score(xmlcount_reward, text) == 0.5


# --- GSM8K, #### ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HASH, 1.0),
        (HASH + ".", 1.0),
        ("#### 72.00", 1.0),
        ("#### 71\n#### 72", 0.0),  # the first one counts
        ("#### 71", 0.0),
        ("####72", 0.0),
        ("72", 0.0),
        ("<answer>72</answer>", 0.0),
        ("#### banana", 0.0),
        ("", 0.0),
    ],
)
def test_numeric_match(text, expected):
    assert score(numeric_match_reward, text) == expected


# --- Countdown -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("(7 * 6) + 3", 1.0),
        ("7*6+3", 1.0),
        ("3 + 6 * 7", 1.0),
        ("\n(7 * 6) + 3\n", 1.0),
        ("((7) * (6)) + 3", 1.0),
        ("7 * 6 - -3", 1.0),  # a minus sign is an operator, the numbers are 7, 6 and 3
        ("(7 * 6) - 3", 0.0),  # another value
        ("7 * 6 + 3 = 45", 0.0),  # an equation is no expression
        ("45 = 7 * 6 + 3", 0.0),
        ("45", 0.0),
        ("42 + 3", 0.0),  # other numbers
        ("7 * 6 + 3 + 3 - 3", 0.0),  # a number three times
        ("7 * 6 + 3 * 1", 0.0),
        ("7 * 6", 0.0),  # a number left out
        ("7.0 * 6 + 3", 0.0),
        ("76 + 3", 0.0),
        ("7 × 6 + 3", 0.0),
        ("7 ** 6 + 3", 0.0),
        ("banana", 0.0),
        ("", 0.0),
    ],
)
def test_equation(answer, expected):
    assert score(equation_reward, f"<think>7 * 6 = 42, 42 + 3 = 45 yes</think><answer>{answer}</answer>") == expected


@pytest.mark.parametrize(
    ("text", "nums", "target"),
    [
        ("<answer>2**3</answer>", [2, 3], 8),
        ("<answer>2 ** 3</answer>", [2, 3], 8),
        ("<answer>95**99**7</answer>", [7, 95, 99], 1),
        ("<answer>3.5*2</answer>", [2, 3, 5], 7),
        ("<answer>7//2</answer>", [2, 7], 3),
        ("<answer>1/(2-2)</answer>", [1, 2, 2], 0),
        ("<answer>1/3*3</answer>", [1, 3, 3], 2),
        ("7 * 6", [6, 7], 42),  # untagged
        ("<answer>7 * 6", [6, 7], 42),
        ("7 * 6</answer>", [6, 7], 42),
        ("<answer>7 * 6</answer> no, <answer>7 + 6</answer>", [6, 7], 42),  # the last answer counts
    ],
)
def test_equation_earns_nothing(text, nums, target):
    assert score(equation_reward, text, nums=nums, target=target) == 0.0


def test_equation_is_exact():
    assert score(equation_reward, "<answer>3 / (1 / 3)</answer>", nums=[1, 3, 3], target=9) == 1.0
    assert score(equation_reward, "<answer>8 / (3 - 8 / 3)</answer>", nums=[3, 3, 8, 8], target=24) == 1.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (THINK, 1.0),
        (THINK + "\n", 1.0),
        ("\n<think>\na\n</think>\n\n<answer>\n72\n</answer>", 1.0),
        ("<think></think><answer></answer>", 1.0),
        ("Sure! " + THINK, 0.0),
        (THINK + " Done.", 0.0),
        ("<think>a</think> so <answer>72</answer>", 0.0),
        ("<think>a<answer>72</answer></think>", 0.0),
        ("<answer>72</answer><think>a</think>", 0.0),
        ("<think>a</think><answer>72", 0.0),
        ("<think>a<answer>72</answer>", 0.0),
        ("<think>a</think><think>b</think><answer>72</answer>", 0.0),
        ("<think>a</think><answer>71</answer><answer>72</answer>", 0.0),
        ("<Think>a</Think><answer>72</answer>", 0.0),
        ("<answer>72</answer>", 0.0),
        ("72", 0.0),
        ("", 0.0),
    ],
)
def test_think_format(text, expected):
    assert score(format_reward, text) == expected


# --- One definition of correct and of format -----------------------------------------------------------------------

SNIPPETS = ["<think>", "</think>", "<reasoning>\n", "\n</reasoning>\n", "<answer>", "<answer>\n", "</answer>",
            "\n</answer>", "72", "$72", "71", "7 * 6 + 3", "7 * 6", "#### ", "a", " ", "\n"]
texts = st.one_of(st.lists(st.sampled_from(SNIPPETS), max_size=12).map("".join), st.sampled_from([STRICT, THINK, HASH]))


@given(texts)
@repeatable
def test_rewards_are_the_tasks_own_judgement(text):
    gsm8k = {"answer": "72"}
    countdown = {"nums": [3, 6, 7], "target": 45}
    assert score(correctness_reward, text) == 2.0 * load_task("gsm8k").is_correct(text, gsm8k)
    assert score(numeric_match_reward, text) == load_task("gsm8k", "hash").is_correct(text, gsm8k)
    assert (score(cosine_scaled_accuracy_reward, text) > 0) == load_task("gsm8k", "think").is_correct(text, gsm8k)
    assert score(equation_reward, text) == load_task("countdown").is_correct(text, countdown)
    assert (score(strict_format_reward, text) > 0) == load_task("gsm8k").has_format(text)
    assert (score(format_reward, text) > 0) == load_task("countdown").has_format(text)


# --- Shaping -------------------------------------------------------------------------------------------------------


def cosine(correct, length, **parameters):
    text = f"<think></think><answer>{72 if correct else 71}</answer>"
    return cosine_scaled_accuracy_reward([text], answer=["72"], completion_ids=[[0] * length], **parameters)[0]


def test_cosine_scaled_accuracy():
    assert [cosine(True, length) for length in (0, 256, 512, 10_000)] == [1.0, 0.75, 0.5, 0.5]
    assert [cosine(False, length) for length in (0, 256, 512, 10_000)] == [-1.0, -0.75, -0.5, -0.5]
    assert cosine(True, 100, max_length=100) == 0.5
    right, wrong = ([cosine(correct, length) for length in range(0, 600, 8)] for correct in (True, False))
    assert right == sorted(right, reverse=True) and wrong == sorted(wrong)
    assert min(right) > max(wrong)


def test_cosine_scaled_accuracy_estimates_the_length_from_characters():
    text = THINK.ljust(4 * 256)
    assert cosine_scaled_accuracy_reward([text], answer=["72"]) == pytest.approx([0.75])


@pytest.mark.parametrize("text", ["72", "#### 72", "<answer>72", "<answer>banana</answer>", ""])
def test_cosine_scaled_accuracy_of_no_answer_is_wrong(text):
    assert score(cosine_scaled_accuracy_reward, text) < 0


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Step 1: a\nStep 2: b", 2),
        ("1. a\n2. b\n 3) c", 3),
        ("- a\n* b", 2),
        ("First, a. Then, b. Finally, c.", 3),
        ("9 * 8 = 72", 1),
        ("9 * 8 = <<9*8=72>>72", 1),
        ("It costs = $72 and = -5", 2),
        ("The first one then is 72.", 0),
        ("x = y", 0),
        ("3.5 - 2 * 4", 0),
        ("", 0),
    ],
)
def test_reasoning_counts_steps(text, count):
    assert score(functools.partial(reasoning_reward, steps=10), text) == count / 10


def test_reasoning_is_bounded():
    assert score(reasoning_reward, "First, " * 1000) == 1.0


def test_conciseness():
    assert conciseness_reward(["a"] * 4, completion_ids=[[], [0] * 128, [0] * 512, [0] * 9999]) == [1.0, 0.75, 0.0, 0.0]
    assert conciseness_reward(["x" * 400, ""], max_length=200) == [0.5, 1.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b c d e f", 0.0),
        ("a b c a b c", -0.25),  # abc bca cab abc: three of four n-grams are different
        ("A b c a B c", -0.25),
        ("no no no no no no", -0.75),
        ("a b", 0.0),
        ("", 0.0),
    ],
)
def test_repetition_penalty(text, expected):
    assert score(repetition_penalty_reward, text) == expected


def test_repetition_penalty_parameters():
    assert repetition_penalty_reward(["a b a b a"], ngram_size=2, max_penalty=-2.0) == [-1.0]


# --- What every reward has in common -------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: reward.__name__)
@given(contents=st.lists(st.one_of(texts, st.text()), max_size=4))
@repeatable
def test_every_reward_is_a_pure_function_of_its_columns(reward, contents):
    """Called as TRL calls it: keywords only, more columns than needed, strings or messages."""
    count = len(contents)
    columns = {"prompts": ["?"] * count, "answer": ["72"] * count, "nums": [[3, 6, 7]] * count, "target": [45] * count,
               "completion_ids": [[0] * len(text) for text in contents], "trainer_state": None}
    before = copy.deepcopy((contents, columns))
    values = reward(completions=contents, **columns)
    assert reward(completions=[[{"role": "assistant", "content": text}] for text in contents], **columns) == values
    assert reward(completions=contents, **columns) == values
    assert (contents, columns) == before
    low, high = RANGES[reward.__name__]
    assert len(values) == count
    assert all(isinstance(value, float) and low <= value <= high for value in values)


@pytest.mark.timeout(10)  # milliseconds if the work is bounded, minutes if it grows with the square of the length
@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: reward.__name__)
@pytest.mark.parametrize(
    "piece",
    ["<answer>", "</answer>", "<answer></answer>", "<think>", "</think>", "<think></think>", "<reasoning>\n",
     "\n</reasoning>\n<answer>\n", "(", ")", "-", "1", "1,", "1+", "9**", "#### ", "#", "a ", "a", " ", "\n", "\n ",
     "= ", "=", "First, ", "Step ", "1. ", "- "],
)
def test_work_is_bounded(reward, piece, capsys):
    text = (piece * 100_000)[:100_000]
    wrapped = [text, "#### " + text, f"<think>{text}</think><answer>72</answer>", f"<answer>{text}</answer>",
               "<reasoning>\n" + text, f"<reasoning>\n{text}\n</reasoning>\n<answer>\n{text}"]
    count = len(wrapped)
    values = reward(wrapped, answer=["72"] * count, nums=[[3, 6, 7]] * count, target=[45] * count)
    assert all(math.isfinite(value) for value in values)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "reward", [correctness_reward, numeric_match_reward, equation_reward, cosine_scaled_accuracy_reward]
)
def test_columns_of_another_length_are_refused(reward):
    with pytest.raises(ValueError):
        reward(["a", "b"], answer=["72"], nums=[[3, 6, 7]], target=[45])


# --- combine_rewards -----------------------------------------------------------------------------------------------


def test_combined_is_the_weighted_sum():
    combined = combine_rewards([format_reward, equation_reward], [0.1, 1.0])
    contents = ["<think></think><answer>7 * 6 + 3</answer>", "<answer>7 * 6 + 3</answer>", THINK, ""]
    values = combined(completions=contents, nums=[[3, 6, 7]] * 4, target=[45] * 4, completion_ids=[[0]] * 4)
    assert values == pytest.approx([1.1, 1.0, 0.1, 0.0])
    assert combined.__name__ == "0.1*format_reward+1.0*equation_reward"
    assert combined([], nums=[], target=[]) == []


def test_the_mix_of_the_reasoning_recipe():
    weights = {cosine_scaled_accuracy_reward: 0.5, format_reward: 0.1, reasoning_reward: 0.15, conciseness_reward: 0.05,
               repetition_penalty_reward: 0.2}
    contents = [THINK, "no no no no no no"]
    combined = combine_rewards(list(weights), list(weights.values()))(contents, answer=["72", "72"])
    by_hand = [sum(weight * score(function, text) for function, weight in weights.items()) for text in contents]
    assert combined == pytest.approx(by_hand)
    assert combined[0] > 0 > combined[1]


def test_combined_takes_partials_and_other_combinations():
    short = combine_rewards([functools.partial(conciseness_reward, max_length=1), format_reward], [1, 0.5])
    combined = combine_rewards([short, int_reward], [2.0, -1.0])
    assert combined.__name__ == "2.0*1*conciseness_reward+0.5*format_reward+-1.0*int_reward"
    assert combined([THINK]) == [0.5]


def test_combined_takes_numpy_numbers():
    def numpy_reward(completions, **columns):
        return [np.float32(1) for _ in completions]

    values = combine_rewards([numpy_reward], [0.5])(["a", "b"])
    assert values == [0.5, 0.5] and all(type(value) is float for value in values)


@pytest.mark.parametrize(
    ("functions", "weights", "message"),
    [
        ([], [], "at least one reward function"),
        ([format_reward], [], r"1 functions \(format_reward\) and 0 weights"),
        ([format_reward], [1.0, 2.0], r"1 functions \(format_reward\) and 2 weights \(\[1.0, 2.0\]\)"),
        ([format_reward], [math.nan], "weight of format_reward is nan"),
        ([format_reward, int_reward], [1.0, math.inf], "weight of int_reward is inf"),
        ([format_reward], [None], "weight of format_reward is None"),
        ([format_reward], ["0.5"], "weight of format_reward is '0.5'"),
    ],
)
def test_combine_refuses(functions, weights, message):
    with pytest.raises(ValueError, match=message):
        combine_rewards(functions, weights)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "broken_reward returned None; .* a list with one number for each completion"),
        (1.0, "broken_reward returned 1.0; .* a list"),
        ([1.0], "broken_reward returned 1 values for 2 completions"),
        ([1.0, 2.0, 3.0], "broken_reward returned 3 values for 2 completions"),
        ([1.0, None], "broken_reward returned None for completion 1; .* finite number. Return 0.0"),
        ([math.nan, 1.0], "broken_reward returned nan for completion 0"),
        ([1.0, -math.inf], "broken_reward returned -inf for completion 1"),
        ([1.0, "2"], "broken_reward returned '2' for completion 1"),
    ],
)
def test_combined_names_the_culprit(returned, message):
    def broken_reward(completions, **columns):
        return returned

    combined = combine_rewards([int_reward, broken_reward], [1.0, 1.0])
    with pytest.raises(ValueError, match=message):
        combined(["a", "b"])


# --- Examples in the documentation ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module", ["answers", "expressions", "rewards.correctness", "rewards.format", "rewards.shaping", "rewards.combine"]
)
def test_examples_run(module):
    results = doctest.testmod(importlib.import_module(f"lab_utils.{module}"))
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("reward", [*REWARDS, combine_rewards], ids=lambda reward: reward.__name__)
def test_every_reward_has_an_example(reward):
    assert ">>> " in reward.__doc__
