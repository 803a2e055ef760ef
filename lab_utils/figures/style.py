"""The look of every figure: matplotlib's settings, one color per method, labels at the ends of curves."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

# Okabe and Ito's colors, which color-blind people can tell apart. The first name found in a label decides.
METHOD_COLORS = {
    "random": "#D55E00",
    "extra sft": "#CC79A7",
    "ppo": "#009E73",
    "grpo": "#0072B2",
    "sft": "#E69F00",
    "base": "#7F7F7F",
    "healthy": "#7F7F7F",
}
# For everything that is not a method (Paul Tol's "muted" scheme).
OTHER_COLORS = ["#332288", "#44AA99", "#AA4499", "#999933", "#882255", "#88CCEE", "#117733"]
INK = "#222222"

plt.rcParams.update({
    "figure.facecolor": "white",  # opaque, so that a dark page behind the figure does not swallow its labels
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
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


def colors(labels: Sequence[str]) -> list[str]:
    """Return the color of each label: its method's color, or one of the others."""
    spare = itertools.cycle(OTHER_COLORS)
    return [next((c for m, c in METHOD_COLORS.items() if m in label.lower()), None) or next(spare) for label in labels]


def panels(count: int, columns: int, width: float, height: float, **share: bool) -> tuple[Figure, list[Axes]]:
    """Return a figure with `count` axes of `width` × `height` inches, `columns` in a row."""
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(width * columns, height * rows), squeeze=False, **share)
    for ax in axes.flat[count:]:
        ax.set_visible(False)
    return figure, list(axes.flat[:count])


def finish(figure: Figure, path: str | Path | None) -> Figure:
    """Save a figure to `path`, if given, and return it."""
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
    plt.close(figure)  # or a notebook would show it twice
    return figure


def label_ends(ax: Axes, ends: Sequence[tuple[float, str, str]], gap: float) -> None:
    """Write labels right of the axes at heights (y, label, color), at least `gap` apart (a share of the axes)."""
    low, high = ax.get_ylim()
    heights = [(y - low) / (high - low) for y, _, _ in ends]
    order = np.argsort(heights)
    for below, above in zip(order, order[1:], strict=False):
        heights[above] = max(heights[above], heights[below] + gap)
    overshoot = max(0.0, heights[order[-1]] - 1.0)
    for height, (_, label, color) in zip(heights, ends, strict=True):
        ax.text(1.02, height - overshoot, label, transform=ax.transAxes, color=color, va="center", fontweight="bold")


TRAILING = "trailing mean over a tenth of the curve, 3 points or more"  # what `smooth` draws, for axis labels


def smooth(values: pd.Series) -> pd.Series:
    """Return the trailing mean over a tenth of the points, 3 at least: no point knows what came after it."""
    return values.rolling(max(3, len(values) // 10), min_periods=1).mean()


def tidy_axes(ax: Axes, whole_x: bool = True) -> None:
    """Choose round ticks and start the y axis at zero, so that heights can be compared."""
    ax.margins(x=0.01)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=whole_x, steps=[1, 2, 5, 10]))
    low, high = ax.get_ylim()
    if ax.dataLim.y0 >= 0:
        ax.set_ylim(0, high)


def percent_axis(ax: Axes) -> None:
    """Label shares on the y axis as percent."""
    ax.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
