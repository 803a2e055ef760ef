"""Every figure of the workshop, drawn from run directories and evaluations.

Importing this module sets the workshop's matplotlib style. Each function returns the Figure (the last expression of a
notebook cell shows it) and saves it where `path` is given. A method has the same colour in all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..evaluation import Evaluation
from ..runs import RunDirectory

# Okabe and Ito's colours, which colour-blind people can tell apart. The first name found in a label decides.
METHOD_COLOURS = {
    "random": "#D55E00",
    "extra sft": "#CC79A7",
    "ppo": "#009E73",
    "grpo": "#0072B2",
    "sft": "#E69F00",
    "base": "#7F7F7F",
    "healthy": "#7F7F7F",
}
# For everything that is no method (Paul Tol's "muted" scheme).
OTHER_COLOURS = ["#332288", "#44AA99", "#AA4499", "#999933", "#882255", "#88CCEE", "#117733"]
INK = "#222222"

plt.rcParams.update({
    "figure.dpi": 100,
    "savefig.dpi": 150,
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.12,
    "figure.constrained_layout.w_pad": 0.12,
    "font.size": 15,
    "axes.titlesize": 17,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelsize": 14,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": "#E3E3E3",
    "xtick.labelsize": 14,
    "ytick.labelsize": 14,
    "lines.linewidth": 3,
    "lines.solid_capstyle": "round",
})

# metric in metrics.csv -> title, unit of the axis
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
    "clip_ratio/region_mean": ("Clipped ratios", "% of tokens"),
    "explained_variance": ("What the critic explains", "explained variance"),
    "explained_variance/lambda_1": ("… of what really came", "explained variance"),
    "value_loss": ("Loss of the critic", "squared error / 2"),
}
PERCENT = {"accuracy", "frac_reward_zero_std", "completions/clipped_ratio", "clip_ratio/region_mean"}

Runs = RunDirectory | Mapping[str, RunDirectory | Sequence[RunDirectory]]


def colours(labels: Sequence[str]) -> list[str]:
    """The colour of each label: its method's, or one of the others."""
    spare = itertools.cycle(OTHER_COLOURS)
    return [next((c for m, c in METHOD_COLOURS.items() if m in label.lower()), None) or next(spare) for label in labels]


def _finish(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    plt.close(figure)  # or a notebook would show it twice
    return figure


def _label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]], gap: float) -> None:
    """Write labels right of the axes at heights (y, label, colour), moved apart by at least `gap` (axes share)."""
    low, high = ax.get_ylim()
    heights = [(y - low) / (high - low) for y, _, _ in ends]
    order = np.argsort(heights)
    for below, above in zip(order, order[1:], strict=False):
        heights[above] = max(heights[above], heights[below] + gap)
    overshoot = max(0.0, heights[order[-1]] - 1.0)
    for height, (_, label, colour) in zip(heights, ends, strict=True):
        ax.text(1.02, height - overshoot, label, transform=ax.transAxes, color=colour, va="center", fontweight="bold")


def _groups(runs: Runs) -> dict[str, list[pd.DataFrame]]:
    """Metrics of the runs (the seeds) behind each label."""
    if isinstance(runs, RunDirectory):
        runs = {runs.path.name.upper(): runs}
    return {
        label: [run.metrics() for run in ([group] if isinstance(group, RunDirectory) else group)]
        for label, group in runs.items()
    }


def _smooth(values: pd.Series) -> pd.Series:
    """Centred moving average over about a tenth of the points."""
    return values.rolling(len(values) // 20 * 2 + 1, min_periods=1, center=True).mean()


def _tidy_axes(ax: Axes, x: str = "step") -> None:
    ax.margins(x=0.01)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=x == "step", steps=[1, 2, 5, 10]))
    low, high = ax.get_ylim()
    if ax.dataLim.y0 >= 0:  # from zero, so that heights can be compared
        ax.set_ylim(0, high)


