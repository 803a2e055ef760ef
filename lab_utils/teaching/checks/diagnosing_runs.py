"""Self-checks of the notebook "Diagnosing runs"."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import pandas as pd

from ..diagnosis import PROBLEMS, SPAN, begin, end
from .runner import Case, Check, CheckFailed, SelfCheck, Wrong

if TYPE_CHECKING:
    from ...runs import RunDirectory

LETTERS = "BCDEFGHI"


@SelfCheck
def check_diagnosis(diagnosis: Mapping[str, str], runs: Mapping[str, RunDirectory], healthy: RunDirectory) -> str:
    """Check {letter: diagnosis} against what the metrics of each run show next to the healthy run's."""
    well = healthy.metrics()
    decided = {letter: name for letter, name in diagnosis.items() if name}
    for letter, name in decided.items():
        if letter not in LETTERS:
            raise CheckFailed(f"diagnosis has the key {letter!r}.\nHint: the runs are B to I.")
        if name not in PROBLEMS:
            raise CheckFailed(f"diagnosis[{letter!r}] is {name!r}, which is not on the list.\nHint: copy the name.")
        problem, metrics = PROBLEMS[name], runs[letter].metrics()
        if not problem.is_seen(metrics, well):
            here = ", ".join(f"{column} {begin(metrics, column):.3g} → {end(metrics, column):.3g} (healthy "
                             f"{begin(well, column):.3g} → {end(well, column):.3g})" for column in problem.columns)
            raise CheckFailed(f"Run {letter} does not show {name!r}: its sign would be that {problem.shows}."
                              f"\nHint: in the first and the last {SPAN} steps it has {here}.")
    missing = [letter for letter in LETTERS if letter not in decided]
    if missing:
        raise CheckFailed(f"{len(decided)} of {len(LETTERS)} runs are decided, all of them correct. Run {missing[0]} "
                          f"has no name yet.\nHint: fill in diagnosis[{missing[0]!r}].")
    return f"{len(decided)} runs, {len(decided)} correct diagnoses."


def _scatter(curve, power=2, share=0.5):
    differences = [abs(later - earlier) ** power for earlier, later in zip(curve, curve[1:], strict=False)]
    return (share * sum(differences) / len(differences)) ** (1 / power)


check_scatter = Check("{} curves.", [
    Case([0.1, 0.3, 0.1, 0.3], gives=0.1414, hint="Three differences of 0.2: 0.2 divided by the root of 2."),
    Case([0.0, 0.01, 0.02, 0.03], gives=0.00707, hint="An even rise is no noise: compare neighbors only."),
    Case([0.5, 0.5, 0.5], gives=0.0, hint="A flat curve has no noise at all."),
    Case([0.2, 0.5, 0.1], gives=0.25, hint="Differences 0.3 and -0.4: the root of (0.09 + 0.16) / 2 / 2."),
    Case([0.4, 0.6], gives=0.1414, hint="Two steps have one difference."),
], wrong=[
    Wrong(lambda curve: (sum((x - sum(curve) / len(curve))**2 for x in curve) / len(curve)) ** 0.5,
          "This is the standard deviation of the curve. A curve that rises has a large one without any noise."),
    Wrong(lambda curve: _scatter(curve, share=1.0),
          "This is the noise of the differences. Each holds the noise of two steps: divide by the root of 2."),
    Wrong(lambda curve: _scatter(curve, share=0.25), "Divide by the root of 2, not by 2 (or the variance by 2)."),
    Wrong(lambda curve: (sum((b - a)**2 for a, b in zip(curve, curve[1:], strict=False)) / len(curve) / 2) ** 0.5,
          "n steps have n − 1 differences: divide their sum by the number of differences."),
    Wrong(lambda curve: (max(curve) - min(curve)) / 2**0.5,
          "The range grows with a trend and with the number of steps. Use the differences of neighbors."),
], same=lambda got, wanted: abs(got - wanted) < 2e-4)

QUIET = {"completions/clipped_ratio": 0.0, "frac_reward_zero_std": 0.1, "kl": 0.05, "rewards/format/mean": 0.9,
         "rewards/sum/mean": 0.2, "rewards/sum/std": 0.4}
CUT, SILENT, FAR = {"completions/clipped_ratio": 0.3}, {"frac_reward_zero_std": 0.75}, {"kl": 0.2}
DEAD, SAME = {"rewards/sum/mean": 0.0, "rewards/sum/std": 0.0}, {"rewards/sum/std": 0.0}


def _call_first_alarm(first_alarm: Callable, steps: list[dict], patience: int, every: int = 1) -> int | None:
    rows = [{"step": every * step, **QUIET, **change} for step, change in enumerate(steps, 1)]
    return first_alarm(pd.DataFrame(rows), patience)


def _alarms(metrics, function_pays_nothing=lambda column: column == 0, ending="/mean"):
    columns = [name for name in metrics if name.startswith("rewards/") and name.endswith(ending)]
    return ((metrics["completions/clipped_ratio"] > 0.2) | (metrics["frac_reward_zero_std"] > 0.5)
            | (metrics["kl"] > 0.15) | function_pays_nothing(metrics[columns]).any(axis=1))


def _first_alarm(metrics, patience, alarms=_alarms, in_a_row=True):
    count = 0
    for step, alarm in zip(metrics["step"], alarms(metrics), strict=True):
        count = count + 1 if alarm else 0 if in_a_row else count
        if count == patience:
            return step
    return None


def _each_reason_on_its_own(metrics, patience):
    quiet = {"completions/clipped_ratio": 0, "frac_reward_zero_std": 0, "kl": 0, "rewards/sum/mean": 1}
    found = [_first_alarm(metrics.assign(**{name: quiet[name] for name in set(quiet) - {reason}}), patience)
             for reason in quiet]
    return min((step for step in found if step), default=None)


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
], wrong=[
    Wrong(lambda metrics, patience: _first_alarm(metrics, patience, in_a_row=False),
          "You count the steps with an alarm. Count those *in a row*: start again after a step without one."),
    Wrong(lambda metrics, patience: _first_alarm(metrics, 1),
          "This is the first step with an alarm. It should hold `patience` times in a row."),
    Wrong(lambda metrics, patience: _first_alarm(metrics, 3), "Use `patience`, not always 3: two in a row are enough."),
    Wrong(_each_reason_on_its_own, "Different reasons may take turns: combine them with | first, and count then."),
    Wrong(lambda metrics, patience: _first_alarm(metrics, patience, lambda m: _alarms(m, lambda c: c < 0)),
          "A reward function that pays 0 raises no alarm: look at every rewards/NAME/mean."),
    Wrong(lambda metrics, patience: _first_alarm(metrics, patience, lambda m: _alarms(m, ending="")),
          "Look only at columns that end with /mean: a standard deviation of 0 is no dead function."),
    Wrong(lambda metrics, patience: _first_alarm(metrics.assign(step=metrics.index + 1), patience),
          "Return the value of the column step, not the number of the row."),
], call=_call_first_alarm)
