"""Combine several rewards into one: their weighted sum, with every part checked."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from .. import WorkshopError
from ..tasks import Completion

RewardFunction = Callable[..., list[float]]


def combine_rewards(functions: Sequence[RewardFunction], weights: Sequence[float]) -> RewardFunction:
    """Return a reward that is the weighted sum of `functions`; its `__name__` shows the sum.

    `GRPOTrainer` can also add up rewards itself (`reward_weights`), and then logs each of them. Combine them to probe a
    mix by hand, or for a trainer that takes a single reward.

    Raises:
        WorkshopError: there are no functions, or not one finite weight for each. The combined reward raises it when a
            function does not return one finite number per completion. The message names the function and the value.

    >>> from lab_utils.rewards import equation_reward, format_reward
    >>> reward = combine_rewards([equation_reward, format_reward], weights=[1.0, 0.1])
    >>> reward.__name__
    '1.0*equation_reward+0.1*format_reward'
    >>> reward(["<think></think><answer>7 * 6</answer>", "<answer>7 * 6</answer>"], nums=[[6, 7]] * 2, target=[42] * 2)
    [1.1, 1.0]
    """
    if not functions:
        raise WorkshopError("functions=[] leaves nothing to combine: give at least one reward function.")
    if len(functions) != len(weights):
        raise WorkshopError(
            f"There are {len(functions)} functions ({', '.join(map(name_of, functions))}) and {len(weights)} weights "
            f"({list(weights)}): give one weight for each function."
        )
    for function, weight in zip(functions, weights, strict=True):
        if not is_finite_number(weight):
            raise WorkshopError(f"The weight of {name_of(function)} is {weight!r}: give a finite number, such as 0.5.")

    def combined(completions: list[Completion], **columns: Any) -> list[float]:
        totals = [0.0] * len(completions)
        for function, weight in zip(functions, weights, strict=True):
            values = function(completions=completions, **columns)
            check_values(name_of(function), values, len(completions))
            totals = [total + weight * float(value) for total, value in zip(totals, values, strict=True)]
        return totals

    parts = zip(functions, weights, strict=True)
    combined.__name__ = "+".join(f"{weight}*{name_of(function)}" for function, weight in parts)
    return combined


def check_values(name: str, values: Any, count: int) -> None:
    """Raise WorkshopError unless `values` is a list of `count` finite numbers."""
    if not isinstance(values, (list, tuple)):
        raise WorkshopError(f"{name} returned {values!r}, not a list: return a list with one number per completion.")
    if len(values) != count:
        raise WorkshopError(f"{name} returned {len(values)} values for {count} completions: return one value for each, "
                            "0.0 if it earns nothing.")
    for index, value in enumerate(values):
        if not is_finite_number(value):
            raise WorkshopError(f"{name} returned {value!r} for completion {index}, not a finite number: return 0.0 "
                                "for a completion that cannot be scored.")


def is_finite_number(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def name_of(function: RewardFunction) -> str:
    """Return the name of a function, or of the function inside a `functools.partial`."""
    while isinstance(function, functools.partial):
        function = function.func
    return function.__name__