def _draw_metric(
    ax: Axes, groups: dict[str, list[pd.DataFrame]], metric: str, x: str, label_gap: float | None = None
) -> None:
    """Thin lines for the single runs, a thick smoothed one for their mean; labels at their ends if `label_gap`."""
    ends = []
    for (label, frames), colour in zip(groups.items(), colours(list(groups)), strict=True):
        frames = [frame.assign(minutes=frame["seconds"] / 60).set_index("step", drop=False) for frame in frames]
        frames = [frame[frame[metric].notna()] for frame in frames if metric in frame and frame[metric].notna().any()]
        if not frames:
            continue
        for frame in frames:
            ax.plot(frame[x], frame[metric], color=colour, linewidth=1.2, alpha=0.4)
        together = pd.concat([frame[[x, metric]] for frame in frames], keys=range(len(frames)))
        mean = together.groupby(level="step").mean()[together.groupby(level="step").size() == len(frames)]
        smooth = _smooth(mean[metric])
        ax.plot(mean[x], smooth, color=colour)
        ends.append((smooth.iloc[-1], label, colour))
    title, unit = METRICS.get(metric, (metric, ""))
    ax.set(title=title, ylabel=unit)
    _tidy_axes(ax, x)
    if metric in PERCENT:
        ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))  # 2.5% would be labelled 2
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
    if label_gap and len(groups) > 1:
        _label_ends(ax, ends, label_gap)


def _x_label(groups: dict[str, list[pd.DataFrame]], x: str) -> str:
    seeds = max(len(frames) for frames in groups.values())
    lines = f"thin: one seed, thick: mean of {seeds}" if seeds > 1 else "thin: as logged, thick: smoothed"
    return f"{'training step' if x == 'step' else 'minutes of training'}   ({lines})"


def plot_training(
    runs: Runs,
    path: str | Path | None = None,
    metrics: Sequence[str] = ("reward", "accuracy", "completions/mean_length", "attempts"),
    x: str = "step",
) -> Figure:
    """The course of reinforcement learning: one panel per metric (those of `metrics` that were logged).

    Args:
        runs: a run directory, or {label: run directory or list of them (seeds)} to compare methods.
        x: "step" or "minutes".
    """
    groups = _groups(runs)
    metrics = [m for m in metrics if any(m in frame for frames in groups.values() for frame in frames)]
    columns = min(2, len(metrics))
    rows = -(-len(metrics) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(6.4 * columns, 3.9 * rows), squeeze=False)
    for index, (ax, metric) in enumerate(zip(axes.flat, metrics, strict=False)):
        in_last_column = index % columns == columns - 1
        _draw_metric(ax, groups, metric, x, label_gap=0.11 if in_last_column else None)
    for ax in axes.flat[len(metrics):]:
        ax.set_visible(False)
    figure.supxlabel(_x_label(groups, x), fontsize=14, color=INK)
    return _finish(figure, path)


def plot_metric(runs: Runs, metric: str, path: str | Path | None = None, x: str = "step") -> Figure:
    """One metric of metrics.csv over the course of training, for one run or {label: run or list of runs}."""
    groups = _groups(runs)
    figure, ax = plt.subplots(figsize=(9, 5))
    _draw_metric(ax, groups, metric, x, label_gap=0.075)
    ax.set_xlabel(_x_label(groups, x))
    return _finish(figure, path)


def plot_sft(run: RunDirectory, path: str | Path | None = None) -> Figure:
    """The loss of supervised fine-tuning on the demonstrations."""
    return plot_metric({"SFT": run}, "loss", path)


def plot_reward_components(run: RunDirectory, path: str | Path | None = None) -> Figure:
    """What each reward function contributes to the reward: its mean times its weight. They add up to the total."""
    frame = run.metrics()
    weights = run.config().rewards
    figure, ax = plt.subplots(figsize=(10, 5.5))
    series = {"total": frame["reward"]}
    for name, weight in weights.items():
        label = f"{name.removesuffix('_reward').replace('_', ' ')} × {weight:g}"
        series[label] = weight * frame[f"rewards/{name}/mean"]
    _draw_series(ax, frame["step"], series, [INK, *OTHER_COLOURS], label_gap=0.075)
    ax.set(title="Where the reward comes from", ylabel="mean per response", xlabel="training step")
    return _finish(figure, path)


