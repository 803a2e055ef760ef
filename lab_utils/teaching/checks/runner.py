"""Run a learner's function case by case, and answer the first wrong result with a hint.

A check prints "OK: ...", or "Not yet: ..." in a few lines: the case, the result or the error with the learner's own
line, and a hint. It returns True or False, and a learner's mistake never raises. A blank (its line `...` is still in
the function, or the answer is None) is "not written yet". A call that does not end, or that prints without end, is
stopped.

A check is data: cases, each with the hint for any wrong result, and typical wrong answers, each with a hint of its own.
A learner's function that gives the same results as a typical wrong answer, up to the case that fails, gets that hint:

    check_baseline = Check("{} groups.", [
        Case([1.0, 0.0], gives=[0.5, -0.5], hint="The mean is 0.5: subtract it."),
        Case([3.0, 0.0, 0.0], gives=[2.0, -1.0, -1.0], hint="The mean of three rewards is their sum / 3."),
        Case([], gives=[], hint="No rewards, no advantages: do not divide by 0."),
    ], wrong=[
        Wrong(lambda rewards: [r - sum(rewards) for r in rewards], "You subtracted the sum, not the mean."),
        Wrong(lambda rewards: [r - sum(rewards) / 2 for r in rewards], "You divided by 2: a group can have any size."),
        Wrong(lambda rewards: [r / max(rewards) for r in rewards], "A baseline is subtracted; nothing is divided."),
    ])

The tests call every check with each of its wrong answers; the solutions are in tests/teaching/test_checks.py. An answer
can also be a value instead of a function: its one case has no arguments, `Case(gives=0.25, hint=...)`, and the exercise
begins with `answer = None`. What does not fit cases is a function that returns the text after "OK: " or raises
CheckFailed with the message and the hint; `@SelfCheck` makes a check of it.
"""

import contextlib
import inspect
import io
import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

MOST_SECONDS, MOST_OUTPUT, MOST_SHOWN = 10, 10_000, 300


class CheckFailed(Exception):
    """An exercise is not solved yet. The message names the call, its result, the expected result, and a hint."""


class Stopped(BaseException):
    """A learner's function does not end. The learner's own `except Exception` does not catch a BaseException."""


class SelfCheck:
    """What a notebook calls with a learner's answer: print and return whether it is correct."""

    def __init__(self, run: Callable[..., str]):
        self.run = run
        self.solved_by: Any = None

    def __call__(self, answer: Any, *context: Any) -> bool:
        self.solved_by = None
        try:
            print(f"OK: {self.run(answer, *context)}")
        except Exception as error:
            problem = f"{error}" if isinstance(error, CheckFailed) else _problem(error, answer)
            if is_blank(answer):
                problem = f"{_name(answer)} is not written yet. Write it, run its cell, then run this one."
            print(f"Not yet: {problem}")
            return False
        self.solved_by = answer
        return True

    def passed_by(self, answer: Any) -> bool:
        """Say whether this very answer passed the check. If not, the cell "Go on with ours" defines our solution."""
        return answer is not None and answer is self.solved_by


class Case:
    """One call of the learner's function, the expected result, and the hint for any other result."""

    def __init__(self, *arguments: Any, gives: Any, hint: str, **keywords: Any):
        self.arguments, self.keywords, self.gives, self.hint = arguments, keywords, gives, hint


class Wrong:
    """A typical wrong answer, and the hint for those who give it."""

    def __init__(self, answer: Any, hint: str):
        self.answer, self.hint = answer, hint


