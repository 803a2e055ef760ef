"""The rewards of a run, the user's own among them: load them, score completions, try own code before training."""

from __future__ import annotations

import functools
import inspect
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import WorkshopError, own_line, rewards
from ..config import RunConfig, is_own, own_code, short_name
from ..tasks import Row, Task, load_task
from .combine import RewardFunction, check_values

LONGEST_SECONDS = 20.0  # for all sample completions together; a rollout calls a reward as often, or more often
SAMPLED = 4  # rows whose demonstrations all of the user's functions are tried with
BROKEN = ("", "banana", "<answer>", "</answer><think><think>", "<answer></answer>", "9" * 300, "é∑🙂\n\n\t",
          "word " * 2000)


def load_reward(name: str) -> RewardFunction:
    """Return a reward function by the name that it has in a recipe."""
    if not is_own(name):
        return getattr(rewards, name)
    return own_code.load_object(name, "function", lambda value: callable(value) and not isinstance(value, type))


def arguments_for(function: Callable, known: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the `known` values, such as the longest completion, that a function has a parameter for."""
    return {name: value for name, value in known.items() if name in inspect.signature(function).parameters}


def rewards_of(config: RunConfig, own: Sequence[Callable] | None, max_length: int, task: Task) -> list[Callable]:
    """Return the reward functions of a run: `own`, or those that the configuration names.

    A reward with a parameter `max_length`, which scales with length, gets the run's longest completion, and one with a
    parameter `task` the task. An exception in a reward becomes a WorkshopError that names the function.
    """

    def named(function: Callable) -> Callable:
        known = arguments_for(function, {"max_length": max_length, "task": task})

        @functools.wraps(function)
        def call(*args, **kwargs):
            try:
                values = function(*args, **{**known, **kwargs})
            except Exception as error:
                raise own_error(f"The reward function {function.__name__!r}", error, kwargs) from error
            if not isinstance(values, list | tuple) or len(values) != len(kwargs["completions"]):
                check_values(f"The reward function {function.__name__!r}", values, len(kwargs["completions"]))
            return values
        return call

    return list(map(named, own or map(load_reward, config.rewards)))


def call_arguments(rows: Sequence[Row], texts: Sequence[str], tokens: Sequence[list[int]]) -> dict[str, Any]:
    """Return the arguments with which TRL's trainer calls a reward function, for one completion per row."""
    columns = {name: [row.get(name) for row in rows] for name in rows[0] if name != "prompt"}
    return columns | {
        "prompts": [row["prompt"] for row in rows],
        "completions": [[{"role": "assistant", "content": text}] for text in texts], "completion_ids": list(tokens),
        "trainer_state": None, "log_extra": lambda *_: None, "log_metric": lambda *_: None}


def reward_values(config: RunConfig, rows: Sequence[Row], texts: Sequence[str],
                  tokens: Sequence[list[int]]) -> dict[str, list[float]]:
    """Return what each reward of a run gives to each completion, by the name under which training logs the reward.

    Raises:
        WorkshopError: a reward raises, or does not return one finite number per completion.
    """
    longest = (config.ppo if "ppo" in config.stages else config.grpo).max_completion_length
    arguments = call_arguments(rows, texts, tokens)
    values = {}
    for name, function in zip(config.rewards, rewards_of(config, None, longest, load_task(config.task)), strict=True):
        found = function(**arguments)
        check_values(f"The reward function {short_name(name)!r}", found, len(texts))
        values[short_name(name)] = list(map(float, found))
    return values


def try_own_code(config: RunConfig, task: Task, rows: Sequence[Row]) -> list[str]:
    """Call the user's own rewards and task on sample completions: demonstrations, halves of them, and broken text.

    Args:
        rows: rows of `task.dataset`. The first few give the samples; the task must accept the demonstrations of all.

    Returns:
        A line for each reward and for the task: the values and the time per completion, and what looks wrong.

    Raises:
        WorkshopError: a call fails, takes too long, or does not return one finite number per completion; or no
            demonstration is correct, and SFT would imitate them.
    """
    demonstrations = [task.demonstration(row) for row in rows[:SAMPLED]]
    texts = [*demonstrations, *(text[: len(text) // 2] for text in demonstrations), *BROKEN]
    answered = [rows[i % len(demonstrations)] for i in range(len(texts))]
    lines = []
    if task.own:
        each = _try_task(task, config.task.name, texts, answered)
        lines.append(f"{_judged(config, task, rows)}, {each}")
    elif any(row.get("completion") for row in rows):
        lines.append(f"{_judged(config, task, rows)}.")
    arguments = call_arguments(answered, texts, [[1] * (len(text) // 4) for text in texts])
    for name in filter(is_own, config.rewards):
        function, where = load_reward(name), readable(name)
        known = {"max_length": config.grpo.max_completion_length, "task": task}
        started = time.perf_counter()
        values = _called(where, lambda f=function, k=known: f(**{**arguments_for(f, k), **arguments}), arguments)
        each = (time.perf_counter() - started) / len(texts)
        check_values(where, values, len(texts))
        note = " They are all equal: if they stay so, nothing is learned from it. Is `completion_text` missing?" \
            if len(set(values)) == 1 else ""
        settings = config.ppo if "ppo" in config.stages else config.grpo
        if (wait := each * settings.per_device_train_batch_size * settings.gradient_accumulation_steps) > 1:
            note += f" Slow: a step may wait {wait:.0f} s for it."
        lines.append(f"{where}: {min(values):.3g} to {max(values):.3g} on {len(texts)} sample completions, "
                     f"{milliseconds(each)} each.{note}")
    return lines


def milliseconds(seconds: float) -> str:
    """Return a time in milliseconds with two digits.

    >>> milliseconds(0.000012345), milliseconds(0.12345)
    ('0.012 ms', '120 ms')
    """
    return f"{float(f'{1000 * seconds:.2g}'):g} ms"


def readable(reference: str) -> str:
    """Return a reference to own code without the folders, for messages: my_rewards.py:brevity."""
    return Path(reference).name


def _try_task(task: Task, name: str, texts: list[str], rows: list[Row]) -> str:
    """Call the methods that judge completions; return the time per completion and what looks wrong, in words."""
    started, accepted = time.perf_counter(), []
    for text, row in zip(texts, rows, strict=True):
        for method, kinds, arguments in (("extract", (str, type(None)), (text,)), ("has_format", (bool,), (text,)),
                                         ("is_correct", (bool,), (text, row)), ("attempts", (int,), (text,)),
                                         ("is_correct_lenient", (bool,), (text, row))):
            value = _called(f"{readable(name)}: {method}", lambda m=method, a=arguments: getattr(task, m)(*a), row)
            if not isinstance(value, kinds):
                raise WorkshopError(f"{readable(name)}: {method} returned {value!r} for the completion {text[:60]!r}: "
                                    f"return {' or '.join(kind.__name__ for kind in kinds)}.")
            if method == "is_correct" and value and text in BROKEN:
                accepted.append(text)
    each = (time.perf_counter() - started) / len(texts)
    note = f" Is `is_correct` right? It accepts {accepted[0][:30]!r}." if accepted else ""
    return f"{milliseconds(each)} per completion.{note}"


def _judged(config: RunConfig, task: Task, rows: Sequence[Row]) -> str:
    """Return how many demonstrations the task accepts, in words; of very many rows, as many as a few seconds allow."""
    name, judged = readable(config.task.name), []

    def judge() -> None:
        ends, other = time.perf_counter() + LONGEST_SECONDS / 2, task.demonstration(rows[0])
        for row in rows:
            text = task.demonstration(row)
            try:
                correct = task.is_correct(text, row)
                task.is_correct(other, row)  # a gold answer of another kind may fail only here
            except Exception as error:
                raise own_error(f"{name}: is_correct for the question {task.question(row)[:60]!r}, gold answer "
                                f"{task.gold(row)[:60]!r},", error, row) from error
            judged.append((bool(correct), row, text))
            if time.perf_counter() > ends:
                break

    _called(f"{name}: is_correct", judge, rows[0])
    wrong = [(row, text) for correct, row, text in judged if not correct]
    found = f"{name}: {len(judged) - len(wrong)} of {len(judged)} demonstrations are correct"
    if not wrong:
        return found
    row, text = wrong[0]
    shown = f"{text[-80:]!r} for the question {task.question(row)[:60]!r}, gold answer {task.gold(row)[:60]!r}"
    if len(wrong) == len(judged) and "sft" in config.stages:
        raise WorkshopError(f"{found}, and SFT would imitate them. The first ends {shown}: correct the task's "
                            "`extract` or `is_correct`, or the columns `completion` and `answer`.")
    return f"{found} (the first wrong one ends {shown})"


def _called(what: str, call: Callable[[], Any], columns: Mapping[str, Any]) -> Any:
    """Return what a call returns; raise WorkshopError if it raises or does not end."""
    found: dict[str, Any] = {}

    def work() -> None:
        try:
            found["value"] = call()
        except BaseException as error:  # also SystemExit
            found["error"] = error

    thread = threading.Thread(target=work, daemon=True)  # a daemon: an endless loop must not keep the process alive
    thread.start()
    thread.join(LONGEST_SECONDS)
    if thread.is_alive():
        raise WorkshopError(f"{what} takes longer than {LONGEST_SECONDS:g} s for a few sample completions: look for an "
                            "endless loop, or for a regular expression that backtracks.")
    if isinstance(found.get("error"), WorkshopError):
        raise found["error"]
    if "error" in found:
        raise own_error(what, found["error"], columns) from found["error"]
    return found["value"]


def own_error(what: str, error: BaseException, columns: Mapping[str, Any]) -> WorkshopError:
    """Return the error to raise when the user's code has raised one: where, what, and the usual remedy."""
    remedy = "Return a value for every completion, even for broken text."
    if isinstance(error, KeyError) or isinstance(error, TypeError) and re.search("missing|unexpected", str(error)):
        given = ", ".join(name for name in columns if name not in ("trainer_state", "log_extra", "log_metric"))
        take = "; take those that you need as parameters, and end the parameters with **columns" \
            if "completions" in columns else ""
        remedy = f"The columns are {given}{take}. --set task.columns.NAME=COLUMN keeps another column of the data."
    where = f" ({Path(own[0]).name}, line {own[1]})" if (own := own_line(error)) else ""
    return WorkshopError(f"{what}{where} raised {type(error).__name__}: {error}. {remedy}")