def _draw_series(
    ax: Axes, steps: pd.Series, series: Mapping[str, pd.Series], colours: Sequence[str], label_gap: float
) -> None:
    """Several series of one run, each a thin line and a thick smoothed one with its label at the end."""
    ends = []
    for (label, values), colour in zip(series.items(), colours, strict=False):
        smooth = _smooth(values)
        ax.plot(steps, values, color=colour, linewidth=1.2, alpha=0.4)
        ax.plot(steps, smooth, color=colour)
        ends.append((smooth.iloc[-1], label, colour))
    _tidy_axes(ax)
    _label_ends(ax, ends, label_gap)


def _lift_from_axis(ax: Axes) -> None:
    """Leave room below 0, so that a curve that stays there can be seen."""
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -0.03 * high), high)


# The panels of a check-up, row by row; None is that of the single reward functions.
CHECKUP = ("reward", "accuracy", None, "completions/mean_length", "completions/clipped_ratio", "entropy",
           "kl", "grad_norm", "frac_reward_zero_std")


def plot_checkup(run: RunDirectory, healthy: RunDirectory, path: str | Path | None = None) -> Figure:
    """The nine curves to read when a run of GRPO looks wrong, next to those of a healthy run (grey)."""
    frame = run.metrics()
    groups = _groups({"healthy": healthy, f"run {run.path.name}": run})
    figure, axes = plt.subplots(3, 3, figsize=(15, 10.5))
    for ax, metric in zip(axes.flat, CHECKUP, strict=True):
        if metric is not None:
            _draw_metric(ax, groups, metric, "step")
            _lift_from_axis(ax)
            continue
        functions = [name for name in frame if name.startswith("rewards/") and name.endswith("/mean")]
        labels = [name.split("/")[1].removesuffix("_reward") for name in functions]
        series = {label: frame[name] for label, name in zip(labels, functions, strict=True)}
        _draw_series(ax, frame["step"], series, OTHER_COLOURS[1:], label_gap=0.13)
        _lift_from_axis(ax)
        ax.set(title="Each reward function", ylabel="mean per response")
    figure.suptitle(f"Run {run.path.name}   (grey: healthy)", x=0.01, ha="left", fontweight="bold", color=INK)
    figure.supxlabel(_x_label(groups, "step"), fontsize=14, color=INK)
    return _finish(figure, path)


def plot_side_by_side(
    runs: Mapping[str, RunDirectory], healthy: RunDirectory, metric: str, path: str | Path | None = None
) -> Figure:
    """One metric of several runs, a panel each on the same axes, next to that of a healthy run (grey)."""
    columns = 4
    rows = -(-len(runs) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(15, 3.6 * rows), sharex=True, sharey=True, squeeze=False)
    for ax, (label, run) in zip(axes.flat, runs.items(), strict=False):
        _draw_metric(ax, _groups({"healthy": healthy, label: run}), metric, "step")
        ax.set(title=label, ylabel="")
    top = max(ax.dataLim.y1 for ax in axes.flat[:len(runs)])
    axes[0, 0].set_ylim(-0.03 * top, 1.03 * top)  # of all panels, with room for a curve that stays at 0
    for ax in axes.flat[len(runs):]:
        ax.set_visible(False)
    title, unit = METRICS[metric]
    figure.suptitle(f"{title}, {unit}   (grey: healthy)", x=0.01, ha="left", fontweight="bold", color=INK)
    figure.supxlabel("training step", fontsize=14, color=INK)
    return _finish(figure, path)


def plot_accuracy_bars(evaluations: Mapping[str, Evaluation], path: str | Path | None = None) -> Figure:
    """Accuracy of each model with its 95% interval: strict (filled) and lenient (outlined, the format forgiven)."""
    figure, ax = plt.subplots(figsize=(max(8.0, 2.2 * len(evaluations) + 1.5), 5.5))
    for index, (label, colour) in enumerate(zip(evaluations, colours(list(evaluations)), strict=True)):
        evaluation = evaluations[label]
        for offset, value, (low, high), fill in (
            (-0.2, evaluation.accuracy, evaluation.accuracy_interval, colour),
            (0.2, evaluation.accuracy_lenient, evaluation.accuracy_lenient_interval, "white"),
        ):
            ax.bar(index + offset, value, 0.36, color=fill, edgecolor=colour, linewidth=2.5)
            ax.vlines(index + offset, low, high, color=INK, linewidth=2)
            ax.annotate(f"{value:.0%}", (index + offset, high), xytext=(0, 5), textcoords="offset points",
                        ha="center", va="bottom", fontweight="bold")
    ax.set(title="Test accuracy: strict (filled), format forgiven (outlined)", ylabel="% of responses correct")
    ax.set_xticks(range(len(evaluations)), list(evaluations))
    ax.tick_params(axis="x", length=0, labelsize=15)
    highest = max(max(e.accuracy_interval[1], e.accuracy_lenient_interval[1]) for e in evaluations.values())
    ax.set_ylim(0, max(0.2, min(1.09, 1.15 * highest)))
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
    samples = {e.num_samples for e in evaluations.values()}
    questions = {len(e.examples) for e in evaluations.values()}
    if len(samples) == len(questions) == 1:
        ax.set_xlabel(f"{questions.pop()} questions × {samples.pop()} samples, 95% intervals", labelpad=10)
    return _finish(figure, path)


