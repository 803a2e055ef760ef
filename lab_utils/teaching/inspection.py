"""Look closely at a run: completions of one problem side by side, its sums, and what a notebook says you should see."""

from __future__ import annotations

import re
import textwrap
from itertools import zip_longest

from ..config import RunConfig
from ..runs import RunDirectory
from ..tasks import visible
from ..tasks.expressions import ExpressionError, evaluate

# Starts at the first digit of a number only: otherwise a long row of digits takes quadratic time.
SUM = re.compile(r"(?<![0-9])([0-9]+ [-+*/] [0-9]+) = ([0-9]+)")


def side_by_side(texts: dict[str, str], width: int = 110) -> str:
    """Return texts, such as completions of one problem, in columns of equal width under their titles.

    >>> print(side_by_side({"before": "no", "after": "yes"}, width=19))
    before   │ after
    ──────── │ ────────
    no       │ yes
    """
    column = (width - 3 * (len(texts) - 1)) // len(texts)
    columns = []
    for title, text in texts.items():
        lines = [part for line in visible(text).splitlines() for part in textwrap.wrap(line, column) or [""]]
        columns.append([title[:column], "─" * column, *lines])
    rows = zip_longest(*columns, fillvalue="")
    return "\n".join(" │ ".join(cell.ljust(column) for cell in row).rstrip() for row in rows)


def sums_right(text: str) -> list[bool]:
    """Return, for each two-number sum in a text, whether it is correct. A sum without a value, such as 7 / 0, is not.

    >>> sums_right("7 * 6 = 42, 42 + 3 = 44 no")
    [True, False]
    """

    def is_right(left: str, result: str) -> bool:
        try:
            return str(evaluate(left)) == (result.lstrip("0") or "0")  # as text: int() refuses thousands of digits
        except ExpressionError:
            return False

    return [is_right(left, result) for left, result in SUM.findall(text)]


def expect(config: RunConfig, claim: str, holds: bool) -> None:
    """Print whether a claim about a run holds. At tier smoke nothing is learned, so the claim is skipped."""
    if config.hardware == "smoke":
        print(f"  skipped  {claim} (a handful of steps teaches nothing)")
    else:
        print(f"  {'yes    ' if holds else 'NOT YET'}  {claim}")


def show_completions(run: RunDirectory, step: int | None = None, n: int = 3) -> str:
    """Return a few completions sampled in training, as text: question, gold, response, extracted answer, reward.

    Args:
        step: show the recorded step nearest to this one; by default the last.
        n: the number of completions.
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
    return visible("\n\n".join(blocks))
