"""What every task offers: rows become chat prompts, and one definition of "correct" judges completions."""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from .. import WorkshopError

SYNTHETIC_ROWS = {"train": 8192, "test": 1024}  # rows of a synthetic split when no limit is given
THINK_SYSTEM_PROMPT = (
    "You are a helpful assistant. Think step by step inside <think> </think>, "
    "then give the final answer inside <answer> </answer>."
)

MOST_BYTES = 1_000_000  # of one line of a JSON Lines file
Completion = str | list[dict[str, str]]
Row = dict[str, Any]


class RowError(WorkshopError):
    """A row cannot be used. The message says where the row is, what is wrong with it and what to do."""


def completion_text(completion: Completion) -> str:
    """Return the text of a completion given as a plain string or as TRL's list of messages.

    >>> completion_text([{"role": "assistant", "content": "<answer>4</answer>"}])
    '<answer>4</answer>'
    """
    return completion if isinstance(completion, str) else completion[-1]["content"]


def visible(text: str) -> str:
    """Return a text to print with its control, bidirectional and other invisible characters as escapes.

    Models and data can hold sequences that clear a terminal, or marks that show a line in another order.

    >>> print(visible("7 + 5\\x1b[2J = 12"))
    7 + 5\\x1b[2J = 12
    """
    hidden = {character for character in set(text) - {"\n", "\t"}
              if unicodedata.category(character) in ("Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp")}
    return text.translate({ord(character): character.encode("unicode_escape").decode() for character in hidden})


class Task:
    """A task: where its rows come from, how a row becomes a question, and which answers are correct.

    Subclasses set the attributes below and implement the methods that raise NotImplementedError. A row must have all
    `columns`. The first of `response_formats` is the default; "plain" asks a base model, which has never seen a chat.
    A completion is a string or TRL's message list.
    """

    name: str
    hub_id: str
    hub_config: str | None = None
    columns: tuple[str, ...]
    response_formats: tuple[str, ...]

    def __init__(self, response_format: str | None = None):
        response_format = response_format or self.response_formats[0]
        if response_format not in self.response_formats:
            raise WorkshopError(
                f"The task {self.name!r} has no response format {response_format!r}: "
                f"choose one of {', '.join(self.response_formats)}."
            )
        self.response_format = response_format

    def prompt(self, row: Row) -> list[dict[str, str]] | str:
        """Return the system and the user message for a row; in the format "plain" the question and a line break."""
        if self.response_format == "plain":
            return self.question(row) + "\n"
        return [{"role": "system", "content": self.system_prompt}, {"role": "user", "content": self.question(row)}]

    @property
    def system_prompt(self) -> str:
        """Return the message that asks for the response format."""
        raise NotImplementedError

    def question(self, row: Row) -> str:
        """Return what is asked in a row, without a word on the response format."""
        raise NotImplementedError

    def gold(self, row: Row) -> str:
        """Return the gold answer of a row as a string."""
        raise NotImplementedError

    def extract(self, completion: Completion) -> str | None:
        """Return the answer that the completion gives in the task's response format, or None if it gives none."""
        raise NotImplementedError

    def has_format(self, completion: Completion) -> bool:
        """Return whether the whole completion has the task's response format."""
        raise NotImplementedError

    def is_correct(self, completion: Completion, row: Row) -> bool:
        """Return whether the completion answers the row in the response format: the one definition of correct."""
        raise NotImplementedError

    def is_correct_lenient(self, completion: Completion, row: Row) -> bool:
        """Return whether the completion answers the row in any format."""
        raise NotImplementedError

    def attempts(self, completion: Completion) -> int:
        """Count the lines of the completion that hold an equals sign: how many attempts it makes."""
        return sum("=" in line for line in completion_text(completion).splitlines())

    def demonstration(self, row: Row) -> str:
        """Return a completion to imitate in supervised fine-tuning; the same row always gives the same text."""
        raise NotImplementedError

    def generate(self, split: str, rng: random.Random) -> tuple[str, Row]:
        """Draw one synthetic problem: a key that equal problems share, and its row."""
        raise NotImplementedError

    def check_row(self, row: Row) -> Row:
        """Return the row in the form that the rewards expect, or raise RowError."""
        raise NotImplementedError

    def synthetic_rows(self, split: str, limit: int | None) -> list[Row]:
        """Generate different rows without a download; the test split shares no problem with the training split."""
        rng = random.Random(f"{self.name} {split}")
        wanted = limit or SYNTHETIC_ROWS[split]
        rows: dict[str, Row] = {}
        while len(rows) < wanted:
            key, row = self.generate(split, rng)
            rows.setdefault(key, row)
        return list(rows.values())

    def dataset(self, split: str, limit: int | None = None, source: str = "synthetic") -> Dataset:
        """Load a split as a dataset with the column `prompt` next to the task's own columns.

        Args:
            split: "train" or "test".
            limit: the number of rows to keep, from the first; None keeps all.
            source: "synthetic", "hub", the path of a JSON Lines file, or a folder with train.jsonl and test.jsonl.

        Raises:
            WorkshopError: the split or source is unknown, or the limit is below 1.
            RowError: a row cannot be used; the message names file, line and reason.
        """
        if split not in ("train", "test"):
            raise WorkshopError(f"There is no split {split!r}: choose 'train' or 'test'.")
        if limit is not None and limit < 1:
            raise WorkshopError(f"limit={limit} leaves no rows: give a number of at least 1, or None for all rows.")
        if source == "synthetic":
            located = [(f"synthetic {self.name}, row {i}", row)
                       for i, row in enumerate(self.synthetic_rows(split, limit), 1)]
        elif source == "hub":
            located = load_hub_rows(self.hub_id, self.hub_config, split, limit)
        else:
            located = read_json_lines(source, split, limit)
        rows = []
        for where, row in located:
            missing = [column for column in self.columns if row.get(column) in (None, "", [])]
            if missing:
                raise RowError(
                    f"{where}: the column {missing[0]!r} is missing or empty. A {self.name} row needs the columns "
                    f"{', '.join(self.columns)}; this row has {', '.join(map(str, row)) or 'none'}. "
                    "Fill in the column or remove the row."
                )
            try:
                row = self.check_row(row)
            except RowError as error:
                raise RowError(f"{where}: {error}") from None
            rows.append({"prompt": self.prompt(row), **row})
        if not rows:
            raise RowError(f"The {split} split of {source} has no rows: add at least one.")
        try:
            return Dataset.from_list(rows)
        except (ValueError, TypeError, OverflowError) as error:
            raise RowError(f"The rows of {source} do not form a table ({str(error)[:200]}): give a column the same "
                           "type in every row.") from None