def plot_pass_at_k(evaluations: Mapping[str, Evaluation], path: str | Path | None = None) -> Figure:
    """pass@k over k with 95% bands. Does the trained model solve more problems, or the same ones more reliably?"""
    figure, ax = plt.subplots(figsize=(9, 5.5))
    ends = []
    for (label, evaluation), colour in zip(evaluations.items(), colours(list(evaluations)), strict=True):
        values = list(evaluation.pass_at.values())
        low, high = zip(*evaluation.pass_at_intervals.values(), strict=True)
        ax.fill_between(evaluation.ks, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(evaluation.ks, values, color=colour, marker="o", markersize=8)
        ends.append((values[-1], label, colour))
    ks = max((evaluation.ks for evaluation in evaluations.values()), key=len)
    ax.set_xscale("log", base=2)
    ax.set_xticks(ks, [str(k) for k in ks])
    ax.minorticks_off()
    ax.set(title="At least one of k responses is right (pass@k)", xlabel="k, responses per question")
    ax.set_ylabel("% of questions")
    ax.set_ylim(0, 1)
    ax.margins(x=0.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
    _label_ends(ax, ends, gap=0.075)
    return _finish(figure, path)


def plot_attempts(
    evaluations: Mapping[str, Evaluation], path: str | Path | None = None, name: str = "attempts"
) -> Figure:
    """How often a response has 0, 1, 2, … attempts, one panel per model; the darker part is correct.

    Args:
        name: "attempts", or "num_tokens" for the length of the responses.
    """
    values = {label: evaluation.scores(name).ravel() for label, evaluation in evaluations.items()}
    largest = max(v.max() for v in values.values())
    width = 1 if name == "attempts" else max(1, round(largest / 30))
    bins = np.arange(-0.5, largest + width, width)
    figure, axes = plt.subplots(
        len(values), 1, figsize=(9, 2.6 * len(values) + 0.8), sharex=True, sharey=True, squeeze=False
    )
    for ax, (label, counts), colour in zip(axes.flat, values.items(), colours(list(values)), strict=True):
        right = evaluations[label].scores().ravel() > 0
        weight = np.full(len(counts), 1 / len(counts))
        ax.hist(counts, bins, weights=weight, color=colour, alpha=0.35, rwidth=0.9)
        ax.hist(counts[right], bins, weights=weight[right], color=colour, rwidth=0.9)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
        ax.text(
            0.99, 0.92, f"{label}: mean {counts.mean():.1f}, {right.mean():.0%} correct",
            transform=ax.transAxes, ha="right", va="top", color=colour, fontweight="bold",
        )
    what = "Attempts" if name == "attempts" else "Tokens"
    axes[0, 0].set_title(f"{what} per response (dark: the correct ones)")
    axes[-1, 0].set_xlabel(f"{what.lower()} per response")
    axes[-1, 0].xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10]))
    figure.supylabel("% of responses", fontsize=14, color=INK)
    return _finish(figure, path)


