"""Figures of evaluations: how often each model is correct, how sure that is, and what its responses look like."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..evaluation import Evaluation
from ..tasks import visible
from .style import INK, OTHER_COLORS, colors, finish, label_ends, panels, percent_axis
from .training import Runs, draw_metric, metrics_of, x_label


def plot_accuracy_bars(evaluations: Mapping[str, Evaluation], path: str | Path | None = None) -> Figure:
    """Draw each model's accuracy with its 95% interval: strict (filled) and lenient (outlined, the format forgiven)."""
    figure, ax = plt.subplots(figsize=(max(8.0, 2.2 * len(evaluations) + 1.5), 5.5))
    for index, (label, color) in enumerate(zip(evaluations, colors(list(evaluations)), strict=True)):
        evaluation = evaluations[label]
        for offset, value, (low, high), fill in (
            (-0.2, evaluation.accuracy, evaluation.accuracy_interval, color),
            (0.2, evaluation.accuracy_lenient, evaluation.accuracy_lenient_interval, "white"),
        ):
            ax.bar(index + offset, value, 0.36, color=fill, edgecolor=color, linewidth=2.5)
            ax.vlines(index + offset, low, high, color=INK, linewidth=2)
            ax.annotate(f"{value:.0%}", (index + offset, high), xytext=(0, 5), textcoords="offset points",
                        ha="center", va="bottom", fontweight="bold")
    ax.set(title="Test accuracy: strict (filled), format forgiven (outlined)", ylabel="% of responses correct")
    ax.set_xticks(range(len(evaluations)), list(evaluations))
    ax.tick_params(axis="x", length=0, labelsize=15)
    highest = max(max(e.accuracy_interval[1], e.accuracy_lenient_interval[1]) for e in evaluations.values())
    ax.set_ylim(0, max(0.2, min(1.09, 1.15 * highest)))
    percent_axis(ax)
    ax.set_xlabel(f"{sizes(evaluations)}, 95% intervals", labelpad=10)
    return finish(figure, path)


def sizes(evaluations: Mapping[str, Evaluation]) -> str:
    """Return how many questions and samples the evaluations have, once if they all have the same."""
    found = {label: f"{len(e.examples)} questions × {e.num_samples} samples" for label, e in evaluations.items()}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return "; ".join(f"{label}: {size}" for label, size in found.items())


def plot_pass_at_k(evaluations: Mapping[str, Evaluation], path: str | Path | None = None) -> Figure:
    """Draw pass@k over k with 95% bands. Does a model solve more problems, or the same ones more reliably?"""
    figure, ax = plt.subplots(figsize=(9, 5.5))
    ends = []
    for (label, evaluation), color in zip(evaluations.items(), colors(list(evaluations)), strict=True):
        values = list(evaluation.pass_at.values())
        low, high = zip(*evaluation.pass_at_intervals.values(), strict=True)
        ax.fill_between(evaluation.ks, low, high, color=color, alpha=0.15, linewidth=0)
        ax.plot(evaluation.ks, values, color=color, marker="o", markersize=8)
        ends.append((values[-1], label, color))
    ks = max((evaluation.ks for evaluation in evaluations.values()), key=len)
    ax.set_xscale("log", base=2)
    ax.set_xticks(ks, [str(k) for k in ks])
    ax.minorticks_off()
    ax.set(title="At least one of k responses is correct (pass@k)",
           xlabel=f"k, responses per question\n{sizes(evaluations)}, 95% bands")
    ax.set_ylabel("% of questions answered correctly")
    ax.set_ylim(0, 1)
    ax.margins(x=0.02)
    percent_axis(ax)
    label_ends(ax, ends, gap=0.075)
    return finish(figure, path)


