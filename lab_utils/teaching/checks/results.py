"""Self-checks of the notebook "Results"."""

import math
import re
from typing import Any

from .runner import Case, Check, Wrong


def _same_conclusion(got: Any, wanted: list[str]) -> bool | str:
    if not isinstance(got, str):
        return "Return a string."
    verdict, *parts = wanted
    sentence = got.lower().replace("−", "-")
    said = ["not shown"] if "not shown" in sentence else [word for word in ("better", "worse") if word in sentence]
    missing = [part for part in parts if part.lower() not in sentence]
    if said == [verdict] and missing:
        return (f"{missing[0]} is missing. Name what was compared, the difference and both ends of its interval in "
                "percentage points with one decimal (33.1, or -1.1 with its minus sign), "
                "the number of problems and of seeds.")
    if re.search(r"\d\.\d\s?%", sentence):
        return "A difference of two percentages is in points, not percent: from 25% to 50% are 25 points."
    if re.search(r"\b(proves?|proved|proven|proof|always)\b", sentence):
        return "Leave out 'prove' and 'always': one experiment cannot prove anything."
    return said == [verdict]


check_conclude = Check("{} conclusions, none of them claims more than its interval.", [
    Case("GRPO", 0.331, 0.282, 0.380, 500, 1, gives=["better", "GRPO", "33.1", "28.2", "38.0", "500", "1"],
         hint="The whole interval is above 0: say 'better'."),
    Case("extra SFT", 0.012, -0.011, 0.035, 250, 1, gives=["not shown", "extra SFT", "1.2", "-1.1", "3.5", "250", "1"],
         hint="The interval contains 0, so the data also fit no difference. Say 'not shown', not 'the same'."),
    Case("random reward", -0.094, -0.121, -0.067, 500, 3,  # "worse by 9.4" is clear without a sign
         gives=["worse", "random reward", "9.4", "12.1", "6.7", "500", "3"],
         hint="The whole interval is below 0: say 'worse'."),
    Case("PPO", 0.020, 0.0, 0.040, 500, 1, gives=["not shown", "PPO", "2.0", "0.0", "4.0", "500", "1"],
         hint="An interval that touches 0 does not exclude it."),
], same=_same_conclusion)


def _same_number(got: Any, wanted: int | None) -> bool | str:
    if got is wanted or abs(got - wanted) > 1:
        return got is wanted
    return got == int(got) or "A part of a problem is none: round up with math.ceil."


check_problems_needed = Check("{} plans.", [
    Case(0.02, -0.02, 0.06, 100, gives=400, hint="Half of the width is 4 points and must be 2: four times as many."),
    Case(-0.01, -0.03, 0.01, 250, gives=1000, hint="A negative difference needs as many problems as a positive one."),
    Case(0.335, 0.297, 0.372, 200, gives=3, hint="A large difference needs few problems. Round up to a whole number."),
    Case(0.0, -0.03, 0.03, 500, gives=None, hint="Every interval around 0 contains 0: return None."),
], wrong=[
    Wrong(lambda d, low, high, n: d and math.ceil(n * (high - low) / 2 / abs(d)) or None,
          "Twice as many problems do not halve the width: it shrinks with their square root, so square the factor."),
    Wrong(lambda d, low, high, n: d and math.ceil(n * ((high - low) / d) ** 2) or None,
          "You took the whole width. From its middle to 0 an interval has half of it: (high - low) / 2."),
    Wrong(lambda d, low, high, n: d and math.ceil(((high - low) / 2 / d) ** 2) or None,
          "That is how many times as many problems you need: multiply by `problems`."),
    Wrong(lambda d, low, high, n: d and math.ceil(n * (low / d) ** 2) or None,
          "`low` is an end of the interval. You need half of its width: (high - low) / 2."),
], same=_same_number)
