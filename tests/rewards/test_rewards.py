"""Tests of lab_utils.rewards: tables of good and bad text, faults of published rewards, and bounded work."""

import copy
import functools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab_utils import WorkshopError, rewards
from lab_utils.config.rules import ANY
from lab_utils.config.rules import REWARDS as EARNED_WITH
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

repeatable = settings(deadline=None, derandomize=True)

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
    "accuracy_reward": (0, 1),
    "conciseness_reward": (0, 1),
    "repetition_penalty_reward": (-1, 0),
}
REWARDS = [getattr(rewards, name) for name in rewards.__all__ if name.endswith("_reward")]

STRICT = "<reasoning>\n48 / 2 = 24\n48 + 24 = 72\n</reasoning>\n<answer>\n72\n</answer>"
THINK = "<think>48 / 2 = 24\n48 + 24 = 72</think><answer>72</answer>"
HASH = "48 / 2 = 24\n48 + 24 = 72\n#### 72"


def score(reward, text, **columns):
    """Score one completion against the gold 72 and, for Countdown, the numbers 3, 6, 7 and the target 45."""
    values = {"answer": "72", "nums": [3, 6, 7], "target": 45, **columns}
    return reward([text], **{name: [value] for name, value in values.items()})[0]


# --- GSM8K, <reasoning> and <answer> -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "correct", "whole"),
    [
        ("<answer>72</answer>", 2.0, 0.5),
        ("<answer>$72.0</answer>", 2.0, 0.5),
        ("<answer>71</answer>", 0.0, 0.5),
        ("<answer>-72</answer>", 0.0, 0.5),
        ("<answer>72.5</answer>", 0.0, 0.0),
        ("<answer>banana</answer>", 0.0, 0.0),
        ("<answer>72 clips</answer>", 0.0, 0.0),
        ("<answer>72", 0.0, 0.0),
        ("72", 0.0, 0.0),  # untagged
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
        ("Sure!\n" + STRICT, 0.0, 0.5, 0.5),
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
        ("", 0.0, 0.0, 0.0),
    ],
)
def test_reasoning_format(text, strict, soft, xmlcount):
    assert score(strict_format_reward, text) == strict
    assert score(soft_format_reward, text) == soft
    assert score(xmlcount_reward, text) == pytest.approx(xmlcount)


@given(st.text(alphabet=st.characters(exclude_characters="<")))
@repeatable
def test_strict_format_takes_any_content(content):
    """Any text without a tag may be inside the tags, also a line break: a pattern without DOTALL would fail."""
    text = f"<reasoning>\n{content}\n</reasoning>\n<answer>\n{content}\n</answer>"
    assert score(strict_format_reward, text) == score(soft_format_reward, text) == score(xmlcount_reward, text) == 0.5


# --- GSM8K, #### ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HASH, 1.0),
        ("#### 71\n#### 72", 0.0),  # the first one counts
        ("#### 71", 0.0),
        ("72", 0.0),
        ("<answer>72</answer>", 0.0),
    ],
)
def test_numeric_match(text, expected):
    assert score(numeric_match_reward, text) == expected


# --- Countdown -----------------------------------------------------------------------------------------------------


def answered(expression):
    return f"<think>7 * 6 = 42, 42 + 3 = 45 yes</think><answer>{expression}</answer>"


@pytest.mark.parametrize("expression", ["(7 * 6) + 3", "7*6+3", "3 + 6 * 7", "\n(7 * 6) + 3\n", "((7) * (6)) + 3",
                                        "7 * 6 - -3"])  # a minus sign is an operator: the numbers are 7, 6 and 3
def test_equation(expression):
    assert score(equation_reward, answered(expression)) == 1.0


@pytest.mark.parametrize(
    ("text", "nums", "target"),
    [
        (answered("(7 * 6) - 3"), [3, 6, 7], 45),  # another value
        (answered("7 * 6 + 3 = 45"), [3, 6, 7], 45),  # an equation is not an expression
        (answered("45"), [3, 6, 7], 45),
        (answered("42 + 3"), [3, 6, 7], 45),  # other numbers
        (answered("7 * 6 + 3 + 3 - 3"), [3, 6, 7], 45),  # one number three times
        (answered("7 * 6"), [3, 6, 7], 42),  # a number is left out
        (answered("76 + 3"), [3, 6, 7], 79),
        (answered("banana"), [3, 6, 7], 45),
        (answered("2**3"), [2, 3], 8),
        (answered("1/(2-2)"), [1, 2, 2], 0),
        (answered("1/3*3"), [1, 3, 3], 2),
        ("7 * 6", [6, 7], 42),  # untagged
        ("", [6, 7], 42),
    ],
)
def test_equation_earns_nothing(text, nums, target):
    assert score(equation_reward, text, nums=nums, target=target) == 0.0