def plot_problem_accuracy(evaluation: Evaluation, path: str | Path | None = None) -> Figure:
    """How many questions are never, sometimes and always answered right: the histogram behind one accuracy."""
    figure, ax = plt.subplots(figsize=(9, 5))
    n = evaluation.num_samples
    right = np.round(evaluation.per_problem * n).astype(int)
    share = np.bincount(right, minlength=n + 1) / len(right)
    ax.bar(range(n + 1), share, 0.8, color=OTHER_COLOURS[0])
    ax.axvline(right.mean(), color=INK, linestyle="--", linewidth=2)
    ax.annotate(f" mean {right.mean() / n:.0%}", (right.mean(), 1.0), xycoords=("data", "axes fraction"), va="top")
    ax.set_xticks(range(n + 1))
    ax.set(title="Are they the same questions every time?", ylabel="% of questions",
           xlabel=f"right answers among {n} to the same question")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
    return _finish(figure, path)


def plot_log(values: Mapping[str, Sequence[float]], path: str | Path | None = None) -> Figure:
    """Metrics that were read from a job's log, one panel each, in the order in which the log has them.

    Args:
        values: {"grpo:reward": [0.12, 0.19, ...]}, by the name of the metric definition, STAGE:METRIC.
    """
    rows = -(-len(values) // 2)
    figure, axes = plt.subplots(rows, 2, figsize=(12.8, 3.9 * rows), squeeze=False)
    for ax, (name, series) in zip(axes.flat, values.items(), strict=False):
        stage, metric = name.split(":")
        title, unit = METRICS.get(metric, (metric, ""))
        ax.plot(range(1, len(series) + 1), series, color=colours([stage])[0], marker="o", markersize=5)
        ax.set(title=title, ylabel=unit)
        if metric in PERCENT:
            ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
        _tidy_axes(ax)
    for ax in axes.flat[len(values):]:
        ax.set_visible(False)
    figure.supxlabel("line of the log with this metric", fontsize=14, color=INK)
    return _finish(figure, path)


def plot_advantages(
    rewards: Sequence[float], advantages: Sequence[float], path: str | Path | None = None
) -> Figure:
    """One worked group: the rewards of its completions with their mean, and the advantages that follow from them."""
    rewards, advantages = np.asarray(rewards, dtype=float), np.asarray(advantages, dtype=float)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8))
    x = np.arange(1, len(rewards) + 1)
    left.bar(x, rewards, 0.7, color=METHOD_COLOURS["base"])
    left.axhline(rewards.mean(), color=INK, linestyle="--", linewidth=2)
    at_right = left.get_yaxis_transform()
    left.text(1.02, rewards.mean(), f"mean\n{rewards.mean():.2f}", transform=at_right, va="center", color=INK)
    left.set(title="Rewards of one group", ylabel="reward", xlabel="completion")
    right.bar(x, advantages, 0.7, color=np.where(advantages >= 0, OTHER_COLOURS[1], OTHER_COLOURS[2]))
    right.axhline(0, color=INK, linewidth=1.5)
    right.set(title="Their advantages", ylabel="advantage", xlabel="completion")
    for ax, heights in ((left, rewards), (right, advantages)):
        ax.margins(y=0.15)
        ax.set_xticks(x)
        for position, height in zip(x, heights, strict=True):
            up = height >= 0
            ax.annotate(
                f"{height:.2f}".replace("-", "−"), (position, height), xytext=(0, 4 if up else -4),
                textcoords="offset points", ha="center", va="bottom" if up else "top", fontsize=13,
            )
    return _finish(figure, path)


