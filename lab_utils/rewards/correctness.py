"""Rewards for a correct answer: each calls the task's `is_correct`, the definition that the evaluation uses too."""

from __future__ import annotations

from typing import Any

from ..tasks import Completion, Task, load_task
from ..tasks.answers import parse_number


def accuracy_reward(completions: list[Completion], task: Task | None = None, **columns: Any) -> list[float]:
    """Give 1.0 for a completion that `task.is_correct` accepts, else 0.0: for any task, also one of your own.

    Training passes the run's task; without one it is GSM8K.

    >>> accuracy_reward(["<answer>Paris</answer>", "Paris"], load_task("qa", "think"), answer=["paris"] * 2)
    [1.0, 0.0]
    """
    task = task or load_task("gsm8k")
    given = {name: values for name, values in columns.items() if isinstance(values, list)}
    rows = [dict(zip(given, row, strict=True)) for row in zip(*given.values(), strict=True)]
    return [float(task.is_correct(text, row)) for text, row in zip(completions, rows, strict=True)]


def correctness_reward(completions: list[Completion], answer: list[str], **columns: Any) -> list[float]:
    """Give 2.0 for the gold number in `<answer>` tags, else 0.0 (GSM8K, response format "reasoning").

    `answer` holds bare numbers or GSM8K's whole worked solutions, which end in `#### 72`.

    >>> correctness_reward(["<answer>$1,000</answer>", "<answer>banana</answer>", "1000"], answer=["1000"] * 3)
    [2.0, 0.0, 0.0]
    """
    task = load_task("gsm8k")
    return [2.0 * task.is_correct(text, {"answer": gold}) for text, gold in zip(completions, answer, strict=True)]


def int_reward(completions: list[Completion], **columns: Any) -> list[float]:
    """Give 0.5 for a whole number in `<answer>` tags, correct or not, else 0.0.

    >>> int_reward(["<answer>71</answer>", "<answer>7.5</answer>", "<answer>banana</answer>", "71"])
    [0.5, 0.0, 0.0, 0.0]
    """
    task = load_task("gsm8k")
    numbers = [parse_number(task.extract(text)) for text in completions]
    return [0.5 if number is not None and number.denominator == 1 else 0.0 for number in numbers]


def numeric_match_reward(completions: list[Completion], answer: list[str], **columns: Any) -> list[float]:
    """Give 1.0 for the gold number after the first `#### `, else 0.0 (GSM8K, response format "hash").

    >>> numeric_match_reward(["48 + 24 = 72\\n#### 72", "48 + 24 = 72", "#### 71"], answer=["72", "72", "72"])
    [1.0, 0.0, 0.0]
    """
    task = load_task("gsm8k", "hash")
    return [float(task.is_correct(text, {"answer": gold})) for text, gold in zip(completions, answer, strict=True)]


def equation_reward(
    completions: list[Completion], nums: list[list[int]], target: list[int], **columns: Any
) -> list[float]:
    """Give 1.0 for an expression in `<answer>` tags that uses each of `nums` once and equals `target` (Countdown).

    Everything else earns 0.0, also an answer that is not an expression, such as "7 * 6 + 3 = 45". The value is exact.

    >>> texts = ["<answer>(7 * 6) + 3</answer>", "<answer>45</answer>", "<answer>7 * 6 + 3 = 45</answer>"]
    >>> equation_reward(texts, nums=[[3, 6, 7]] * 3, target=[45] * 3)
    [1.0, 0.0, 0.0]
    """
    task = load_task("countdown")
    rows = [{"nums": numbers, "target": value} for numbers, value in zip(nums, target, strict=True)]
    return [float(task.is_correct(text, row)) for text, row in zip(completions, rows, strict=True)]