def plot_differences(rows: Sequence[Mapping], default: str, path: str | Path | None = None) -> Figure:
    """Draw how far each variant's accuracy is from the default's: the mean over seeds with its interval, and each seed.

    Args:
        rows: one mapping per variant, as scripts/compare_variants.py writes them: variant, difference, low, high and
            seeds (one difference each). Rows without a difference, such as the default's own, are left out.
    """
    rows = [row for row in rows if "difference" in row][::-1]
    figure, ax = plt.subplots(figsize=(10, 1.6 + 0.55 * len(rows)))
    for height, row in enumerate(rows):
        ax.hlines(height, 100 * row["low"], 100 * row["high"], color=OTHER_COLORS[0], linewidth=3)
        ax.plot(100 * row["difference"], height, "o", color=OTHER_COLORS[0], markersize=10)
        ax.plot([100 * value for value in row["seeds"]], [height] * len(row["seeds"]), "|", color=INK, markersize=14)
    ax.axvline(0, color=INK, linestyle="--", linewidth=1.5)
    ax.set_yticks(range(len(rows)), [row["variant"] for row in rows])
    ax.grid(axis="x")
    ax.set(title=f"Accuracy minus that of {default}", ylim=(-0.6, len(rows) - 0.4),
           xlabel="percentage points\npoint and line: mean of the seeds, 95% interval by problem; marks: each seed")
    return finish(figure, path)


def plot_cost(
    methods: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: str | Path | None = None
) -> Figure:
    """Draw accuracy against the tokens that an answer costs, a curve or a single point per method.

    Args:
        methods: {label: (tokens per answer, shares correct)}, both of equal length.
    """
    figure, ax = plt.subplots(figsize=(10, 5.5))
    ends = []
    for (label, (tokens, accuracies)), color in zip(methods.items(), colors(list(methods)), strict=True):
        single = len(tokens) == 1
        ax.plot(tokens, accuracies, color=color, marker="D" if single else "o", markersize=11 if single else 7)
        ends.append((accuracies[-1], f"◆ {label}" if single else label, color))
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:.0f}")
    ax.minorticks_off()
    ax.set(title="What a correct answer costs", xlabel="tokens per answer (all samples together)")
    ax.set_ylabel("% of questions answered correctly")
    ax.set_ylim(0, 1)
    percent_axis(ax)
    label_ends(ax, ends, gap=0.075)
    return finish(figure, path)


