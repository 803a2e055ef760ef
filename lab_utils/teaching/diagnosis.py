"""What can go wrong in a GRPO run, and how each problem shows in its metrics next to those of a healthy run.

Notebook 09's self-check reads the recorded runs with this. The thresholds fit those runs: each has one problem, or is
only noisy, and has the same seed as the healthy run. On your own runs the curves and your eyes decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from ..runs import RunDirectory

SPAN = 4  # steps at the beginning and at the end of a run that are averaged


@dataclass(frozen=True)
class Problem:
    """One problem: what it looks like, in which metrics, and a test of a run's metrics for it."""

    shows: str
    columns: tuple[str, ...]
    is_seen: Callable[[pd.DataFrame, pd.DataFrame], bool]  # (metrics, metrics of the healthy run)


def begin(metrics: pd.DataFrame, column: str) -> float:
    """Return the mean of a column over the first steps."""
    return float(metrics[column].head(SPAN).mean())


def end(metrics: pd.DataFrame, column: str) -> float:
    """Return the mean of a column over the last steps."""
    return float(metrics[column].tail(SPAN).mean())


def change(metrics: pd.DataFrame, column: str) -> float:
    """Return by how much a column has risen from the first steps to the last."""
    return end(metrics, column) - begin(metrics, column)


def scatter(metrics: pd.DataFrame, column: str) -> float:
    """Return the standard deviation of a column's noise, estimated from the differences between neighboring steps."""
    return float((metrics[column].diff() ** 2).mean() / 2) ** 0.5


def reward_means(metrics: pd.DataFrame) -> list[str]:
    return [name for name in metrics if name.startswith("rewards/") and name.endswith("/mean")]


def _has_signal(metrics: pd.DataFrame) -> bool:
    return metrics["frac_reward_zero_std"].mean() < 0.5


PROBLEMS = {
    "completions cut off": Problem(
        "many responses are cut off from the first step, and the longest is as long in nearly every step",
        ("completions/clipped_ratio", "completions/max_length"),
        lambda m, healthy: m["completions/clipped_ratio"].iloc[0] > 0.1
        and m["completions/max_length"].eq(m["completions/max_length"].max()).mean() > 0.9,
    ),
    "dead reward function": Problem(
        "one reward function pays nothing in any step, although there are correct answers",
        ("accuracy",),
        lambda m, healthy: m["accuracy"].max() > 0 and any(m[name].max() == 0 for name in reward_means(m)),
    ),
    "hacked reward": Problem(
        "the reward rises, but the accuracy does not",
        ("reward", "accuracy"),
        lambda m, healthy: change(m, "reward") > 0.1 and change(m, "accuracy") < 0.02,
    ),
    "KL coefficient too high": Problem(
        "the groups have a signal, and the KL leaves 0 but stays far below that of the healthy run "
        "although the gradient norm is higher",
        ("kl", "grad_norm"),
        lambda m, healthy: _has_signal(m)
        and healthy["kl"].max() / 100 < end(m, "kl") < end(healthy, "kl") / 5
        and end(m, "grad_norm") > 1.5 * end(healthy, "grad_norm"),
    ),
    "learning rate too high": Problem(
        "KL and gradient norm are several times as high as in the healthy run, and the model loses what it had learned",
        ("kl", "grad_norm", "accuracy"),
        lambda m, healthy: m["kl"].max() > 3 * healthy["kl"].max() and end(m, "accuracy") < m["accuracy"].iloc[0] / 2,
    ),
    "learning rate too low": Problem(
        "the groups have a signal, but the KL stays at 0: the policy does not move",
        ("frac_reward_zero_std", "kl"),
        lambda m, healthy: _has_signal(m) and m["kl"].max() < healthy["kl"].max() / 100,
    ),
    "nothing to reward": Problem(
        "most groups have no signal, and no response is correct",
        ("frac_reward_zero_std", "accuracy"),
        lambda m, healthy: not _has_signal(m) and m["accuracy"].max() < 0.02,
    ),
    "only noise": Problem(
        "accuracy rises as in the healthy run and every reward function pays, but the curves jump much more",
        ("accuracy", "reward"),
        lambda m, healthy: change(m, "accuracy") > change(healthy, "accuracy") / 2
        and all(m[name].max() > 0 for name in reward_means(m))
        and scatter(m, "accuracy") > 1.4 * scatter(healthy, "accuracy"),
    ),
    "problems too easy": Problem(
        "most groups have no signal, and nearly every response is correct from the first step",
        ("frac_reward_zero_std", "accuracy"),
        lambda m, healthy: not _has_signal(m) and begin(m, "accuracy") > 0.85,
    ),
    "random reward": Problem(
        "the groups have a signal, but correct responses earn no more than wrong ones (read some), "
        "so the reward stays flat and does not follow the accuracy",
        ("frac_reward_zero_std", "reward", "accuracy"),
        lambda m, healthy: _has_signal(m)
        and abs(m["reward"].corr(m["accuracy"])) < 0.3
        and abs(change(m, "reward")) < 0.1,
    ),
    "sampler not updated": Problem(
        "the KL is several times as high as in the healthy run, but neither the samples nor their rewards change",
        ("kl", "completions/mean_length", "reward"),
        lambda m, healthy: m["kl"].max() > 3 * healthy["kl"].max()
        and abs(change(m, "completions/mean_length")) < 0.05 * begin(m, "completions/mean_length")
        and abs(change(m, "reward")) < 0.1,
    ),
}


def what_was_changed(run: RunDirectory, healthy: RunDirectory) -> str:
    """Return how a recorded run differs from the healthy one: in its settings, and in code of its own."""
    here, there = (pd.json_normalize(directory.config().model_dump()).iloc[0] for directory in (run, healthy))
    lines = [f"{key}: {there[key]} → {here[key]}" for key in here.index if here[key] != there[key]]
    own_code = run.path / "own_code.txt"
    return "\n".join([*lines, *([own_code.read_text(encoding="utf-8").strip()] if own_code.exists() else [])])