def test_equation_is_exact():
    assert score(equation_reward, answered("3 / (1 / 3)"), nums=[1, 3, 3], target=9) == 1.0
    assert score(equation_reward, answered("8 / (3 - 8 / 3)"), nums=[3, 3, 8, 8], target=24) == 1.0


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
        ("<think>a</think><think>b</think><answer>72</answer>", 0.0),
        ("<Think>a</Think><answer>72</answer>", 0.0),
        ("<answer>72</answer>", 0.0),
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
def test_rewards_agree_with_the_tasks(text):
    gsm8k = {"answer": "72"}
    countdown = {"nums": [3, 6, 7], "target": 45}
    assert score(correctness_reward, text) == 2.0 * load_task("gsm8k").is_correct(text, gsm8k)
    assert score(numeric_match_reward, text) == load_task("gsm8k", "hash").is_correct(text, gsm8k)
    assert (score(cosine_scaled_accuracy_reward, text) > 0) == load_task("gsm8k", "think").is_correct(text, gsm8k)
    assert score(equation_reward, text) == load_task("countdown").is_correct(text, countdown)
    assert (score(strict_format_reward, text) > 0) == load_task("gsm8k").has_format(text)
    assert (score(format_reward, text) > 0) == load_task("countdown").has_format(text)


@pytest.mark.parametrize(("task", "response_format", "text"), [
    ("gsm8k", "reasoning", STRICT), ("gsm8k", "think", THINK), ("gsm8k", "hash", HASH),
    ("countdown", "think", answered("7 * 6 + 3")),
])
def test_a_good_completion_earns_the_rewards_that_a_recipe_may_use(task, response_format, text):
    """The table in config/rules.py says with which tasks and formats a reward can be earned."""
    for reward in REWARDS:
        tasks, formats = EARNED_WITH[reward.__name__]
        if formats != ANY:
            earned = score(reward, text) > RANGES[reward.__name__][1] / 2
            assert earned == (task in tasks and response_format in formats), reward.__name__


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
    assert cosine_scaled_accuracy_reward([THINK.ljust(4 * 256)], answer=["72"]) == pytest.approx([0.75])  # 4 per token


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Step 1: a\nStep 2: b", 2),
        ("1. a\n2. b\n 3) c", 3),
        ("- a\n* b", 2),
        ("First, a. Then, b. Finally, c.", 3),
        ("9 * 8 = <<9*8=72>>72", 1),
        ("It costs = $72 and = -5", 2),
        ("First, " * 1000, 10),  # no more than all
        ("The first one then is 72.", 0),
        ("x = y", 0),
        ("3.5 - 2 * 4", 0),
    ],
)
def test_reasoning_counts_steps(text, count):
    assert score(functools.partial(reasoning_reward, steps=10), text) == count / 10


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
    ],
)
def test_repetition_penalty(text, expected):
    assert score(repetition_penalty_reward, text) == expected
    assert repetition_penalty_reward(["a b a b a"], ngram_size=2, max_penalty=-2.0) == [-1.0]


# --- What every reward has in common -------------------------------------------------------------------------------


@pytest.mark.parametrize("reward", REWARDS, ids=lambda reward: reward.__name__)
@given(contents=st.lists(st.one_of(texts, st.text()), max_size=4))
@repeatable
def test_every_reward_is_a_pure_function_of_its_columns(reward, contents):
    """TRL calls a reward with keywords only and more columns than it needs, on strings or messages."""
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


@pytest.mark.parametrize("name", rewards.CORRECTNESS)
def test_columns_of_another_length_are_refused(name):
    with pytest.raises(ValueError):
        getattr(rewards, name)(["a", "b"], answer=["72"], nums=[[3, 6, 7]], target=[45])


# --- combine_rewards -----------------------------------------------------------------------------------------------


def test_combined_is_the_weighted_sum():
    combined = combine_rewards([format_reward, equation_reward], [0.1, 1.0])
    contents = ["<think></think><answer>7 * 6 + 3</answer>", "<answer>7 * 6 + 3</answer>", THINK, ""]
    values = combined(completions=contents, nums=[[3, 6, 7]] * 4, target=[45] * 4, completion_ids=[[0]] * 4)
    assert values == pytest.approx([1.1, 1.0, 0.1, 0.0])
    assert combined.__name__ == "0.1*format_reward+1.0*equation_reward"
    assert combined([], nums=[], target=[]) == []


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
        ([format_reward], [1.0, 2.0], r"1 functions \(format_reward\) and 2 weights \(\[1.0, 2.0\]\)"),
        ([format_reward], [math.nan], "weight of format_reward is nan"),
        ([format_reward, int_reward], [1.0, math.inf], "weight of int_reward is inf"),
        ([format_reward], ["0.5"], "weight of format_reward is '0.5'"),
    ],
)
def test_combine_refuses(functions, weights, message):
    with pytest.raises(WorkshopError, match=message):
        combine_rewards(functions, weights)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "broken_reward returned None, not a list: return a list"),
        ([1.0, 2.0, 3.0], "broken_reward returned 3 values for 2 completions: return one value for each"),
        ([1.0, None], "broken_reward returned None for completion 1, not a finite number: return 0.0"),
        ([math.nan, 1.0], "broken_reward returned nan for completion 0"),
        ([1.0, "2"], "broken_reward returned '2' for completion 1"),
    ],
)
def test_combined_names_the_broken_reward(returned, message):
    def broken_reward(completions, **columns):
        return returned

    combined = combine_rewards([int_reward, broken_reward], [1.0, 1.0])
    with pytest.raises(WorkshopError, match=message):
        combined(["a", "b"])
