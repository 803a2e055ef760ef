"""One reward out of several: their weighted sum, with every part checked."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from ..tasks import Completion

RewardFunction = Callable[..., list[float]]


def combine_rewards(functions: Sequence[RewardFunction], weights: Sequence[float]) -> RewardFunction:
    """Return the reward that is the weighted sum of `functions`; its `__name__` shows the sum.

    `GRPOTrainer` can also add rewards up itself (`reward_weights`) and then logs each of them; combine them where one
    function is wanted: to probe a mix by hand, or for a trainer that takes a single reward.

    Raises:
        ValueError: there are no functions, or not one finite weight for each; or, when the reward is called, a function
            does not return one finite number for each completion. The message names the function and the value.

    >>> from lab_utils.rewards import equation_reward, format_reward
    >>> reward = combine_rewards([equation_reward, format_reward], weights=[1.0, 0.1])
    >>> reward.__name__
    '1.0*equation_reward+0.1*format_reward'
    >>> reward(["<think></think><answer>7 * 6</answer>", "<answer>7 * 6</answer>"], nums=[[6, 7]] * 2, target=[42] * 2)
    [1.1, 1.0]
    """
    if not functions:
        raise ValueError("functions=[] leaves nothing to combine; give at least one reward function.")
    if len(functions) != len(weights):
        raise ValueError(
            f"There are {len(functions)} functions ({', '.join(map(name_of, functions))}) and {len(weights)} weights "
            f"({list(weights)}); give one weight for each function."
        )
    for function, weight in zip(functions, weights, strict=True):
        if not is_finite_number(weight):
            raise ValueError(f"The weight of {name_of(function)} is {weight!r}; give a finite number, such as 0.5.")

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
    """Raise ValueError unless `values` is a list of `count` finite numbers."""
    if not isinstance(values, (list, tuple)):
        raise ValueError(
            f"{name} returned {values!r}; a reward function returns a list with one number for each completion. "
            "Collect the numbers in a list and return it."
        )
    if len(values) != count:
        raise ValueError(
            f"{name} returned {len(values)} values for {count} completions; a reward function returns one for each. "
            "Score every completion, with 0.0 where it earns nothing."
        )
    for index, value in enumerate(values):
        if not is_finite_number(value):
            raise ValueError(
                f"{name} returned {value!r} for completion {index}; every reward is a finite number. "
                "Return 0.0 where a completion cannot be scored."
            )


def is_finite_number(value: Any) -> bool:
    return isinstance(value, Real) and math.isfinite(value)


def name_of(function: RewardFunction) -> str:
    """Return the function's name, also when `functools.partial` has set some of its parameters."""
    while isinstance(function, functools.partial):
        function = function.func
    return function.__name__
