"""How good is a model, and is it better than another? pass@k, maj@k, intervals and paired tests."""

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


def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimate the probability that at least one of k samples is correct, given n samples with c correct ones.

    Unbiased: 1 - C(n-c, k) / C(n, k), as a product that stays exact for large n (Chen et al. 2021, arXiv 2107.03374,
    section 2.1).

    Raises:
        ValueError: unless 0 <= c <= n and 1 <= k <= n.

    >>> pass_at_k(n=4, c=1, k=2)
    0.5
    """
    if n < 1 or not 0 <= c <= n:
        raise ValueError(f"{c} correct samples of {n}: give at least one sample, and between 0 and n={n} correct ones.")
    if not 1 <= k <= n:
        raise ValueError(f"pass@{k} needs between 1 and n={n} samples to draw from; sample more or choose k <= {n}.")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def maj_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int | None = None) -> float:
    """Estimate the probability that the most frequent of k answers is correct (self-consistency, arXiv 2203.11171).

    The estimate is the mean over disjoint groups of k samples (all samples by default). None does not vote. Equal
    numbers, such as "72" and "72.0", vote together. A tie counts as the share of correct answers among the leaders.

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
    is_correct = {}
    for answer, flag in zip(answers, correct, strict=True):
        if answer is not None:
            number = parse_number(answer)
            key = "".join(answer.split()) if number is None else number  # an expression votes as text
            votes[key] += 1
            is_correct[key] = flag
    leaders = [key for key, count in votes.items() if count == max(votes.values())]
    return sum(is_correct[key] for key in leaders) / len(leaders) if leaders else 0.0


def wilson_interval(k: int, n: int) -> Interval:
    """Return Wilson's 95% score interval for a proportion: k successes in n independent trials (Wilson 1927).

    Unlike p ± 1.96 sqrt(p(1-p)/n), it stays inside [0, 1] and keeps its coverage near 0 and 1.

    >>> [round(bound, 4) for bound in wilson_interval(5, 10)]
    [0.2366, 0.7634]
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"{k} successes in {n} trials: give at least one trial, and between 0 and n={n} successes.")
    z = NormalDist().inv_cdf(0.975)
    p = k / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half_width = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return (0.0 if k == 0 else center - half_width, 1.0 if k == n else center + half_width)


def bootstrap_interval(values: Sequence[float], resamples: int = 10_000, seed: int = 0) -> Interval:
    """Return the 95% percentile bootstrap interval for the mean of one value per question (Efron 1979)."""
    # To redraw n questions and count how often each distinct value comes is one multinomial draw: fast and exact.
    values, counts = np.unique(_checked(values, "values"), return_counts=True)
    n = counts.sum()
    means = np.random.default_rng(seed).multinomial(n, counts / n, size=resamples) @ values / n
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _checked(values: Sequence[float], name: str) -> np.ndarray:
    array = np.asarray(values, dtype=float)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} has shape {array.shape}: give a list of at least one number, one per question.")
    if np.isnan(array).any():
        raise ValueError(f"{name}[{int(np.isnan(array).argmax())}] is NaN: give every question a score.")
    return array


class PairedDifference(NamedTuple):
    """Mean of b minus mean of a, its interval, and the two-sided p-value of "no difference"."""

    difference: float
    low: float
    high: float
    p_value: float


class McNemar(NamedTuple):
    """Numbers of questions that only a, or only b, answered correctly, and the exact two-sided p-value."""

    only_a: int
    only_b: int
    p_value: float


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float], resamples: int = 10_000, seed: int = 0
) -> PairedDifference:
    """Estimate how much better b is than a on the same questions, by redrawing questions as pairs.

    Args:
        a, b: scores per question (such as `Evaluation.per_problem`), in the same order of questions. With the model
            before training as `a` and the model after it as `b`, a gain is positive.

    Returns:
        The difference (mean of b - a), its 95% interval, and the two-sided p-value of a randomization test: for equally
        good models, the sign of each question's difference is a coin flip (Fisher 1935). With few questions, trust the
        p-value: the bootstrap interval is then too narrow.

    Raises:
        ValueError: a and b differ in length, are empty or hold NaN.
    """
    differences = _differences(a, b)
    mean = float(differences.mean())
    low, high = bootstrap_interval(differences, resamples, seed)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(resamples, len(differences)))
    as_far = np.count_nonzero(np.abs((signs * differences).mean(axis=1)) >= abs(mean) - 1e-12)
    return PairedDifference(mean, low, high, (1 + int(as_far)) / (1 + resamples))


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> McNemar:
    """Test exactly whether one model wins more of the questions on which the two disagree than a fair coin would.

    It takes one answer per question, correct or wrong; for several samples per question use `paired_bootstrap`.

    Raises:
        ValueError: a and b differ in length, are empty, or hold anything but 0 and 1.

    >>> mcnemar([1, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1])
    McNemar(only_a=1, only_b=5, p_value=0.21875)
    """
    differences = _differences(a, b)
    if not set(np.unique([a, b])) <= {0, 1}:
        raise ValueError("McNemar's test needs scores of 1 (correct) or 0 (wrong): for shares use paired_bootstrap.")
    only_a, only_b = int((differences < 0).sum()), int((differences > 0).sum())
    n = only_a + only_b
    tail = sum(math.comb(n, i) for i in range(min(only_a, only_b) + 1))
    return McNemar(only_a, only_b, min(1.0, 2 * tail / 2**n))


def _differences(a: Sequence[float], b: Sequence[float]) -> np.ndarray:
    a, b = _checked(a, "a"), _checked(b, "b")
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} scores and b has {len(b)}: score the same questions in both.")
    return b - a
