"""Run a learner's function case by case, and answer the first wrong result with a hint."""

import traceback
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class CheckFailed(AssertionError):
    """An exercise is not solved yet. The message names the call, its result, the expected result, and a hint."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows: the message without a traceback."""
        return [f"Not yet: {self}"]


class Case:
    """One call of the learner's function, the expected result, and the hint for any other result."""

    def __init__(self, *arguments: Any, gives: Any, hint: str, **keywords: Any):
        self.arguments, self.keywords, self.gives, self.hint = arguments, keywords, gives, hint


@dataclass(frozen=True, eq=False)
class Check:
    """Called with the learner's function: print OK, or raise CheckFailed for the first case that goes wrong.

    Args:
        ok: the message after "OK: "; `{}` becomes the number of cases.
        cases: in the order in which they are tried.
        call: calls the function with a case's arguments, for example after it has made tensors of lists.
        same: compares a result with the expected one. It returns a text instead of False where it knows a better hint
            than the case's own, and may raise an error for a result of the wrong type.
    """

    ok: str
    cases: list[Case]
    call: Callable[..., Any] = lambda function, *arguments, **keywords: function(*arguments, **keywords)
    same: Callable[[Any, Any], bool | str] = lambda got, wanted: got == wanted

    def __call__(self, function: Callable) -> None:
        for case in self.cases:
            shown = _call_as_text(function, case)
            try:
                got = self.call(function, *deepcopy(case.arguments), **deepcopy(case.keywords))
            except NotImplementedError:
                raise CheckFailed(f"{function.__name__} is not written yet. Write it, run its cell, then run this one."
                                  ) from None
            except Exception as error:
                raise CheckFailed(f"{shown} raised {_problem(error, function)}\nHint: {case.hint}") from None
            try:
                verdict = self.same(got, case.gives)
            except Exception:  # a result of the wrong type, which cannot be compared
                verdict = False
            if isinstance(verdict, str) or not verdict:
                hint = verdict or case.hint
                raise CheckFailed(f"{shown} gave {text(got)}; expected {text(case.gives)}.\nHint: {hint}")
        print(f"OK: {self.ok.format(len(self.cases))}")


def _call_as_text(function: Callable, case: Case) -> str:
    arguments = [*map(text, case.arguments), *(f"{name}={text(value)}" for name, value in case.keywords.items())]
    call = f"{function.__name__}({', '.join(arguments)})"
    return call if len(call) < 300 else f"{call[:300]}…"


def _problem(error: Exception, function: Callable) -> str:
    """Return the error, and the last line of the learner's own code that led to it."""
    problem = f"{type(error).__name__}: {str(error)[:300]}"
    own = [frame.line for frame in traceback.extract_tb(error.__traceback__)
           if frame.filename == function.__code__.co_filename]
    return f"{problem}\nin your line: {own[-1]}" if own else problem


def text(value: Any) -> str:
    """Return a value as text, its floats with five digits."""
    value = value.tolist() if isinstance(value, Tensor) else value
    if isinstance(value, list):
        return f"[{', '.join(map(text, value))}]"
    return repr(float(f"{value:.5g}")) if isinstance(value, float) else repr(value)


def close(got: Any, wanted: float) -> bool:
    """Compare a number, or a tensor with one number."""
    return not isinstance(got, str) and abs(float(got) - wanted) < 1e-3


def close_tensor(got: Any, wanted: list) -> bool | str:
    """Compare a tensor with (nested) lists of numbers."""
    expected = torch.tensor(wanted, dtype=torch.float)
    if not isinstance(got, Tensor):
        return f"Return a tensor of shape {tuple(expected.shape)}, not {type(got).__name__}."
    if got.shape != expected.shape:
        return f"Return a tensor of shape {tuple(expected.shape)}; this one has shape {tuple(got.shape)}."
    return torch.allclose(got.detach().float(), expected, atol=1e-3)  # TRL adds 1e-4 to a standard deviation
