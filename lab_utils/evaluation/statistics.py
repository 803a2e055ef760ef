"""How good a model is, and whether it is better than another: pass@k, maj@k, intervals and paired tests."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from ..tasks.answers import parse_number

Interval = tuple[float, float]


# --- Estimates for one model -------------------------------------------------------------------------------------


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k samples is right, from n samples of which c are right.

    Unbiased: 1 - C(n-c, k) / C(n, k), as a product that stays exact for large n (Chen et al. 2021, arXiv 2107.03374,
    section 2.1).

    Raises:
        ValueError: unless 0 <= c <= n and 1 <= k <= n.

    >>> pass_at_k(n=4, c=1, k=2)
    0.5
    """
    if n < 1 or not 0 <= c <= n:
        raise ValueError(f"{c} right samples of {n}: give at least one sample, and between 0 and n={n} right ones.")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs between 1 and n={n} samples to draw from; sample more or choose k <= {n}.")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def maj_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int | None = None) -> float:
    """Probability that the most frequent of k extracted answers is right (self-consistency, arXiv 2203.11171).

    Averages over the disjoint groups of k samples (all samples by default). None does not vote, equal numbers vote
    together ("72" and "72.0"), and a tie counts by the share of right answers among those that lead.

    >>> maj_at_k(["72", "72.0", "9", None], [True, True, False, False])
    1.0
    """
    if len(answers) != len(correct):
        raise ValueError(f"{len(answers)} answers and {len(correct)} correctness flags: give one flag per answer.")
    k = len(answers) if k is None else k
    if not 1 <= k <= len(answers):
        raise ValueError(f"maj@{k} needs between 1 and {len(answers)} answers; sample more or choose a smaller k.")
    groups = [range(start, start + k) for start in range(0, len(answers) - k + 1, k)]
    return float(np.mean([_vote([answers[i] for i in group], [correct[i] for i in group]) for group in groups]))


def _vote(answers: list[str | None], correct: list[bool]) -> float:
    votes: Counter[Fraction | str] = Counter()
    is_right = {}
    for answer, right in zip(answers, correct, strict=True):
        if answer is not None:
            number = parse_number(answer)
            key = "".join(answer.split()) if number is None else number  # an expression is no number
            votes[key] += 1
            is_right[key] = right
    leaders = [key for key, count in votes.items() if count == max(votes.values())]
    return sum(is_right[key] for key in leaders) / len(leaders) if leaders else 0.0


def wilson_interval(k: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval for a proportion: k successes in n independent trials (Wilson 1927).

    Unlike p ± 1.96 sqrt(p(1-p)/n) it stays inside [0, 1] and keeps its coverage near 0 and 1.

    >>> [round(bound, 4) for bound in wilson_interval(5, 10)]
    [0.2366, 0.7634]
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"{k} successes in {n} trials: give at least one trial, and between 0 and n={n} successes.")
    z = _normal_quantile(confidence)
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return (0.0 if k == 0 else centre - half_width, 1.0 if k == n else centre + half_width)


def _normal_quantile(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: give a number between 0 and 1, such as 0.95.")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def bootstrap_interval(
    values: Sequence[float], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval for the mean of one value per question (Efron 1979): redraw the questions."""
    _normal_quantile(confidence)
    means = _bootstrap_means(_checked(values, "values"), resamples, seed)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return float(low), float(high)


def _bootstrap_means(values: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    # Redrawing n questions and counting how often each distinct value came is one multinomial draw: fast, and exact.
    distinct, counts = np.unique(values, return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)
    return draws @ distinct / len(values)


def _checked(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}: give a list of at least one number, one per question.")
    if np.isnan(array).any():
        raise ValueError(f"{name}[{int(np.isnan(array).argmax())}] is NaN: every question needs a score.")
    return array


# --- Comparing two models on the same questions --------------------------------------------------------------------


class PairedDifference(NamedTuple):
    """Mean of b minus mean of a, its interval, and the two-sided p-value of "no difference"."""

    difference: float
    low: float
    high: float
    p_value: float


class McNemar(NamedTuple):
    """Questions that only a, or only b, got right, and the exact two-sided p-value."""

    only_a: int
    only_b: int
    p_value: float


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> PairedDifference:
    """How much better is b than a, on the same questions? Redraws questions, keeping each pair together.

    Args:
        a, b: scores per question (such as `Evaluation.per_problem`), in the same order of questions. Pass the model
            before training as `a` and the one after as `b`: a gain is positive.

    Returns:
        difference (mean of b - a), percentile interval, and the two-sided p-value of a randomisation test: if the
        models were equally good, each question's difference could as well have had the other sign (Fisher 1935). With
        few questions believe the p-value: an interval of the bootstrap is too narrow then.

    Raises:
        ValueError: different lengths, no scores, NaN.
    """
    _normal_quantile(confidence)
    differences = _differences(a, b)
    mean = float(differences.mean())
    means = _bootstrap_means(differences, resamples, seed)
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(resamples, len(differences)))
    as_far = np.count_nonzero(np.abs((signs * differences).mean(axis=1)) >= abs(mean) - 1e-12)
    return PairedDifference(mean, float(low), float(high), (1 + int(as_far)) / (1 + resamples))


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> McNemar:
    """Exact McNemar test: of the questions on which the models disagree, does one win more than a fair coin would?

    For one answer a question (right or wrong); with several samples use `paired_bootstrap`.

    Raises:
        ValueError: different lengths, no scores, NaN, or scores other than 0 and 1.

    >>> mcnemar([1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1])
    McNemar(only_a=1, only_b=5, p_value=0.21875)
    """
    differences = _differences(a, b)
    if not set(np.unique([a, b])) <= {0, 1}:
        raise ValueError("McNemar's test needs one answer a question, right (1) or wrong (0); use paired_bootstrap.")
    only_a, only_b = int((differences < 0).sum()), int((differences > 0).sum())
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1))
    return McNemar(only_a, only_b, min(1.0, 2 * tail / 2**n))


def _differences(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    a, b = _checked(a, "a"), _checked(b, "b")
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} scores and b has {len(b)}: a paired test needs the same questions in both.")
    return b - a
