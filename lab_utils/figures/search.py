"""The figure of a search for settings: what its trials reached, what remains of it on fresh seeds, what mattered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .style import OTHER_COLORS, finish, percent_axis


def plot_search(result: Mapping[str, Any], path: str | Path | None = None) -> Figure:
    """Draw the content of sweep.json, which scripts/sweep.py writes.

    On the left each trial's accuracy in the search, and each fresh seed's of the default and of the best setting; on
    the right the importance of each setting, if enough trials were completed.
    """
    importance = result["importance"]
    figure, (left, right) = plt.subplots(1, 2, figsize=(15, 5.5), width_ratios=[3, 2])
    color, best_color = OTHER_COLORS[:2]
    trials = [trial for trial in result["trials"] if trial["accuracy"] is not None]
    left.plot([trial["trial"] for trial in trials], [trial["accuracy"] for trial in trials], "o", color=color,
              markersize=9, label="completed")
    pruned = [trial for trial in result["trials"] if trial["state"] == "pruned" and trial["probe"]]
    left.plot([trial["trial"] for trial in pruned], [list(trial["probe"].values())[-1] for trial in pruned], "x",
              color=color, markersize=9, markeredgewidth=2, label="pruned, at its last probe")
    best = max(trials, key=lambda trial: trial["accuracy"])
    left.plot(best["trial"], best["accuracy"], "o", color=best_color, markersize=13, label="best of the search")
    count = len(result["trials"])
    gap = max(1.0, count / 6)
    ticks: dict[float, int | str] = {place: place for place in range(0, count, -(-count // 6))}
    for number, (name, seeds) in enumerate(result["fresh"].items(), 1):
        place = count - 1 + number * gap
        shade = best_color if name == f"trial {best['trial']}" else color
        left.plot([place] * len(seeds), seeds, "o", color=shade, markersize=7, alpha=0.6)
        left.hlines(np.mean(seeds), place - 0.3 * gap, place + 0.3 * gap, color=shade)
        ticks[place] = f"{name}\nfresh"
    left.axvline(count - 1 + gap / 2, color="#BBBBBB", linewidth=1.5)
    left.set_xticks(list(ticks), list(ticks.values()))
    left.set(title="In the search, and on fresh seeds", ylabel="% of responses correct",
             xlabel=f"trial, on {result['validation_questions']} validation questions   |   "
                    f"seeds and their mean, on {result['test_questions']} test questions")
    left.set_ylim(bottom=0)
    percent_axis(left)
    left.legend(fontsize=12)
    names = list(importance)[::-1]
    right.barh(names, [importance[name] for name in names], color=color)
    right.set(title="Importance of each setting", xlabel="share of the total (PED-ANOVA)" if names
              else "too few completed trials to say")
    right.grid(axis="x")
    right.xaxis.set_major_locator(MaxNLocator(5))
    return finish(figure, path)