class Check(SelfCheck):
    """A check that is a list of cases.

    Args:
        ok: the message after "OK: "; `{}` becomes the number of cases.
        cases: in the order in which they are tried.
        wrong: typical wrong answers.
        call: calls the function with a case's arguments, for example after it has made tensors of lists.
        same: compares a result with the expected one. It returns a text instead of False where it knows a better hint
            than the case's own, and may raise an error for a result of the wrong type.
        seconds: the most that one case may take.
    """

    def __init__(self, ok: str, cases: Sequence[Case], *, wrong: Sequence[Wrong] = (),
                 call: Callable[..., Any] = lambda function, *arguments, **keywords: function(*arguments, **keywords),
                 same: Callable[[Any, Any], bool | str] = lambda got, wanted: got == wanted,
                 seconds: float = MOST_SECONDS):
        super().__init__(self._run)
        self.ok, self.cases, self.wrong, self.call, self.same, self.seconds = ok, cases, wrong, call, same, seconds

    def _run(self, answer: Any) -> str:
        with _stdout_kept_short():
            for i, case in enumerate(self.cases):
                if problem := self._problem_of(case, answer):
                    what, hint = problem
                    if case.gives is not None and all(self._result(one, answer) is None for one in self.cases):
                        what += " Is a `return` missing?"
                    raise CheckFailed(f"{what}\nHint: {self._typical_hint(answer, i) or hint}")
        return self.ok.format(len(self.cases))

    def _result(self, case: Case, answer: Any) -> Any:
        """Return the answer's result for a case, or the exception that it raised."""
        if not callable(answer):
            return answer
        try:
            with _time_limit(self.seconds):
                return self.call(answer, *deepcopy(case.arguments), **deepcopy(case.keywords))
        except (Exception, Stopped) as error:
            return error

    def _problem_of(self, case: Case, answer: Any) -> tuple[str, str] | None:
        """Return what went wrong in a case, and the hint; None for the expected result."""
        got = self._result(case, answer)
        if isinstance(got, BaseException):
            return f"{_call_as_text(answer, case)} raised {_problem(got, answer)}", case.hint
        try:
            verdict = self.same(got, case.gives)
            correct = not isinstance(verdict, str) and bool(verdict)
        except Exception:  # a result of the wrong type, which cannot be compared
            verdict = correct = False
        if correct:
            return None
        given, wanted = text(got), text(case.gives)
        if not verdict and given == wanted:
            verdict = f"The values are correct, but return a {type(case.gives).__name__}, not a {type(got).__name__}."
        return f"{_call_as_text(answer, case)} gave {given}; expected {wanted}.", verdict or case.hint

    def _typical_hint(self, answer: Any, failed: int) -> str | None:
        """Return the hint of the typical wrong answer that gives the same results up to the case that failed.

        Of several, it is the one that agrees in most of the other cases.
        """
        if not self.wrong or is_blank(answer):
            return None
        results = []
        for case in self.cases:
            results.append(self._result(case, answer))
            if isinstance(results[-1], Stopped):
                return None
        best, most = None, failed
        for wrong in self.wrong:
            agree = [_comparable(self._result(case, wrong.answer)) == _comparable(result)
                     for case, result in zip(self.cases, results, strict=True)]
            if all(agree[:failed + 1]) and sum(agree) > most:
                best, most = wrong.hint, sum(agree)
        return best


def is_blank(answer: Any) -> bool:
    """Say whether an answer is still the blank of the learner edition."""
    if answer is None or answer is ...:
        return True
    try:
        return re.search(r"^\s*\.\.\.\s*(#.*)?$", inspect.getsource(answer), re.MULTILINE) is not None
    except (OSError, TypeError):  # a value, or a function without a source
        return False


def _name(answer: Any) -> str:
    return getattr(answer, "__name__", "The answer")


def _call_as_text(answer: Any, case: Case) -> str:
    if not callable(answer):
        return "Your answer"
    arguments = [*map(text, case.arguments), *(f"{name}={text(value)}" for name, value in case.keywords.items())]
    return _short(f"{_name(answer)}({', '.join(arguments)})")


def _problem(error: BaseException, answer: Any) -> str:
    """Return the error, and the last line of the learner's own code that led to it."""
    problem = f"{type(error).__name__}: {_short(str(error))}"
    own = getattr(answer, "__globals__", None)  # in a notebook, those of all its cells
    lines = [frame.line for (entry, _), frame in zip(traceback.walk_tb(error.__traceback__),
             traceback.extract_tb(error.__traceback__), strict=True) if entry.f_globals is own]
    return f"{problem}\nin your line: {lines[-1]}" if lines else problem


def _comparable(result: Any) -> str:
    """Return a result as text, in which 1 and 1.0 are the same; an exception as its name."""
    return type(result).__name__ if isinstance(result, BaseException) else re.sub(r"\.0\b", "", text(result))


def _short(words: str) -> str:
    return words if len(words) <= MOST_SHOWN else f"{words[:MOST_SHOWN]}…"


def text(value: Any) -> str:
    """Return a value as text, its floats with five digits, and only the beginning of a long one."""
    if hasattr(value, "tolist"):  # a tensor or an array
        value = value.tolist()
    if isinstance(value, list):
        return _short(f"[{', '.join(map(text, value[:MOST_SHOWN]))}]")
    return repr(float(f"{value:.5g}")) if isinstance(value, float) else _short(repr(value))


@contextlib.contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise Stopped in a block that takes too long, where Python can: in the main thread, and not on Windows."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(signum, frame):
        raise Stopped(f"no result after {seconds:g} seconds. Is there a loop that does not end?")

    handler, timer = signal.signal(signal.SIGALRM, stop), signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


class _Output(io.StringIO):
    def write(self, words: str) -> int:
        if self.tell() + len(words) > MOST_OUTPUT:
            raise Stopped(f"more than {MOST_OUTPUT} characters printed. Is there a loop that does not end?")
        return super().write(words)


@contextlib.contextmanager
def _stdout_kept_short() -> Iterator[None]:
    """Show the beginning of what the learner's function prints, once and after the cases."""
    output = _Output()
    try:
        with contextlib.redirect_stdout(output):
            yield
    finally:
        if said := output.getvalue().rstrip():
            print(_short(said))


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
