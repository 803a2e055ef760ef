"""Looking closely: completions of one problem side by side, and whether what a notebook promises can be seen."""

from __future__ import annotations

import re
import textwrap
from itertools import zip_longest

from ..config import RunConfig
from ..runs import RunDirectory
from ..tasks.expressions import ExpressionError, evaluate

SUM = re.compile(r"([0-9]+ [-+*/] [0-9]+) = ([0-9]+)")


def side_by_side(texts: dict[str, str], width: int = 110) -> str:
    """Columns of equal width under their titles, for completions of the same problem.

    >>> print(side_by_side({"before": "no", "after": "yes"}, width=19))
    before   │ after
    ──────── │ ────────
    no       │ yes
    """
    column = (width - 3 * (len(texts) - 1)) // len(texts)
    columns = []
    for title, text in texts.items():
        lines = [part for line in text.splitlines() for part in textwrap.wrap(line, column) or [""]]
        columns.append([title[:column], "─" * column, *lines])
    rows = zip_longest(*columns, fillvalue="")
    return "\n".join(" │ ".join(cell.ljust(column) for cell in row).rstrip() for row in rows)


def sums_right(text: str) -> list[bool]:
    """Say of every two-number sum in a text whether it is right; one that has no value, such as 7 / 0, is not.

    >>> sums_right("7 * 6 = 42, 42 + 3 = 44 no")
    [True, False]
    """

    def is_right(left: str, result: str) -> bool:
        try:
            return evaluate(left) == int(result)
        except ExpressionError:
            return False

    return [is_right(left, result[:12]) for left, result in SUM.findall(text)]


def expect(config: RunConfig, claim: str, holds: bool) -> None:
    """Print whether something that you should see can be seen; at tier smoke nothing is learned, and it says so."""
    if config.hardware == "smoke":
        print(f"  skipped  {claim} (a handful of steps teaches nothing)")
    else:
        print(f"  {'yes    ' if holds else 'NOT YET'}  {claim}")


def show_completions(run: RunDirectory, step: int | None = None, n: int = 3) -> str:
    """Return a few completions sampled while training, as text: question, gold, response, extracted, reward.

    Args:
        step: a step with recorded completions (the nearest one is taken); the last by default.
        n: how many to show.
    """
    frame = run.completions()
    recorded = frame["step"].unique()
    step = recorded.max() if step is None else min(recorded, key=lambda other: abs(other - step))
    blocks = []
    for row in frame[frame["step"] == step].head(n).itertuples():
        verdict = "correct" if row.correct else "wrong"
        extracted = row.extracted if isinstance(row.extracted, str) else "nothing"  # pandas turns None into NaN
        blocks.append(
            f"── step {row.step} · {verdict} · reward {row.reward:.2f} ──\n"
            f"Question:  {row.question}\nGold:      {row.gold}\nResponse:  {row.completion}\nExtracted: {extracted}"
        )
    return "\n\n".join(blocks)
