"""Chat: from a question that the user types to the prompt, and from a model's response to a record of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import WorkshopError
from ..tasks import Task, visible
from ..tasks.answers import extract_xml_answer
from ..tasks.countdown import LARGEST_NUMBER, LARGEST_RESULT, SMALLEST_TARGET


class QuestionError(WorkshopError):
    """A question that does not fit the task; the message says how to ask it."""


def as_prompt(task: Task, query: str) -> list[dict[str, str]]:
    """Return the chat prompt for a typed question, in the form that the model was trained on."""
    if len(query) > 4000 or visible(query) != query:
        raise QuestionError(f"The question '{visible(query[:50])}…' is too long or has control characters: type at "
                            "most 4,000 printable characters.")
    if task.name != "countdown":
        try:
            return task.prompt(task.typed_row(query))
        except Exception as error:
            if not task.own:
                raise
            raise QuestionError(f"The task {task.name!r} has no question for typed text ({type(error).__name__}: "
                                f"{error}): give it a method typed_row(self, query), which returns a row without an "
                                "answer.") from None
    *nums, target = numbers_in(query)
    if len(nums) < 2:
        raise QuestionError(f"{query!r}: type at least two numbers and then the target, such as: 9 14 20 25")
    return task.prompt({"nums": nums, "target": target})


def numbers_in(query: str) -> list[int]:
    """Return the whole numbers of a typed question, [0] if there are none."""
    return [int(number) for number in re.findall(r"\d+", query)] or [0]


def tiny_model_range(task: Task) -> str:
    """Return which questions the tiny model can answer: those like its training problems."""
    if task.name == "countdown":
        return f"three numbers from 1 to {LARGEST_NUMBER} and a target from {SMALLEST_TARGET} to {LARGEST_RESULT}"
    return f"word problems from the workshop's templates, with whole numbers from 1 to {LARGEST_RESULT}"


def in_tiny_model_range(task: Task, query: str) -> bool:
    """Say whether the numbers of a typed question are of the kind that the tiny model was trained on."""
    *nums, target = numbers_in(query)
    if task.name == "countdown":
        return len(nums) == 3 and 1 <= min(nums) <= max(nums) <= LARGEST_NUMBER \
            and SMALLEST_TARGET <= target <= LARGEST_RESULT
    return max([*nums, target]) <= LARGEST_RESULT


def reasoning_of(task: Task, response: str) -> str:
    """Return what the response says before its answer."""
    tagged = extract_xml_answer(response, "reasoning" if task.response_format == "reasoning" else "think")
    return re.split(r"<answer>|####", response)[0].strip() if tagged is None else tagged


def conversation(history: list[dict[str, str]], prompt: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the messages so far and the new question; only the first question brings a system message."""
    return [*history, prompt[-1]] if history else prompt


def chat_records(task: Task, query: str, responses: dict[str, str]) -> list[dict[str, Any]]:
    """Return one record for each response (by model name): query, model, reasoning, answer and the whole response."""
    return [{"query": query, "model": model, "reasoning": reasoning_of(task, response),
             "answer": task.extract(response), "response": response} for model, response in responses.items()]


def append_jsonl(path: str | Path, records: Iterable[dict[str, Any]]) -> None:
    """Append records to a JSON Lines file; raise WorkshopError if it cannot be written."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    except OSError as error:
        raise WorkshopError(f"Cannot write to {path} ({error.strerror}): choose another file.") from None