def read_json_lines(source: str, split: str, limit: int | None) -> list[tuple[str, Row]]:
    """Read (location, row) pairs from a .jsonl file, or from SPLIT.jsonl in a folder."""
    path = Path(source)
    if path.is_dir():
        path = path / f"{split}.jsonl"
    if not path.is_file():
        raise WorkshopError(
            f"source={source!r} is neither 'synthetic' nor 'hub', and there is no file {path}: give the path of a "
            ".jsonl file, or of a folder with train.jsonl and test.jsonl."
        )
    located = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if limit is not None and len(located) == limit:
                break
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line  # the mark that some editors put first
            if not line.strip():
                continue
            where = f"{path.name}, line {number}"
            if len(line) > MOST_BYTES:
                raise RowError(f"{where}: the line has {len(line):,} bytes, and at most {MOST_BYTES:,} are read. "
                               "Shorten or remove this line.")
            try:
                row = json.loads(line.decode("utf-8"), parse_int=_whole_number, parse_constant=_whole_number)
                json.dumps(row, ensure_ascii=False).encode("utf-8")  # fails if half of a surrogate pair is missing
            except UnicodeError:
                raise RowError(f"{where}: the text is not valid UTF-8. Save the file as UTF-8, or remove this "
                               "line.") from None
            except json.JSONDecodeError as error:
                raise RowError(f"{where}: not valid JSON ({error.msg} at column {error.colno}). "
                               "Every line must be one JSON object: fix or remove this line.") from None
            except (OverflowError, RecursionError) as error:
                problem = "brackets are nested too deeply" if isinstance(error, RecursionError) else str(error)
                raise RowError(f"{where}: {problem}. Fix or remove this line.") from None
            if not isinstance(row, dict):
                raise RowError(f"{where}: the line is a JSON {type(row).__name__}, not an object. Write it as "
                               '{"column": value, ...} or remove it.')
            located.append((where, row))
    return located


def _whole_number(text: str) -> int:
    """Return a JSON number as a 64-bit integer, which is what a dataset holds; NaN and infinity have none."""
    if len(text) > 20 or text.strip("-").isalpha() or not -(2**63) <= int(text) < 2**63:
        raise OverflowError(f"the number {text[:20]}{'…' * (len(text) > 20)} does not fit into 64 bits")
    return int(text)


def load_hub_rows(hub_id: str, config: str | None, split: str, limit: int | None) -> list[tuple[str, Row]]:
    """Load (location, row) pairs of a dataset on the Hugging Face Hub (needs a network or a filled cache)."""
    wanted = split if limit is None else f"{split}[:{limit}]"
    try:
        rows = load_dataset(hub_id, config, split=wanted).to_list()
    except OSError as error:  # ConnectionError is one
        raise WorkshopError(
            f"The dataset {hub_id!r} could not be loaded from the Hub ({type(error).__name__}): check the network and "
            "unset HF_HUB_OFFLINE, or work offline with source='synthetic' or the path of a .jsonl file."
        ) from error
    return [(f"{hub_id}, {split}, row {i}", row) for i, row in enumerate(rows, 1)]
