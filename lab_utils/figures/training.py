"""Figures of training: the metrics of run directories over the steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..config import short_name
from ..runs import RunDirectory
from .style import INK, OTHER_COLORS, TRAILING, colors, finish, label_ends, panels, percent_axis, smooth, tidy_axes

# metric -> title, unit of the axis
METRICS = {
    "reward": ("Reward", "mean per response"),
    "accuracy": ("Accuracy", "% of responses correct"),
    "completions/mean_length": ("Response length", "tokens"),
    "attempts": ("Attempts", "per response"),
    "rewards/short_reward/mean": ("Bonus for short responses", "mean per response"),
    "loss": ("Loss", "nats per token"),
    "entropy": ("Entropy", "nats per token"),
    "kl": ("KL to the reference", "nats per token"),
    "grad_norm": ("Gradient norm", ""),
    "frac_reward_zero_std": ("Groups without a signal", "% with equal rewards"),
    "completions/clipped_ratio": ("Responses cut off", "% of responses"),
    "explained_variance": ("The critic on its own targets", "explained variance"),
    "explained_variance/lambda_1": ("The critic on actual returns", "explained variance"),
    "value_loss": ("Critic loss", "squared error / 2"),
}
PERCENT = {"accuracy", "frac_reward_zero_std", "completions/clipped_ratio"}

Runs = Mapping[str, RunDirectory | Sequence[RunDirectory]]  # by label; several runs are the seeds of one method
Frames = dict[str, list[pd.DataFrame]]


def metrics_of(runs: Runs) -> Frames:
    return {
        label: [run.metrics() for run in ([group] if isinstance(group, RunDirectory) else group)]
        for label, group in runs.items()
    }


def draw_metric(ax: Axes, groups: Frames, metric: str, x: str = "step", label_gap: float | None = None) -> None:
    """Draw a thin line per run and a thick smoothed one for their mean; with `label_gap`, labels at their ends.

    In a panel of accuracy, points are the probe with its 95% interval: the same held-out problems at every point.
    """
    ends = []
    for (label, frames), color in zip(groups.items(), colors(list(groups)), strict=True):
        frames = [frame.assign(minutes=frame["seconds"] / 60).set_index("step", drop=False) for frame in frames]
        frames = [frame[frame[metric].notna()] for frame in frames if metric in frame and frame[metric].notna().any()]
        if not frames:
            continue
        for frame in frames:
            ax.plot(frame[x], frame[metric], color=color, linewidth=1.2, alpha=0.4)
        together = pd.concat([frame[[x, metric]] for frame in frames], keys=range(len(frames)))
        mean = together.groupby(level="step").mean()[together.groupby(level="step").size() == len(frames)]
        thick = smooth(mean[metric])
        ax.plot(mean[x], thick, color=color)
        if metric == "accuracy" and "probe/accuracy" in frames[0]:
            names = [x, "probe/accuracy", "probe/stderr"]  # all seeds are asked the same problems: errors do not shrink
            probe = pd.concat(frames).reindex(columns=names).groupby(level="step").mean()
            probe = probe[probe["probe/accuracy"].notna()]
            ax.errorbar(probe[x], probe["probe/accuracy"], 1.96 * probe["probe/stderr"], color=color, fmt="o",
                        elinewidth=1.5)
        ends.append((thick.iloc[-1], label, color))
    title, unit = METRICS.get(metric, (metric, ""))
    ax.set(title=title, ylabel=unit)
    tidy_axes(ax, whole_x=x == "step")
    if metric in PERCENT:
        ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))  # 2.5% would be labeled 2
        percent_axis(ax)
    if label_gap and len(groups) > 1:
        label_ends(ax, ends, label_gap)


def draw_functions(
    ax: Axes, steps: pd.Series, series: Mapping[str, pd.Series], shades: Sequence[str], label_gap: float
) -> None:
    """Draw several series of one run, each a thin line and a thick smoothed one with its label at the end."""
    ends = []
    for (label, values), color in zip(series.items(), shades, strict=False):
        thick = smooth(values)
        ax.plot(steps, values, color=color, linewidth=1.2, alpha=0.4)
        ax.plot(steps, thick, color=color)
        ends.append((thick.iloc[-1], label, color))
    tidy_axes(ax)
    label_ends(ax, ends, label_gap)


def x_label(groups: Frames, x: str = "step", metrics: Sequence[str] = ("accuracy",)) -> str:
    """Return the label of the x axis, which also explains the lines, and the points if the accuracy is drawn."""
    seeds = max(len(frames) for frames in groups.values())
    thin, of = ("one seed", f"mean of {seeds} seeds, as a ") if seeds > 1 else ("as logged", "")
    lines = f"thin: {thin}, thick: {of}{TRAILING}"
    probes = [frame for frames in groups.values() for frame in frames if "probe/accuracy" in frame]
    probed = [frame["probe/problems"].max() for frame in probes if "probe/problems" in frame]
    if "accuracy" in metrics and probed:
        lines += f"\npoints: the same {max(probed):.0f} held-out problems, 95% interval"
    elif "accuracy" in metrics and probes:
        lines += "\npoints: the same held-out problems"
    return f"{'training step' if x == 'step' else 'minutes of training'}\n{lines}"


def plot_training(
    runs: Runs,
    path: str | Path | None = None,
    metrics: Sequence[str] = ("reward", "accuracy", "completions/mean_length", "attempts"),
    x: str = "step",
) -> Figure:
    """Draw one panel for each of `metrics` that was logged.

    Args:
        runs: {label: run directory, or a list of them (seeds)}.
        x: "step" or "minutes".
    """
    groups = metrics_of(runs)
    metrics = [m for m in metrics if any(m in frame for frames in groups.values() for frame in frames)]
    columns = min(2, len(metrics))
    figure, axes = panels(len(metrics), columns, 6.4, 3.9)
    for index, (ax, metric) in enumerate(zip(axes, metrics, strict=True)):
        in_last_column = index % columns == columns - 1
        draw_metric(ax, groups, metric, x, label_gap=0.11 if in_last_column else None)
    figure.supxlabel(x_label(groups, x, metrics), fontsize=14, color=INK)
    return finish(figure, path)


def plot_sft(run: RunDirectory, path: str | Path | None = None) -> Figure:
    """Draw the loss of supervised fine-tuning on the demonstrations."""
    groups = metrics_of({"SFT": run})
    figure, ax = plt.subplots(figsize=(9, 5))
    draw_metric(ax, groups, "loss")
    ax.set_xlabel(x_label(groups, metrics=["loss"]))
    return finish(figure, path)


def plot_reward_components(run: RunDirectory, path: str | Path | None = None) -> Figure:
    """Draw what each reward function contributes: its mean times its weight. The contributions add up to the total."""
    frame = run.metrics()
    figure, ax = plt.subplots(figsize=(10, 5.5))
    series = {"total": frame["reward"]}
    for name, weight in run.config().rewards.items():
        name = short_name(name)
        label = f"{name.removesuffix('_reward').replace('_', ' ')} × {weight:g}"
        series[label] = weight * frame[f"rewards/{name}/mean"]
    draw_functions(ax, frame["step"], series, [INK, *OTHER_COLORS], label_gap=0.075)
    ax.set(title="Where the reward comes from", ylabel="mean per response",
           xlabel=f"training step\nthin: as logged, thick: {TRAILING}")
    return finish(figure, path)


def plot_log(values: Mapping[str, Sequence[float]], path: str | Path | None = None) -> Figure:
    """Draw metrics that were read from a job's log, one panel each, in the order of the log.

    Args:
        values: {"grpo:reward": [0.12, 0.19, ...]}, by the name of the metric definition, STAGE:METRIC.
    """
    figure, axes = panels(len(values), 2, 6.4, 3.9)
    for ax, (name, series) in zip(axes, values.items(), strict=True):
        stage, metric = name.split(":")
        title, unit = METRICS.get(metric, (metric, ""))
        ax.plot(range(1, len(series) + 1), series, color=colors([stage])[0], marker="o", markersize=5)
        ax.set(title=title, ylabel=unit)
        if metric in PERCENT:
            percent_axis(ax)
        tidy_axes(ax)
    figure.supxlabel("entry in the log", fontsize=14, color=INK)
    return finish(figure, path)


def plot_against_tokens(curves: Sequence[Mapping], path: str | Path | None = None) -> Figure:
    """Draw accuracy in training against the tokens generated so far, for several methods and seeds.

    Args:
        curves: one mapping per run, as scripts/measure_learning.py writes them: model, tokens and accuracy, with one
            value per rollout. Runs of one model share a color; the thick line is one seed's trailing mean.
    """
    labels = list(dict.fromkeys(curve["model"] for curve in curves))
    figure, ax = plt.subplots(figsize=(9, 5))
    ends = []
    for label, color in zip(labels, colors(labels), strict=True):
        group = [curve for curve in curves if curve["model"] == label]
        for curve in group:
            thousands = np.array(curve["tokens"]) / 1000
            ax.plot(thousands, 100 * np.array(curve["accuracy"]), color=color, linewidth=1, alpha=0.3)
            ax.plot(thousands, 100 * smooth(pd.Series(curve["accuracy"])), color=color)
        ends.append((100 * np.mean([np.mean(curve["accuracy"][-3:]) for curve in group]), label, color))
    ax.set(title="Accuracy on training problems", ylabel="% of responses correct",
           xlabel=f"thousand tokens generated\nthin: one seed, thick: its {TRAILING}")
    tidy_axes(ax, whole_x=False)
    label_ends(ax, ends, gap=0.08)
    return finish(figure, path)
