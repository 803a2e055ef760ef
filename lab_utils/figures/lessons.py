"""Figures of one lesson each: the way (notebook 00), a loss mask (01), a group (05), runs (09), a critic (10)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..runs import RunDirectory
from .style import INK, METHOD_COLORS, OTHER_COLORS, finish, panels
from .training import METRICS, draw_functions, draw_metric, metrics_of, x_label

# The panels of the overview, row by row, in the order to read them; "rewards" is the one with each reward function.
OVERVIEW = ("reward", "accuracy", "rewards", "completions/mean_length", "completions/clipped_ratio", "entropy",
           "kl", "grad_norm", "frac_reward_zero_std")


def plot_advantages(
    rewards: Sequence[float], advantages: Sequence[float], path: str | Path | None = None
) -> Figure:
    """Draw one worked group: the rewards of its completions with their mean, and their advantages."""
    rewards, advantages = np.asarray(rewards, dtype=float), np.asarray(advantages, dtype=float)
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8))
    x = np.arange(1, len(rewards) + 1)
    left.bar(x, rewards, 0.7, color=METHOD_COLORS["base"])
    left.axhline(rewards.mean(), color=INK, linestyle="--", linewidth=2)
    at_right = left.get_yaxis_transform()
    left.text(1.02, rewards.mean(), f"mean\n{rewards.mean():.2f}", transform=at_right, va="center", color=INK)
    left.set(title="Rewards of one group", ylabel="reward", xlabel="completion")
    right.bar(x, advantages, 0.7, color=np.where(advantages >= 0, OTHER_COLORS[1], OTHER_COLORS[2]))
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
    return finish(figure, path)


def plot_token_values(
    tokens: Sequence[Sequence[str]],
    values: Mapping[str, Sequence[Sequence[float]]],
    titles: Sequence[str],
    path: str | Path | None = None,
) -> Figure:
    """Draw what a critic expects before each token of some completions: a panel per completion, a line per critic.

    Args:
        tokens: the tokens of each completion, as text.
        values: {"after training": for each completion the critic's value before each of its tokens}.
        titles: one per completion.
    """
    figure, axes = plt.subplots(len(tokens), 1, figsize=(14, 3.9 * len(tokens)), sharey=True, squeeze=False)
    shades = ["#7F7F7F", METHOD_COLORS["ppo"]] if len(values) == 2 else OTHER_COLORS
    for index, (ax, words, title) in enumerate(zip(axes.flat, tokens, titles, strict=True)):
        for (label, lines), color in zip(values.items(), shades, strict=False):
            ax.plot(lines[index], color=color, label=label, drawstyle="steps-post")
        ax.set_title(title)
        ax.set_xticks(range(len(words)), [word.strip() or "⏎" for word in words], rotation=90, fontsize=11)
        ax.set_ylabel("expected return")
        ax.margins(x=0.01)
    axes[0, 0].legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), ncols=len(values))
    axes[-1, 0].set_xlabel("each value is what the critic expects before the token below it")
    return finish(figure, path)


def plot_value_changes(changes: Mapping[str, Sequence[float]], path: str | Path | None = None) -> Figure:
    """Draw how each attempt changed a critic's expectation, by the attempt's verdict.

    Args:
        changes: {"yes": for each attempt with this verdict, the value after it minus the value when it began}.
    """
    figure, ax = plt.subplots(figsize=(11, 4.2))
    jitter = np.random.default_rng(0)
    for row, (found, color) in enumerate(zip(changes.values(), OTHER_COLORS[1:], strict=False)):
        heights = row + jitter.uniform(-0.28, 0.28, len(found))
        ax.plot(found, heights, color=color, marker=".", markersize=7, alpha=0.5, linestyle="none")
        if len(found) > 1:
            mean, margin = np.mean(found), 1.96 * np.std(found, ddof=1) / len(found) ** 0.5
            ax.errorbar(mean, row, xerr=margin, color=INK, marker="D", markersize=8, capsize=7, linewidth=2)
            ax.annotate(f"{mean:+.2f}".replace("-", "−"), (mean, row + 0.34), ha="center", va="bottom")
    ax.axvline(0, color=INK, linewidth=1.5)
    ax.set_yticks(range(len(changes)), [f"after {verdict!r}\n({len(found)})" for verdict, found in changes.items()])
    ax.set_ylim(-0.5, len(changes) - 0.3)
    ax.set(title="What a verdict does to the critic's expectation",
           xlabel="value after the attempt minus value before it   (a point per attempt; mean with 95% interval)")
    return finish(figure, path)


def draw_panel(ax: Axes, run: RunDirectory, healthy: RunDirectory, metric: str) -> None:
    """Draw one curve of OVERVIEW, next to that of a healthy run (grey)."""
    if metric == "rewards":
        frame = run.metrics()
        functions = [name for name in frame if name.startswith("rewards/") and name.endswith("/mean")]
        series = {name.split("/")[1].removesuffix("_reward"): frame[name] for name in functions}
        draw_functions(ax, frame["step"], series, OTHER_COLORS[1:], label_gap=0.13)
        ax.set(title="Each reward function", ylabel="mean per response")
    else:
        draw_metric(ax, metrics_of({"healthy": healthy, f"run {run.path.name}": run}), metric)
    low, high = ax.get_ylim()
    ax.set_ylim(min(low, -0.03 * high), high)  # room below 0, so that a curve that stays there can be seen


def plot_panel(run: RunDirectory, healthy: RunDirectory, metric: str, path: str | Path | None = None) -> Figure:
    """Draw one of the curves of OVERVIEW on its own: a run next to a healthy one (grey)."""
    figure, ax = plt.subplots(figsize=(9, 4.2))
    draw_panel(ax, run, healthy, metric)
    ax.set_title(f"Run {run.path.name}: {ax.get_title(loc='left')}   (grey: healthy)")
    ax.set_xlabel(x_label(metrics_of({"healthy": healthy, "run": run}), metrics=[metric]), fontsize=12)
    return finish(figure, path)


def plot_overview(run: RunDirectory, healthy: RunDirectory, path: str | Path | None = None) -> Figure:
    """Draw the nine curves to read when a GRPO run looks wrong, next to those of a healthy run (grey)."""
    figure, axes = plt.subplots(3, 3, figsize=(15, 10.5))
    for ax, metric in zip(axes.flat, OVERVIEW, strict=True):
        draw_panel(ax, run, healthy, metric)
    figure.suptitle(f"Run {run.path.name}   (grey: healthy)", x=0.01, ha="left", fontweight="bold", color=INK)
    figure.supxlabel(x_label(metrics_of({"healthy": healthy, "run": run})), fontsize=14, color=INK)
    return finish(figure, path)


def plot_side_by_side(
    runs: Mapping[str, RunDirectory], healthy: RunDirectory, metric: str, path: str | Path | None = None
) -> Figure:
    """Draw one metric of several runs, a panel each on the same axes, next to that of a healthy run (grey)."""
    figure, axes = panels(len(runs), 3, 5.0, 3.3, sharex=True, sharey=True)
    for ax, (label, run) in zip(axes, runs.items(), strict=True):
        draw_metric(ax, metrics_of({"healthy": healthy, label: run}), metric)
        ax.set(title=label, ylabel="")
    top = max(ax.dataLim.y1 for ax in axes)
    axes[0].set_ylim(-0.03 * top, 1.03 * top)  # of all panels, with room for a curve that stays at 0
    title, unit = METRICS[metric]
    figure.suptitle(f"{title}, {unit}   (grey: healthy)", x=0.01, ha="left", fontweight="bold", color=INK)
    figure.supxlabel(x_label(metrics_of({"healthy": healthy, **runs}), metrics=[metric]), fontsize=14, color=INK)
    return finish(figure, path)


# The way through the workshop: (x, y, text, color) of each box. The numbers are those of the notebooks.
WAY_BOXES = [
    (1.3, 4.9, "base model\n00", METHOD_COLORS["base"]),
    (5.1, 4.9, "SFT model\n03", METHOD_COLORS["sft"]),
    (9.1, 4.9, "GRPO model\n06", METHOD_COLORS["grpo"]),
    (12.7, 4.9, "your results\n13", INK),
    (1.3, 1.9, "problems as\nprompts\n01", INK),
    (4.3, 1.9, "a group of\nresponses\n05", INK),
    (7.1, 1.9, "rewards\n02, 07", INK),
    (9.8, 1.9, "advantages\n04, 05", INK),
    (12.7, 1.9, "update of\nthe model\n04, 05", INK),
]
# (from, to, text above) of each arrow between boxes, by index.
WAY_ARROWS = [(0, 1, "imitate\ndemonstrations"), (1, 2, "try and\nbe rewarded"), (2, 3, "measure\n08"),
              (4, 5, ""), (5, 6, ""), (6, 7, ""), (7, 8, "")]


def plot_pipeline(path: str | Path | None = None) -> Figure:
    """Draw the way through the workshop: the models above, the loop of reinforcement learning below."""
    figure, ax = plt.subplots(figsize=(14, 6))
    ax.set(xlim=(0, 14), ylim=(-0.5, 5.8))
    ax.axis("off")
    boxes = [ax.text(x, y, text, ha="center", va="center", fontweight="bold", color=INK,
                     bbox={"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": color, "linewidth": 3})
             for x, y, text, color in WAY_BOXES]
    arrow = {"arrowstyle": "-|>", "color": INK, "linewidth": 2, "mutation_scale": 22, "shrinkA": 2, "shrinkB": 2}
    for start, end, text in WAY_ARROWS:
        (x0, y, *_), (x1, *_) = WAY_BOXES[start], WAY_BOXES[end]
        between = {"patchA": boxes[start].get_bbox_patch(), "patchB": boxes[end].get_bbox_patch()}
        ax.annotate("", (x1, y), (x0, y), arrowprops=arrow | between)
        ax.text((x0 + x1) / 2, y + 0.15, text, ha="center", va="bottom", fontsize=13, color=INK)
    back = {"patchA": boxes[8].get_bbox_patch(), "patchB": boxes[4].get_bbox_patch(),
            "connectionstyle": "bar,angle=180,fraction=-0.1"}
    ax.annotate("", WAY_BOXES[4][:2], WAY_BOXES[8][:2], arrowprops=arrow | back)
    ax.text(7.0, 0.35, "the next step: the updated model answers new problems", ha="center", fontsize=13, color=INK)
    ax.text(0.4, -0.35, va="center", fontsize=13, color=INK,
            s="After 08: 09 finds faults · 10 adds a critic (PPO) · 11 trains in the cloud · 12 serves the model")
    ax.plot([7.1, 7.1, 0.3, 0.3], [4.6, 3.5, 3.5, 3.3], color=METHOD_COLORS["grpo"], linestyle="--", linewidth=2)
    ax.plot([7.1, 13.7, 13.7], [3.5, 3.5, 3.3], color=METHOD_COLORS["grpo"], linestyle="--", linewidth=2)
    ax.text(0.4, 3.15, "inside reinforcement learning", va="center", fontsize=13, color=METHOD_COLORS["grpo"])
    return finish(figure, path)


def plot_loss_mask(
    tokens: Sequence[str], labels: Sequence[int], path: str | Path | None = None, width: int = 108
) -> Figure:
    """Draw a chat token by token: grey tokens (label -100) are read, orange ones are learned."""
    places, x, y = [], 0.0, 0
    for token in tokens:
        if x + len(token) > width:
            x, y = 0.0, y + 1
        places.append((x, y))
        x += len(token) + 1.4
    figure, ax = plt.subplots(figsize=(13, 0.9 + 0.4 * (y + 1)))
    for (x, line), token, label in zip(places, tokens, labels, strict=True):
        paper, ink = ("#EEEEEE", "#555555") if label == -100 else (METHOD_COLORS["sft"], INK)
        ax.text(x, line, token, family="monospace", fontsize=13, color=ink, va="center",
                bbox={"pad": 3.5, "facecolor": paper, "edgecolor": "none"})
    ax.set(xlim=(-1, width), ylim=(y + 0.6, -0.6),
           title="Grey: the model reads it (label −100). Orange: the model learns to write it.")
    ax.axis("off")
    return finish(figure, path)
