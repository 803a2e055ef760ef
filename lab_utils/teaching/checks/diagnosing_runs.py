"""Self-checks of the notebook "Diagnosing runs"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pandas as pd

from ..diagnosis import PROBLEMS, SPAN, begin, end
from .runner import Case, Check, CheckFailed, SelfCheck

if TYPE_CHECKING:
    from ...runs import RunDirectory


@SelfCheck
def check_diagnosis(diagnosis: Mapping[str, str], runs: Mapping[str, RunDirectory], healthy: RunDirectory) -> str:
    """Check {letter: diagnosis} against what the metrics of each run show next to the healthy run's."""
    well = healthy.metrics()
    for letter, name in diagnosis.items():
        if name not in PROBLEMS:
            raise CheckFailed(f"diagnosis[{letter!r}] is {name!r}, which is not on the list.\nHint: copy the name.")
        problem, metrics = PROBLEMS[name], runs[letter].metrics()
        if not problem.is_seen(metrics, well):
            here = ", ".join(f"{column} {begin(metrics, column):.3g} → {end(metrics, column):.3g} (healthy "
                             f"{begin(well, column):.3g} → {end(well, column):.3g})" for column in problem.columns)
            raise CheckFailed(f"Run {letter} does not show {name!r}: its sign would be that {problem.shows}."
                              f"\nHint: in the first and the last {SPAN} steps it has {here}.")
    missing = [letter for letter in "BCDEFGH" if letter not in diagnosis]
    if missing:
        raise CheckFailed(f"All correct so far, but run {missing[0]} is missing.\nHint: add diagnosis[{missing[0]!r}].")
    return f"{len(diagnosis)} runs, {len(diagnosis)} correct diagnoses."


QUIET = {"completions/clipped_ratio": 0.0, "frac_reward_zero_std": 0.1, "kl": 0.05, "rewards/format/mean": 0.9,
         "rewards/sum/mean": 0.2, "rewards/sum/std": 0.4}
CUT, SILENT, FAR = {"completions/clipped_ratio": 0.2}, {"frac_reward_zero_std": 0.75}, {"kl": 0.2}
DEAD, SAME = {"rewards/sum/mean": 0.0, "rewards/sum/std": 0.0}, {"rewards/sum/std": 0.0}


def _call_first_alarm(first_alarm: Callable, steps: list[dict], patience: int, every: int = 1) -> int | None:
    rows = [{"step": every * step, **QUIET, **change} for step, change in enumerate(steps, 1)]
    return first_alarm(pd.DataFrame(rows), patience)


check_first_alarm = Check("{} training runs.", [
    Case([{}] * 5, 3, gives=None, hint="Nothing is wrong in any step. A run without an alarm gives None."),
    Case([CUT, {}, CUT, CUT, CUT], 3, gives=5, hint="The third step *in a row*: step 1 no longer counts."),
    Case([SILENT] * 4, 3, gives=3, hint="Most groups have no signal from step 1 on: the alarm is in step 3."),
    Case([{}, FAR, FAR, FAR], 3, gives=4, hint="The KL is above 0.15 from step 2 on."),
    Case([{}, {}, DEAD, DEAD, DEAD], 3, gives=5, hint="A reward function pays 0: look at every rewards/NAME/mean."),
    Case([SAME] * 5, 3, gives=None, hint="All rewards are equal, but not 0: look only at columns that end with /mean."),
    Case([CUT, FAR, SILENT], 3, gives=3, hint="Different reasons may take turns: first combine them, then count."),
    Case([FAR, FAR, {}, FAR, FAR, {}, FAR, FAR], 3, gives=None, hint="Never three in a row: start again after a gap."),
    Case([FAR, FAR, {}], 2, gives=2, hint="With patience=2 two in a row are enough."),
    Case([FAR] * 4, 3, every=10, gives=30, hint="Return the value of the column step, not the number of the row."),
], call=_call_first_alarm)
