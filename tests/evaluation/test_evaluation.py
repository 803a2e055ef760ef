"""Tests of lab_utils.evaluation: metrics, intervals and paired tests against numbers by hand and by simulation."""

from itertools import combinations, product
from math import nan, sqrt
from statistics import NormalDist

import numpy as np
import pytest

from lab_utils import WorkshopError, config
from lab_utils.evaluation import (
    Evaluation,
    bootstrap_interval,
    evaluate,
    format_results,
    judge,
    maj_at_k,
    mcnemar,
    paired_bootstrap,
    pass_at_k,
    results_table,
    rewards_table,
    wilson_interval,
)
from lab_utils.models import load_model, load_tokenizer
from lab_utils.sampling.local import Completion
from lab_utils.tasks import load_task

# --- pass@k and maj@k ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_equals_the_share_of_subsets_with_a_correct_sample(n):
    for c, k in product(range(n + 1), range(1, n + 1)):
        subsets = list(combinations([1] * c + [0] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets), abs=1e-12)


def test_pass_at_k_stays_exact_for_many_samples():
    assert pass_at_k(10_000, 1, 1) == pytest.approx(1e-4, rel=1e-9)


@pytest.mark.parametrize("n, c, k", [(4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0), (0, 0, 1)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match="between"):
        pass_at_k(n, c, k)


@pytest.mark.parametrize(
    "answers, correct, expected",
    [
        (["7", "7", "8"], [1, 1, 0], 1.0),
        (["7", "8", "8"], [1, 0, 0], 0.0),
        (["7", "8"], [1, 0], 0.5),  # a tie
        (["7", "7.0", "$7", "8", "8", "9"], [1, 1, 1, 0, 0, 0], 1.0),  # equal numbers vote together
        (["3 + 4", "3+4", "9"], [1, 1, 0], 1.0),  # and so do equal expressions
        ([None, None, "7"], [0, 0, 1], 1.0),  # no answer, no vote
        ([None, None], [0, 0], 0.0),
    ],
)
def test_maj_at_k_of_all_samples(answers, correct, expected):
    assert maj_at_k(answers, correct) == expected


def test_maj_at_k_averages_over_groups_of_k():
    answers, correct = ["7", "7", "8", "8", "7"], [1, 1, 0, 0, 1]
    assert maj_at_k(answers, correct, 1) == pytest.approx(3 / 5)
    assert maj_at_k(answers, correct, 2) == pytest.approx(1 / 2)  # (7, 7) and (8, 8); the fifth is left over


def test_maj_at_k_refuses_more_than_there_are():
    with pytest.raises(ValueError, match="maj@3 needs between 1 and 2"):
        maj_at_k(["7", "8"], [1, 0], 3)
    with pytest.raises(ValueError, match="one flag per answer"):
        maj_at_k(["7"], [1, 0])


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "k, n, low, high",
    # Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3: Wilson's score interval
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_equals_published_values(k, n, low, high):
    assert wilson_interval(k, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("k, n", [(11, 10), (-1, 10), (0, 0)])
def test_wilson_interval_refuses_impossible_counts(k, n):
    with pytest.raises(ValueError):
        wilson_interval(k, n)


def test_bootstrap_interval_covers_the_truth():
    """Questions of different difficulty, 8 samples each: only the spread between questions counts."""
    rng = np.random.default_rng(0)
    covered = []
    for trial in range(400):
        difficulty = rng.beta(0.5, 1.0, size=150)  # mean 1/3
        low, high = bootstrap_interval(rng.binomial(8, difficulty) / 8, resamples=1000, seed=trial)
        covered.append(low <= 1 / 3 <= high)
    assert 0.92 <= np.mean(covered) <= 0.975


# --- paired comparisons ----------------------------------------------------------------------------------------------


def test_paired_bootstrap_equals_the_normal_approximation():
    rng = np.random.default_rng(0)
    a = rng.random(1000)
    b = a + rng.normal(0.006, 0.1, size=1000)
    difference, low, high, p = paired_bootstrap(a, b)
    mean, error = (b - a).mean(), (b - a).std() / sqrt(1000)
    assert difference == pytest.approx(mean)
    assert (low, high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=4e-4)
    assert p == pytest.approx(2 * (1 - NormalDist().cdf(abs(mean) / error)), abs=0.01)


def test_pairing_removes_the_difficulty_of_the_questions():
    rng = np.random.default_rng(0)
    a = rng.random(200)
    b = a + 0.05
    _, low, high, p = paired_bootstrap(a, b)
    assert low == pytest.approx(0.05) and high == pytest.approx(0.05) and p < 0.001
    assert bootstrap_interval(a)[1] - bootstrap_interval(a)[0] > 0.07  # an unpaired interval would hide this gain


def test_paired_bootstrap_repeats_and_finds_no_difference_between_equals():
    a, b = np.array([0.0, 1, 1, 0.5, 0.25] * 20), np.array([1.0, 1, 0.5, 0.5, 1] * 20)
    assert paired_bootstrap(a, b) == paired_bootstrap(a, b)
    assert paired_bootstrap(a, a) == (0.0, 0.0, 0.0, 1.0)


def test_paired_bootstrap_needs_more_than_a_few_questions():
    assert paired_bootstrap([0] * 4, [1] * 4).p_value == pytest.approx(mcnemar([0] * 4, [1] * 4).p_value, abs=0.01)
    assert paired_bootstrap([0] * 10, [1] * 10).p_value == pytest.approx(2 / 1024, abs=0.002)


def test_paired_bootstrap_rejects_a_true_null_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    p_values = []
    for seed in range(400):
        p = rng.random(100)
        a, b = rng.binomial(4, p) / 4, rng.binomial(4, p) / 4
        p_values.append(paired_bootstrap(a, b, resamples=500, seed=seed).p_value)
    assert 0.02 <= np.mean(np.array(p_values) < 0.05) <= 0.09


@pytest.mark.parametrize(
    "only_a, only_b, p", [(0, 0, 1.0), (1, 5, 14 / 64), (5, 1, 14 / 64), (3, 3, 1.0), (0, 10, 2 / 1024)]
)
def test_mcnemar_is_the_exact_binomial_test_on_the_disagreements(only_a, only_b, p):
    a = [1] * only_a + [0] * only_b + [1] * 7 + [0] * 4
    b = [0] * only_a + [1] * only_b + [1] * 7 + [0] * 4
    assert mcnemar(a, b) == (only_a, only_b, pytest.approx(p))


def test_mcnemar_works_on_thousands_of_questions():
    assert mcnemar([1] * 900 + [0] * 1100, [0] * 900 + [1] * 1100).p_value == pytest.approx(8.4e-6, rel=0.05)


@pytest.mark.parametrize(
    "test, a, b, message",
    [
        (paired_bootstrap, [1, 0], [1, 0, 1], "a has 2 scores and b has 3"),
        (paired_bootstrap, [], [], "at least one number, one per question"),
        (paired_bootstrap, [[1], [0]], [1, 0], r"a has shape \(2, 1\)"),
        (mcnemar, [1, nan], [1, 0], r"a\[1\] is NaN"),
        (mcnemar, [0.5, 1], [0, 1], "use paired_bootstrap"),
    ],
)
def test_paired_tests_refuse_scores_that_do_not_pair(test, a, b, message):
    with pytest.raises(ValueError, match=message):
        test(a, b)


# --- evaluations -----------------------------------------------------------------------------------------------------

GOOD = "<think>7 * 3 = 21\n21 + 25 = 46 yes</think><answer>(7 * 3) + 25</answer>"
WRONG = "<think>7 + 3 = 10, 10 + 25 = 35 no</think><answer>7 + 3 + 25</answer>"
UNTAGGED = "(7 * 3) + 25"
CUT = "<think>7 + 3 = 10, 10 +"
TASK = load_task("countdown")
ROWS = [{"prompt": TASK.prompt(row), **row}
        for row in ({"nums": [3, 7, 25], "target": 46}, {"nums": [25, 7, 3], "target": 46})]


def completion(text, finished=True, length=10):
    return Completion(text, [0] * length, [0.0] * length, finished)


@pytest.fixture
def evaluation():
    first = [completion(GOOD), completion(GOOD), completion(WRONG), completion(UNTAGGED)]
    second = [completion(WRONG), completion(WRONG), completion(CUT, finished=False, length=50), completion(WRONG)]
    return judge(TASK, ROWS, [first, second], {"seed": 0})


def test_an_evaluation_adds_up(evaluation):
    assert evaluation.per_problem.tolist() == [0.5, 0.0]
    assert evaluation.accuracy == 0.25
    assert evaluation.accuracy_lenient == 3 / 8
    assert evaluation.format_rate == 6 / 8
    assert evaluation.truncation_rate == 1 / 8
    assert evaluation.mean_length == (7 * 10 + 50) / 8
    assert evaluation.mean_attempts == (2 + 2 + 1 + 0 + 1 + 1 + 1 + 1) / 8
    assert evaluation.pass_at == {1: 0.25, 2: pytest.approx((5 / 6) / 2), 4: 0.5}
    assert evaluation.maj_at == {1: 0.25, 2: (0.5 + 0.0) / 2, 4: 0.5}
    low, high = evaluation.accuracy_interval
    assert low == 0.0 and high == 0.5
    assert evaluation.pass_at_intervals[4] == wilson_interval(1, 2)
    assert "2 questions × 4" in str(evaluation)


@pytest.mark.parametrize("first, correct", [(GOOD, 1), (WRONG, 0)])
def test_questions_that_are_simply_correct_or_wrong_get_wilsons_interval(first, correct):
    evaluation = judge(TASK, ROWS, [[completion(first)] * 2, [completion(WRONG)] * 2])
    assert evaluation.accuracy_interval == wilson_interval(correct, 2)


def test_an_evaluation_survives_json(evaluation, tmp_path):
    evaluation.save(tmp_path / "new" / "eval.json")
    loaded = Evaluation.load(tmp_path / "new" / "eval.json")
    assert loaded.examples == evaluation.examples and loaded.settings == {"seed": 0}
    assert loaded.summary() == evaluation.summary()
    assert loaded.examples[0]["gold"] == "46" and loaded.examples[0]["completions"][2]["extracted"] == "7 + 3 + 25"


def test_an_evaluation_needs_the_same_number_of_completions_everywhere():
    with pytest.raises(WorkshopError, match="same number of completions"):
        judge(TASK, ROWS, [[completion(GOOD)], []])
    with pytest.raises(WorkshopError, match="at least one question"):
        judge(TASK, [], [])


def test_evaluate_refuses_to_repeat_a_greedy_answer():
    with pytest.raises(WorkshopError, match="temperature 0"):
        evaluate(None, None, TASK, ROWS, num_samples=2, max_new_tokens=8, temperature=0)


def test_results_table_compares_to_the_first(evaluation):
    base = judge(TASK, ROWS, [[completion(WRONG)] * 4] * 2)
    table = results_table({"base": base, "GRPO": evaluation})
    assert table.loc["GRPO", "difference"] == 0.25 and np.isnan(table.loc["base", "difference"])
    assert table.loc["GRPO", "pass@4"] == 0.5
    shown = format_results(table)
    assert shown.loc["GRPO", "accuracy"] == "25.0% [0.0%, 50.0%]"
    assert shown.loc["GRPO", "difference (points)"].startswith("+25.0") and shown.loc["base", "p"] == ""


def test_results_table_refuses_different_questions(evaluation):
    other = judge(TASK, ROWS[::-1], [[completion(WRONG)] * 4] * 2)
    with pytest.raises(WorkshopError, match="not asked the same questions"):
        results_table({"base": other, "GRPO": evaluation})


@pytest.mark.component
def test_evaluate_gives_the_same_answers_again():
    model, tokenizer = load_model("tiny"), load_tokenizer("tiny")
    settings = {"num_samples": 2, "max_new_tokens": 12, "batch_size": 2}
    first = evaluate(model, tokenizer, TASK, ROWS, seed=1, **settings)
    assert first.examples == evaluate(model, tokenizer, TASK, ROWS, seed=1, **settings).examples
    assert first.examples != evaluate(model, tokenizer, TASK, ROWS, seed=2, **settings).examples
    assert first.settings["max_new_tokens"] == 12 and first.num_samples == 2


# --- Rewards ---------------------------------------------------------------------------------------------------------

CONFIG = config.load("countdown-grpo", "cpu")


def scored(first, second, config=CONFIG):
    return judge(TASK, ROWS, [list(map(completion, first)), list(map(completion, second))], {}, config)


def test_an_evaluation_keeps_the_value_of_every_reward(tmp_path):
    both = scored([GOOD, WRONG], [UNTAGGED, CUT])
    assert both.examples[0]["completions"][0]["rewards"] == {"format_reward": 1.0, "equation_reward": 1.0}
    both.save(tmp_path / "eval.json")
    parts = Evaluation.load(tmp_path / "eval.json").contributions()
    assert {name: part.tolist() for name, part in parts.items()} == {
        "format_reward": [[0.1, 0.1], [0.0, 0.0]], "equation_reward": [[1.0, 0.0], [0.0, 0.0]],
        "total": [[1.1, 0.1], [0.0, 0.0]]}
    assert both.summary()["rewards"] == {"format_reward": 0.05, "equation_reward": 0.25, "total": pytest.approx(0.3)}
    assert both.accuracy == 0.25, "the reward for correctness and the accuracy are one definition"


def test_an_evaluation_without_values_loads_and_says_how_to_get_them(evaluation, tmp_path):
    evaluation.save(tmp_path / "eval.json")
    old = Evaluation.load(tmp_path / "eval.json")
    assert "rewards" not in old.summary()
    with pytest.raises(WorkshopError, match="no values of the rewards.*evaluate again"):
        rewards_table({"SFT": old})


def test_rewards_table_splits_the_gain_into_its_parts():
    before, after = scored([GOOD, WRONG], [WRONG, UNTAGGED]), scored([GOOD, GOOD], [GOOD, WRONG])
    table = rewards_table({"SFT": before, "GRPO": after})
    assert table.loc[["format_reward", "equation_reward", "total"], "GRPO"].tolist() == ["0.100", "0.750", "0.850"]
    assert table.loc["total", "SFT"] == "0.325" and table.loc["format_reward", "weight"] == "0.1"
    assert table.loc["equation_reward", "GRPO − SFT"] == "+0.500 [+0.500, +0.500]"
    other = scored([GOOD] * 2, [GOOD] * 2, config.load("countdown-grpo", "cpu", {"rewards.format_reward": 0.2}))
    with pytest.raises(WorkshopError, match="'GRPO' and 'SFT' were scored by different rewards"):
        rewards_table({"SFT": before, "GRPO": other})


OWN_REWARDS = """
def columns_and_tokens(completions, prompts, nums, completion_ids, max_length, task, **columns):
    assert completions[0][-1]["role"] == "assistant" and prompts[0][-1]["role"] == "user" and task.name == "countdown"
    return [len(numbers) + len(ids) / max_length for numbers, ids in zip(nums, completion_ids)]


def broken(completions, **columns):
    return [1 / (len(completion[-1]["content"]) - 30) for completion in completions]
"""


def test_own_rewards_are_called_as_in_training_and_a_broken_one_costs_only_the_values(tmp_path):
    (tmp_path / "mine.py").write_text(OWN_REWARDS)
    own = {name: config.load("countdown-grpo", "cpu", {"rewards": {f"{tmp_path / 'mine.py'}:{name}": 2.0}})
           for name in ("columns_and_tokens", "broken")}
    parts = scored([GOOD], [CUT], own["columns_and_tokens"]).contributions()
    assert parts["columns_and_tokens"].tolist() == pytest.approx(np.full((2, 1), 2 * (3 + 10 / 192)))
    with pytest.warns(UserWarning, match="no values of the rewards.*'broken'.*ZeroDivisionError"):
        kept = scored([GOOD], ["x" * 30], own["broken"])
    assert kept.accuracy == 0.5 and not kept.has_rewards