def plot_rates(evaluations: Mapping[str, Evaluation], path: str | Path | None = None) -> Figure:
    """What a warm-up teaches, model after model: to write the format, to be right once in k responses, to be right."""
    k = min(evaluation.ks[-1] for evaluation in evaluations.values())
    rates = {
        "in the format": [e.format_rate for e in evaluations.values()],
        f"right in at least\none of {k} responses": [e.pass_at[k] for e in evaluations.values()],
        "right": [e.accuracy for e in evaluations.values()],
    }
    figure, ax = plt.subplots(figsize=(9, 5.5))
    ends = []
    for (label, values), colour in zip(rates.items(), OTHER_COLOURS, strict=False):
        ax.plot(range(len(values)), values, color=colour, marker="o", markersize=8)
        ends.append((values[-1], label, colour))
    ax.set_xticks(range(len(evaluations)), list(evaluations))
    ax.set(title="What the warm-up teaches", ylabel="% of responses (or of questions)")
    ax.set_ylim(-0.02, 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
    _label_ends(ax, ends, gap=0.14)
    return _finish(figure, path)


def plot_against_tokens(curves: Sequence[Mapping], path: str | Path | None = None) -> Figure:
    """Accuracy in training against the tokens generated so far, of several methods and seeds.

    Args:
        curves: one mapping a run, as scripts/measure_learning.py writes them: model, tokens and accuracy, one value a
            rollout each. Runs of one model share a colour; the thick line is one seed's moving average.
    """
    labels = list(dict.fromkeys(curve["model"] for curve in curves))
    figure, ax = plt.subplots(figsize=(9, 5))
    ends = []
    for label, colour in zip(labels, colours(labels), strict=True):
        group = [curve for curve in curves if curve["model"] == label]
        for curve in group:
            thousands = np.array(curve["tokens"]) / 1000
            ax.plot(thousands, 100 * np.array(curve["accuracy"]), color=colour, linewidth=1, alpha=0.3)
            ax.plot(thousands, 100 * _smooth(pd.Series(curve["accuracy"])), color=colour)
        ends.append((100 * np.mean([np.mean(curve["accuracy"][-3:]) for curve in group]), label, colour))
    ax.set(title="Accuracy on training problems", xlabel="thousand tokens generated", ylabel="% of responses correct")
    _tidy_axes(ax, "tokens")
    _label_ends(ax, ends, gap=0.08)
    return _finish(figure, path)


def plot_token_values(
    tokens: Sequence[Sequence[str]],
    values: Mapping[str, Sequence[Sequence[float]]],
    titles: Sequence[str],
    path: str | Path | None = None,
) -> Figure:
    """What a critic expects before each token of some completions, one panel a completion, one line a critic.

    Args:
        tokens: of each completion, as text.
        values: {"after training": for each completion the critic's value before each of its tokens}.
    """
    figure, axes = plt.subplots(len(tokens), 1, figsize=(14, 3.9 * len(tokens)), sharey=True, squeeze=False)
    shades = ["#7F7F7F", METHOD_COLOURS["ppo"]] if len(values) == 2 else OTHER_COLOURS
    for index, (ax, words, title) in enumerate(zip(axes.flat, tokens, titles, strict=True)):
        for (label, lines), colour in zip(values.items(), shades, strict=False):
            ax.plot(lines[index], color=colour, label=label, drawstyle="steps-post")
        ax.set_title(title)
        ax.set_xticks(range(len(words)), [word.strip() or "⏎" for word in words], rotation=90, fontsize=11)
        ax.set_ylabel("expected return")
        ax.margins(x=0.01)
    axes[0, 0].legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(values))
    axes[-1, 0].set_xlabel("the value stands at the token that comes next")
    return _finish(figure, path)


def plot_story(runs: Runs, evaluations: Mapping[str, Evaluation], path: str | Path | None = None) -> Figure:
    """The workshop in one figure: accuracy and attempts while training, and test accuracy with 95% intervals."""
    groups = _groups(runs)
    figure, axes = plt.subplots(1, 3, figsize=(17, 5), width_ratios=[1, 1, 1.15])
    for ax, metric, title in zip(axes, ("accuracy", "attempts"), ("Right answers in training", "Attempts a response"),
                                 strict=False):
        _draw_metric(ax, groups, metric, "minutes", label_gap=0.09 if metric == "attempts" else None)  # steps differ
        ax.set(title=title, xlabel="minutes of training")
    labels = list(evaluations)
    ax = axes[2]
    for index, (label, colour) in enumerate(zip(labels, colours(labels), strict=True)):
        accuracy, (low, high) = evaluations[label].accuracy, evaluations[label].accuracy_interval
        ax.bar(index, accuracy, 0.7, color=colour)
        ax.vlines(index, low, high, color=INK, linewidth=2)
        ax.text(index, high + 0.015, f"{accuracy:.0%}", ha="center", va="bottom", fontweight="bold")
    ax.set_xticks(range(len(labels)), labels)
    ax.tick_params(axis="x", length=0)
    ax.set(title="Test problems it has never seen", ylabel="% of responses correct")
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
    ax.set_ylim(0, min(1.0, max(e.accuracy_interval[1] for e in evaluations.values())) + 0.1)
    return _finish(figure, path)
