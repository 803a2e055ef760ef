"""What every task offers: rows become chat prompts, and one definition of "correct" judges completions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

THINK_SYSTEM_PROMPT = (
    "You are a helpful assistant. Think step by step inside <think> </think>, "
    "then give the final answer inside <answer> </answer>."
)

Completion = str | list[dict[str, str]]
Row = dict[str, Any]


class RowError(ValueError):
    """A row that cannot be used: the message says where it is, what is wrong with it and what to do."""


def completion_text(completion: Completion) -> str:
    """Return the text of a completion given as a plain string or as TRL's list of messages.

    >>> completion_text([{"role": "assistant", "content": "<answer>4</answer>"}])
    '<answer>4</answer>'
    """
    return completion if isinstance(completion, str) else completion[-1]["content"]


class Task:
    """A task: where rows come from, how they are asked, what a right answer is.

    Subclasses set `name`, `columns` (those a row must have) and `response_formats` (the first is the default), and
    implement the methods that raise here. `completion` is always a string or TRL's message list.
    """

    name: str
    hub_id: str
    columns: tuple[str, ...]
    response_formats: tuple[str, ...]

    def __init__(self, response_format: str | None = None):
        response_format = response_format or self.response_formats[0]
        if response_format not in self.response_formats:
            raise ValueError(
                f"response_format={response_format!r} does not exist for task {self.name!r}; "
                f"choose one of {', '.join(self.response_formats)}."
            )
        self.response_format = response_format

    def prompt(self, row: Row) -> list[dict[str, str]]:
        """Return the system and the user message for a row."""
        raise NotImplementedError

    def gold(self, row: Row) -> str:
        """Return the gold answer of a row as a string."""
        raise NotImplementedError

    def extract(self, completion: Completion) -> str | None:
        """Return the answer that the completion gives in the task's response format, or None."""
        raise NotImplementedError

    def has_format(self, completion: Completion) -> bool:
        """Say whether the whole completion has the task's response format."""
        raise NotImplementedError

    def is_correct(self, completion: Completion, row: Row) -> bool:
        """Say whether the completion answers the row, in the response format: the one definition of correct."""
        raise NotImplementedError

    def is_correct_lenient(self, completion: Completion, row: Row) -> bool:
        """Say whether the completion answers the row if its format is forgiven."""
        raise NotImplementedError

    def attempts(self, completion: Completion) -> int:
        """Count the worked lines of the completion, those with an equals sign: how much it tried."""
        return sum("=" in line for line in completion_text(completion).splitlines())

    def demonstration(self, row: Row) -> str:
        """Return a completion to imitate in supervised fine-tuning; the same row always gives the same text."""
        raise NotImplementedError

    def synthetic_rows(self, split: str, limit: int | None) -> list[Row]:
        """Generate rows without any download; the test split shares no problem with the training split."""
        raise NotImplementedError

    def hub_rows(self, split: str, limit: int | None) -> list[Row]:
        """Load rows from the Hugging Face Hub (needs network or a filled cache)."""
        raise NotImplementedError

    def check_row(self, row: Row) -> Row:
        """Return the row in the form that the rewards expect, or raise RowError."""
        raise NotImplementedError

    def dataset(self, split: str, limit: int | None = None, source: str = "synthetic") -> Dataset:
        """Load a split as a dataset with the column `prompt` (messages) next to the task's own columns.

        Args:
            split: "train" or "test".
            limit: at most this many rows (the first ones), all when None.
            source: "synthetic", "hub", the path of a JSON Lines file, or a folder with train.jsonl and test.jsonl.

        Raises:
            ValueError: an unknown split or source, or a limit below 1.
            RowError: a row that does not fit; it names file, line and reason.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split={split!r} does not exist; choose 'train' or 'test'.")
        if limit is not None and limit < 1:
            raise ValueError(f"limit={limit} would leave no rows; give a number of at least 1, or None for all.")
        if source == "synthetic":
            located = [(f"synthetic {self.name}, row {i}", row)
                       for i, row in enumerate(self.synthetic_rows(split, limit), 1)]
        elif source == "hub":
            located = [(f"{self.hub_id}, {split}, row {i}", row)
                       for i, row in enumerate(self.hub_rows(split, limit), 1)]
        else:
            located = read_json_lines(source, split, limit)
        rows = []
        for where, row in located:
            missing = [column for column in self.columns if row.get(column) in (None, "", [])]
            if missing:
                raise RowError(
                    f"{where}: the column {missing[0]!r} is missing or empty. A {self.name} row needs "
                    f"{', '.join(self.columns)}; this one has {', '.join(map(str, row)) or 'none'}. "
                    "Add the column or remove the row."
                )
            try:
                row = self.check_row(row)
            except RowError as error:
                raise RowError(f"{where}: {error}") from None
            rows.append({"prompt": self.prompt(row), **row})
        if not rows:
            raise RowError(f"{source}: the {split} split holds no rows; at least one is needed.")
        return Dataset.from_list(rows)


def read_json_lines(source: str, split: str, limit: int | None) -> list[tuple[str, Row]]:
    """Read (location, row) pairs from a .jsonl file, or from SPLIT.jsonl in a folder."""
    path = Path(source)
    if path.is_dir():
        path = path / f"{split}.jsonl"
    if not path.is_file():
        raise ValueError(
            f"source={source!r} is neither 'synthetic' nor 'hub', and there is no file {path}. "
            "Give the path of a .jsonl file, or of a folder that holds train.jsonl and test.jsonl."
        )
    located = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if limit is not None and len(located) == limit:
                break
            if not line.strip():
                continue
            where = f"{path.name}, line {number}"
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise RowError(f"{where}: not valid JSON ({error.msg} at column {error.colno}). "
                               "Every line must be one JSON object; mend or remove this one.") from None
            if not isinstance(row, dict):
                raise RowError(f"{where}: expected a JSON object like {{...}}, got {type(row).__name__}.")
            located.append((where, row))
    return located


def load_hub_rows(hub_id: str, name: str | None, split: str, limit: int | None) -> list[Row]:
    """Load rows of a Hub dataset, with a message that helps when the Hub cannot be reached."""
    wanted = split if limit is None else f"{split}[:{limit}]"
    try:
        return load_dataset(hub_id, name, split=wanted).to_list()
    except (ConnectionError, OSError) as error:
        raise ValueError(
            f"The dataset {hub_id!r} could not be loaded from the Hub ({type(error).__name__}). Check the network, "
            "unset HF_HUB_OFFLINE, or work offline with source='synthetic' or the path of a .jsonl file."
        ) from error