def plot_attempts(
    evaluations: Mapping[str, Evaluation], path: str | Path | None = None, name: str = "attempts"
) -> Figure:
    """Draw how many responses have 0, 1, 2, … attempts, one panel per model; the darker part is correct.

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
    for ax, (label, counts), color in zip(axes.flat, values.items(), colors(list(values)), strict=True):
        correct = evaluations[label].scores().ravel() > 0
        weight = np.full(len(counts), 1 / len(counts))
        ax.hist(counts, bins, weights=weight, color=color, alpha=0.35, rwidth=0.9)
        ax.hist(counts[correct], bins, weights=weight[correct], color=color, rwidth=0.9)
        percent_axis(ax)
        ax.text(
            0.99, 0.92, f"{label}: mean {counts.mean():.1f}, {correct.mean():.0%} correct",
            transform=ax.transAxes, ha="right", va="top", color=color, fontweight="bold",
        )
    what = "Attempts" if name == "attempts" else "Tokens"
    axes[0, 0].set_title(f"{what} per response (dark: the correct ones)")
    axes[-1, 0].set_xlabel(f"{what.lower()} per response\n{sizes(evaluations)}")
    axes[-1, 0].xaxis.set_major_locator(MaxNLocator(10, integer=True, steps=[1, 2, 5, 10]))
    figure.supylabel("% of responses", fontsize=14, color=INK)
    return finish(figure, path)


def plot_problem_accuracy(evaluation: Evaluation, path: str | Path | None = None) -> Figure:
    """Draw how many questions are answered correctly never, sometimes and always: the histogram behind one accuracy."""
    figure, ax = plt.subplots(figsize=(9, 5))
    n = evaluation.num_samples
    correct = np.round(evaluation.per_problem * n).astype(int)
    share = np.bincount(correct, minlength=n + 1) / len(correct)
    ax.bar(range(n + 1), share, 0.8, color=OTHER_COLORS[0])
    ax.axvline(correct.mean(), color=INK, linestyle="--", linewidth=2)
    ax.annotate(f" mean {correct.mean() / n:.0%}", (correct.mean(), 1.0), xycoords=("data", "axes fraction"), va="top")
    ax.set_xticks(range(n + 1))
    ax.set(title="Are they the same questions every time?", ylabel=f"% of {len(correct)} questions",
           xlabel=f"correct answers among {n} to the same question")
    percent_axis(ax)
    return finish(figure, path)


def plot_rates(evaluations: Mapping[str, Evaluation], path: str | Path | None = None) -> Figure:
    """Draw what a warm-up teaches, model after model: the format, one correct response in k, a correct response."""
    k = min(evaluation.ks[-1] for evaluation in evaluations.values())
    rates = {
        "in the format": [(e.format_rate, e.format_interval) for e in evaluations.values()],
        f"correct in at least\none of {k} responses": [(e.pass_at[k], e.pass_at_intervals[k])
                                                       for e in evaluations.values()],
        "correct": [(e.accuracy, e.accuracy_interval) for e in evaluations.values()],
    }
    figure, ax = plt.subplots(figsize=(9, 5.5))
    ends = []
    for (label, points), color in zip(rates.items(), OTHER_COLORS, strict=False):
        values, intervals = zip(*points, strict=True)
        ax.plot(range(len(values)), values, color=color, marker="o", markersize=8)
        ax.vlines(range(len(values)), *zip(*intervals, strict=True), color=color, linewidth=2)
        ends.append((values[-1], label, color))
    ax.set_xticks(range(len(evaluations)), list(evaluations))
    ax.set(title="What the warm-up teaches", ylabel="% of responses (or of questions)",
           xlabel=f"{sizes(evaluations)}, 95% intervals")
    ax.set_ylim(-0.02, 1.03)
    percent_axis(ax)
    label_ends(ax, ends, gap=0.14)
    return finish(figure, path)


def plot_rewards(evaluations: Mapping[str, Evaluation], path: str | Path | None = None) -> Figure:
    """Draw what the mean reward of each model is made of, then a histogram of each reward and of their weighted sum.

    Raises:
        WorkshopError: an evaluation has no values of rewards.
    """
    parts = {label: evaluation.contributions() for label, evaluation in evaluations.items()}
    names = list(next(iter(parts.values())))
    figure, (left, *others) = panels(1 + len(names), 2, 7.2, 3.9)
    for index, model in enumerate(parts.values()):
        heights, middles = {True: 0.0, False: 0.0}, []  # penalties are stacked below zero
        for name, color in zip(names[:-1], itertools.cycle(OTHER_COLORS), strict=False):
            mean = model[name].mean()
            left.bar(index, mean, 0.6, bottom=heights[mean >= 0], color=color)
            middles.append((heights[mean >= 0] + mean / 2, _reward_label(name), color))
            heights[mean >= 0] += mean
        left.hlines(model["total"].mean(), index - 0.38, index + 0.38, color=INK, linewidth=2)
    left.axhline(0, color=INK, linewidth=1)
    left.set_xticks(range(len(parts)), list(parts))
    left.set(title="What the reward is made of", ylabel="mean per response", xlabel="line: the total")
    label_ends(left, middles, gap=0.09)
    for ax, name in zip(others, names, strict=True):
        values = [model[name].ravel() for model in parts.values()]
        ax.hist(values, bins=12, weights=[np.full(len(v), 1 / len(v)) for v in values], color=colors(list(parts)))
        ax.set(title=_reward_label(name).capitalize(), ylabel="% of responses", xlabel="value × weight")
        percent_axis(ax)
    for index, (label, color) in enumerate(zip(parts, colors(list(parts)), strict=True)):
        others[-1].text(0.5, 0.92 - 0.12 * index, label, transform=others[-1].transAxes, color=color, ha="center",
                        fontweight="bold")
    figure.supxlabel(sizes(evaluations), fontsize=14, color=INK)
    return finish(figure, path)


def _reward_label(name: str) -> str:
    return name.removesuffix("_reward").replace("_", " ")


def plot_story(runs: Runs, evaluations: Mapping[str, Evaluation], path: str | Path | None = None) -> Figure:
    """Draw the workshop in one figure: a problem before and after RL, accuracy and attempts in training, and the test.

    The problem is the first one that the last model before RL gets wrong at its first try, and the first model after it
    gets right, with three attempts if there is such a problem.
    """
    groups = metrics_of(runs)
    question, responses = _example(runs, evaluations)
    example_height = 1.4 + 0.27 * max(len(lines) for _, lines, _ in responses)
    figure = plt.figure(figsize=(17, example_height + 5.8))
    top, bottom = figure.add_gridspec(2, 1, height_ratios=[example_height, 5.8])
    figure.suptitle(question, x=0.01, ha="left", fontweight="bold", color=INK, fontsize=18, parse_math=False)
    for cell, (title, lines, color) in zip(top.subgridspec(1, 2), responses, strict=True):
        ax = figure.add_subplot(cell)
        ax.set_axis_off()
        ax.set_title(title, color=color, fontweight="bold")
        ax.text(0, 1, "\n".join(lines), va="top", family="monospace", parse_math=False, transform=ax.transAxes)
    left, middle, right = (figure.add_subplot(cell) for cell in bottom.subgridspec(1, 3, width_ratios=[1, 1, 1.1]))
    draw_metric(left, groups, "accuracy", "minutes", label_gap=0.09)  # by minutes, because the methods' steps differ
    left.set_title("Practice: correct answers in training")
    draw_metric(middle, groups, "attempts", "minutes", label_gap=0.09)
    middle.set_title("What changes: attempts per response")
    for ax in (left, middle):
        ax.set_xlabel(x_label(groups, "minutes").replace(", thick", "\nthick"), fontsize=12)
    labels = list(evaluations)
    for index, (label, color) in enumerate(zip(labels, colors(labels), strict=True)):
        accuracy, (low, high) = evaluations[label].accuracy, evaluations[label].accuracy_interval
        right.bar(index, accuracy, 0.7, color=color)
        right.vlines(index, low, high, color=INK, linewidth=2)
        right.text(index, high + 0.015, f"{accuracy:.0%}", ha="center", va="bottom", fontweight="bold")
    right.set_xticks(range(len(labels)), labels)
    right.tick_params(axis="x", length=0)
    right.set(title="Test: problems it has never seen", ylabel="% of responses correct")
    right.set_xlabel(f"{sizes(evaluations)}, 95% intervals", fontsize=12)
    percent_axis(right)
    right.set_ylim(0, min(1.0, max(e.accuracy_interval[1] for e in evaluations.values())) + 0.1)
    return finish(figure, path)


def _example(runs: Runs, evaluations: Mapping[str, Evaluation]) -> tuple[str, list[tuple[str, list[str], str]]]:
    """Return a question, and for the model before RL and the one after it: title, lines of its response, color."""
    after = next(label for label in evaluations if label in runs)
    before = [label for label in evaluations if label not in runs][-1]
    pairs = [(one["question"], one["completions"][0], other["completions"][0]) for one, other in zip(
        evaluations[before].examples, evaluations[after].examples, strict=False)]
    learned = [pair for pair in pairs if pair[2]["correct"] and not pair[1]["correct"]]
    chosen = [pair for pair in learned if pair[2]["attempts"] >= 3] + learned + pairs
    question, *responses = chosen[0]
    found = []
    for label, response, when in zip((before, after), responses, ("Before", "After"), strict=True):
        lines = [part for line in visible(response["text"]).splitlines() for part in textwrap.wrap(line, 64)]
        if len(lines) > 10:
            lines = [*lines[:7], f"… ({len(lines) - 9} more lines)", *lines[-2:]]
        verdict = "correct" if response["correct"] else "wrong"
        found.append((f"{when} reinforcement learning ({label}): {verdict}", lines, colors([label])[0]))
    return textwrap.shorten(visible(question), 140, placeholder=" …"), found
