"""Metrics, intervals and paired tests against hand-worked numbers, enumeration and simulation."""

from itertools import combinations, product
from math import nan, sqrt
from statistics import NormalDist

import numpy as np
import pytest

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
    wilson_interval,
)
from lab_utils.models import load_model, load_tokenizer
from lab_utils.sampling.local import Completion
from lab_utils.tasks import load_task

pytestmark = pytest.mark.unit


# --- pass@k and maj@k ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_equals_the_share_of_subsets_with_a_right_sample(n):
    for c, k in product(range(n + 1), range(1, n + 1)):
        subsets = list(combinations([1] * c + [0] * (n - c), k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(any(s) for s in subsets) / len(subsets), abs=1e-12)


def test_pass_at_k_stays_exact_for_many_samples():
    assert pass_at_k(10_000, 1, 1) == pytest.approx(1e-4, rel=1e-9)
    assert pass_at_k(10_000, 5_000, 100) == pytest.approx(1.0)


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


def test_wilson_interval_is_symmetric_and_exact_at_the_ends():
    assert wilson_interval(0, 20)[0] == 0.0 and wilson_interval(20, 20)[1] == 1.0
    low, high = wilson_interval(3, 10)
    assert wilson_interval(7, 10) == pytest.approx((1 - high, 1 - low))


@pytest.mark.parametrize("k, n, confidence", [(11, 10, 0.95), (-1, 10, 0.95), (0, 0, 0.95), (1, 2, 1.0), (1, 2, 95)])
def test_wilson_interval_refuses_impossible_counts(k, n, confidence):
    with pytest.raises(ValueError):
        wilson_interval(k, n, confidence)


@pytest.mark.parametrize("p", [0.03, 0.3, 0.9])
def test_wilson_interval_covers_the_truth(p):
    n, trials = 200, 2000
    successes = np.random.default_rng(0).binomial(n, p, size=trials)
    covered = [low <= p <= high for low, high in (wilson_interval(int(k), n) for k in successes)]
    assert 0.93 <= np.mean(covered) <= 0.975


def test_bootstrap_interval_covers_the_truth():
    """Questions of different difficulty, 8 samples each: only the spread between questions counts."""
    rng = np.random.default_rng(0)
    covered = []
    for trial in range(400):
        difficulty = rng.beta(0.5, 1.0, size=150)  # mean 1/3
        low, high = bootstrap_interval(rng.binomial(8, difficulty) / 8, resamples=1000, seed=trial)
        covered.append(low <= 1 / 3 <= high)
    assert 0.92 <= np.mean(covered) <= 0.975


def test_bootstrap_interval_equals_the_normal_one_on_a_large_sample():
    values = np.random.default_rng(1).random(1000)
    mean, half_width = values.mean(), 1.96 * values.std() / sqrt(1000)
    assert bootstrap_interval(values) == pytest.approx((mean - half_width, mean + half_width), abs=1e-3)


@pytest.mark.parametrize("values", [[], [[1.0], [0.0]], 0.5])
def test_bootstrap_interval_refuses_what_is_not_a_list_of_scores(values):
    with pytest.raises(ValueError, match="one per question"):
        bootstrap_interval(values)


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
    assert bootstrap_interval(a)[1] - bootstrap_interval(a)[0] > 0.07  # unpaired, the same gain would drown


def test_paired_bootstrap_gives_the_same_numbers_again_and_the_opposite_ones_when_swapped():
    a, b = np.array([0.0, 1, 1, 0.5, 0.25] * 20), np.array([1.0, 1, 0.5, 0.5, 1] * 20)
    assert paired_bootstrap(a, b) == paired_bootstrap(a, b)
    assert paired_bootstrap(b, a).difference == -paired_bootstrap(a, b).difference
    assert paired_bootstrap(a, a) == (0.0, 0.0, 0.0, 1.0)


def test_paired_bootstrap_needs_more_than_a_few_questions():
    assert paired_bootstrap([0], [1]).p_value == pytest.approx(1.0)
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


@pytest.mark.parametrize("test", [paired_bootstrap, mcnemar])
@pytest.mark.parametrize(
    "a, b, message",
    [
        ([1, 0], [1, 0, 1], "a has 2 scores and b has 3"),
        ([], [], "at least one number"),
        ([1, nan], [1, 0], r"a\[1\] is NaN"),
    ],
)
def test_paired_tests_refuse_scores_that_do_not_pair(test, a, b, message):
    with pytest.raises(ValueError, match=message):
        test(a, b)


def test_mcnemar_refuses_shares():
    with pytest.raises(ValueError, match="use paired_bootstrap"):
        mcnemar([0.5, 1], [0, 1])


# --- evaluations -----------------------------------------------------------------------------------------------------

GOOD = "<think>7 * 3 = 21\n21 + 25 = 46 yes</think><answer>(7 * 3) + 25</answer>"
WRONG = "<think>7 + 3 = 10, 10 + 25 = 35 no</think><answer>7 + 3 + 25</answer>"
UNTAGGED = "(7 * 3) + 25"
CUT = "<think>7 + 3 = 10, 10 +"


def completion(text, finished=True, length=10):
    return Completion(text, [0] * length, [0.0] * length, finished)


@pytest.fixture
def task():
    return load_task("countdown")


@pytest.fixture
def rows(task):
    problems = [{"nums": [3, 7, 25], "target": 46}, {"nums": [25, 7, 3], "target": 46}]
    return [{"prompt": task.prompt(row), **row} for row in problems]


@pytest.fixture
def evaluation(task, rows):
    first = [completion(GOOD), completion(GOOD), completion(WRONG), completion(UNTAGGED)]
    second = [completion(WRONG), completion(WRONG), completion(CUT, finished=False, length=50), completion(WRONG)]
    return judge(task, rows, [first, second], {"seed": 0})


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


def test_one_sample_a_question_gets_wilsons_interval(task, rows):
    evaluation = judge(task, rows, [[completion(GOOD)], [completion(WRONG)]])
    assert evaluation.accuracy_interval == wilson_interval(1, 2)
    assert evaluation.pass_at == {1: 0.5}


def test_all_wrong_does_not_pretend_to_certainty(task, rows):
    evaluation = judge(task, rows, [[completion(WRONG)] * 4] * 2)
    assert evaluation.accuracy_interval == wilson_interval(0, 2)


def test_an_evaluation_survives_json(evaluation, tmp_path):
    evaluation.save(tmp_path / "new" / "eval.json")
    loaded = Evaluation.load(tmp_path / "new" / "eval.json")
    assert loaded.examples == evaluation.examples and loaded.settings == {"seed": 0}
    assert loaded.summary() == evaluation.summary()
    assert loaded.examples[0]["gold"] == "46" and loaded.examples[0]["completions"][2]["extracted"] == "7 + 3 + 25"


def test_an_evaluation_needs_the_same_number_of_completions_everywhere(task, rows):
    with pytest.raises(ValueError, match="same number of completions"):
        judge(task, rows, [[completion(GOOD)], []])
    with pytest.raises(ValueError, match="at least one question"):
        judge(task, [], [])


def test_evaluate_refuses_to_repeat_a_greedy_answer(task, rows):
    with pytest.raises(ValueError, match="temperature 0"):
        evaluate(None, None, task, rows, num_samples=2, max_new_tokens=8, temperature=0)


def test_results_table_compares_to_the_first(task, rows, evaluation):
    base = judge(task, rows, [[completion(WRONG)] * 4] * 2)
    table = results_table({"base": base, "GRPO": evaluation})
    assert table.loc["GRPO", "difference"] == 0.25 and np.isnan(table.loc["base", "difference"])
    assert table.loc["GRPO", "pass@4"] == 0.5
    shown = format_results(table)
    assert shown.loc["GRPO", "accuracy"] == "25.0% [0.0%, 50.0%]"
    assert shown.loc["GRPO", "difference (points)"].startswith("+25.0") and shown.loc["base", "p"] == ""


def test_results_table_refuses_different_questions(task, rows, evaluation):
    other = judge(task, rows[::-1], [[completion(WRONG)] * 4] * 2)
    with pytest.raises(ValueError, match="not asked the same questions"):
        results_table({"base": other, "GRPO": evaluation})


@pytest.mark.component
def test_evaluate_gives_the_same_answers_again(task, rows):
    model, tokenizer = load_model("tiny"), load_tokenizer("tiny")
    settings = {"num_samples": 2, "max_new_tokens": 12, "batch_size": 2}
    first = evaluate(model, tokenizer, task, rows, seed=1, **settings)
    assert first.examples == evaluate(model, tokenizer, task, rows, seed=1, **settings).examples
    assert first.examples != evaluate(model, tokenizer, task, rows, seed=2, **settings).examples
    assert first.settings["max_new_tokens"] == 12 and first.num_samples == 2
