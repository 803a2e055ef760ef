"""What every task offers: rows become chat prompts, and one definition of "correct" judges completions."""

from __future__ import annotations

import hashlib
import random
import unicodedata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from datasets import Dataset

from .. import WorkshopError
from ..config.errors import did_you_mean
from .answers import extract_hash_answer, extract_last_number, extract_xml_answer, numbers_match, parse_number
from .formats import has_reasoning_format, has_think_format
from .sources import Located, Row, RowError, load_hub_rows, read_source

SYNTHETIC_ROWS = {"train": 8192, "test": 1024}  # rows of a synthetic split when no limit is given
TEST_SHARE = 10  # one question in so many is for tests, if a dataset has no test split
LEAST_TO_SPLIT = 10  # questions
SHOWN_PROBLEMS = 5
WHERE = "where"  # the key of a row's place in its file, until rows become a dataset
SYSTEM_PROMPTS = {
    "reasoning": "Respond in the following format:\n<reasoning>\n...\n</reasoning>\n<answer>\n...\n</answer>",
    "think": "You are a helpful assistant. Think step by step inside <think> </think>, "
             "then give the final answer inside <answer> </answer>.",
    "hash": "Solve the problem step by step. End with a line of the form #### N, where N is the answer as a number.",
}

Completion = str | list[dict[str, str]]


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


@dataclass
class RowReport:
    """What became of the rows of a split: those to use, and the places of those that were left out, with reasons."""

    rows: list[Row] = field(default_factory=list)
    total: int = 0
    bad: list[str] = field(default_factory=list)  # a sentence each
    repeated: list[str] = field(default_factory=list)  # the same as an earlier row
    in_test: list[str] = field(default_factory=list)  # training rows whose question is in the test split
    beyond: int = 0  # good rows after the first `limit`
    note: str | None = None  # on how the splits were made


class Task:
    """A task: where its rows come from, how a row becomes a question, and which answers are correct.

    This class is the task "qa": the columns `question` and `answer`, and a correct answer is the same number or text.
    Other tasks are subclasses that set the attributes below and replace methods. A row must have all `columns`. The
    first of `response_formats` is the default; "plain" asks a base model, which has never seen a chat. A completion is
    a string or TRL's message list.
    """

    name: str = "qa"
    hub_id: str | None = None
    hub_config: str | None = None
    columns: tuple[str, ...] = ("question", "answer")
    response_formats: tuple[str, ...] = ("think", "reasoning", "hash", "plain")
    own = False  # whether the task is in a file of the user's own

    def __init__(self, response_format: str | None = None, column_names: Mapping[str, str] | None = None,
                 drop_bad_rows: bool = False):
        """Take the names that the task's columns have in the data (`task.columns`), and what to do with bad rows."""
        response_format = response_format or self.response_formats[0]
        if response_format not in self.response_formats:
            raise WorkshopError(
                f"The task {self.name!r} has no response format {response_format!r}: "
                f"choose one of {', '.join(self.response_formats)}."
            )
        self.response_format = response_format
        self.column_names, self.drop_bad_rows = dict(column_names or {}), drop_bad_rows

    def prompt(self, row: Row) -> list[dict[str, str]] | str:
        """Return the system and the user message for a row; in the format "plain" the question and a line break."""
        if self.response_format == "plain":
            return self.question(row) + "\n"
        return [{"role": "system", "content": self.system_prompt}, {"role": "user", "content": self.question(row)}]

    @property
    def system_prompt(self) -> str:
        """Return the message that asks for the response format."""
        return SYSTEM_PROMPTS[self.response_format]

    def question(self, row: Row) -> str:
        """Return what is asked in a row, without a word on the response format."""
        return row["question"]

    def typed_row(self, query: str) -> Row:
        """Return a row, without an answer, for a question that the user types."""
        return {"question": query}

    def gold(self, row: Row) -> str:
        """Return the gold answer of a row as a string."""
        return str(row["answer"])

    def extract(self, completion: Completion) -> str | None:
        """Return the answer that the completion gives in the task's response format, or None if it gives none."""
        text = completion_text(completion)
        if self.response_format == "hash":
            return extract_hash_answer(text)
        if self.response_format == "plain":
            return text.strip().rpartition("\n")[2] or None
        return extract_xml_answer(text)

    def has_format(self, completion: Completion) -> bool:
        """Return whether the whole completion has the task's response format."""
        if self.response_format in ("hash", "plain"):
            return self.extract(completion) is not None
        text = completion_text(completion)
        return has_reasoning_format(text) if self.response_format == "reasoning" else has_think_format(text)

    def is_correct(self, completion: Completion, row: Row) -> bool:
        """Return whether the completion answers the row in the response format: the one definition of correct."""
        return same_answer(self.extract(completion), self.gold(row))

    def is_correct_lenient(self, completion: Completion, row: Row) -> bool:
        """Return whether the completion answers the row in any format."""
        text, gold = completion_text(completion), self.gold(row)
        return (self.is_correct(completion, row) or same_answer(text.strip().rpartition("\n")[2], gold)
                or numbers_match(extract_last_number(text), gold))

    def attempts(self, completion: Completion) -> int:
        """Count the lines of the completion that hold an equals sign: how many attempts it makes."""
        return sum("=" in line for line in completion_text(completion).splitlines())

    def demonstration(self, row: Row) -> str:
        """Return a completion to imitate in supervised fine-tuning; the same row always gives the same text.

        It is the row's `completion`, if that has the response format. Otherwise the completion is taken for the
        reasoning; a row without one gets only the answer.
        """
        steps, answer = row.get("completion") or f"The answer is {self.gold(row)}.", self.gold(row)
        return steps if self.response_format != "plain" and self.has_format(steps) else self.formatted(steps, answer)

    def formatted(self, steps: str, answer: str) -> str:
        """Return reasoning and answer in the response format."""
        return {
            "reasoning": f"<reasoning>\n{steps}\n</reasoning>\n<answer>\n{answer}\n</answer>",
            "think": f"<think>{steps}</think><answer>{answer}</answer>",
            "hash": f"{steps}\n#### {answer}",
            "plain": f"{steps}\n{answer}",
        }[self.response_format]

    def generate(self, split: str, rng: random.Random) -> tuple[str, Row]:
        """Draw one synthetic problem: a key that equal problems share, and its row."""
        raise WorkshopError(f"The task {self.name!r} has no synthetic problems: set task.source to the path of a file, "
                            "or to OWNER/NAME of a dataset on the Hub.")

    def check_row(self, row: Row) -> Row:
        """Return the row in the form that the rewards expect, or raise RowError."""
        kept = {name: row[name] for name in (*self.columns, "completion") if row.get(name) is not None}
        for name in {"question", "answer", "completion"} & kept.keys():
            if not isinstance(kept[name], str | int | float):
                raise RowError(f"{name}={str(kept[name])[:60]!r} is a {type(kept[name]).__name__}: give text or a "
                               "number.")
            whole = isinstance(kept[name], float) and kept[name].is_integer()  # a table with gaps has 42.0 for 42
            kept[name] = str(int(kept[name]) if whole else kept[name]).strip()
        if self.response_format == "hash" and "answer" in kept and parse_number(kept["answer"]) is None:
            raise RowError(f"answer={kept['answer'][:60]!r} is not a number, as the response format 'hash' needs: "
                           "set task.response_format=think.")
        return kept

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
            source: "synthetic", "hub", OWNER/NAME[:CONFIG] on the Hub, or the path of a .jsonl, .csv or .parquet file
                or of a folder with train.* and test.*. Of a dataset without a test split, a tenth is held out.

        Raises:
            WorkshopError: the split or source is unknown, or the limit is below 1.
            RowError: a row cannot be used; the message names file, line and reason.
        """
        if split not in ("train", "test"):
            raise WorkshopError(f"There is no split {split!r}: choose 'train' or 'test'.")
        if limit is not None and limit < 1:
            raise WorkshopError(f"limit={limit} leaves no rows: give a number of at least 1, or None for all rows.")
        report = self.report(split, limit, source)
        dropped = {"rows that repeat an earlier one": report.repeated,
                   "training rows whose question is in the test split": report.in_test}
        if report.bad and self.drop_bad_rows:
            dropped["rows that cannot be used"] = report.bad
        elif report.bad:
            more = len(report.bad) - SHOWN_PROBLEMS
            remedy = " To leave them out: --set task.drop_bad_rows=true" if report.rows else ""
            raise RowError("\n".join([*report.bad[:SHOWN_PROBLEMS], *([f"… and {more} more."] if more > 0 else [])])
                           + f"\n{len(report.bad)} of {report.total} rows cannot be used.{remedy}")
        for what, places in dropped.items():
            if places:
                left_out = f"left out {len(places)} {what}, such as {places[0]}"
                warnings.warn(f"{source}: {left_out}", stacklevel=1)  # from here, so that a run says it once
        if report.note:
            warnings.warn(f"{source}: {report.note}", stacklevel=1)
        if not report.rows:
            raise RowError(f"The {split} split of {source} has no rows that can be used: add at least one.")
        return as_dataset(report.rows, source)

    def report(self, split: str, limit: int | None = None, source: str = "synthetic") -> RowReport:
        """Return the rows of a split with their prompts, and what was left out and why; arguments as in `dataset`."""
        if source == "synthetic":
            located = [(f"synthetic {self.name}, row {i}", row)
                       for i, row in enumerate(self.synthetic_rows(split, limit), 1)]
            return self._checked(located)
        if source == "hub":
            if self.hub_id is None:
                raise WorkshopError(f"The task {self.name!r} has no dataset of its own on the Hub: set task.source to "
                                    "the path of a file, or to OWNER/NAME.")
            return self._checked(load_hub_rows(self.hub_id, self.hub_config, split, limit))
        splits = read_source(source)
        self._check_column_names(splits, source)
        if split not in splits and Path(source).is_dir():
            raise WorkshopError(f"{source} has no {split}.jsonl, {split}.csv or {split}.parquet: add one of them, or "
                                "give the path of a single file, of which one row in ten is for tests.")
        reports = {name: self._unrepeated(self._checked(rows)) for name, rows in splits.items()}
        if "test" not in reports:
            report = hold_out(self, reports["train"], split)
        else:
            report = reports[split]
            if split == "train":
                asked = set(map(self._asked, reports["test"].rows))
                report.in_test = [row[WHERE] for row in report.rows if self._asked(row) in asked]
                report.rows = [row for row in report.rows if self._asked(row) not in asked]
        report.beyond = len(report.rows[limit:]) if limit else 0
        report.rows = report.rows[:limit]
        return report

    def _asked(self, row: Row) -> str:
        """Return the question up to white space: two rows with the same one are not for training and for tests."""
        return " ".join(self.question(row).split())

    def _check_column_names(self, splits: Mapping[str, Located], source: str) -> None:
        """Raise WorkshopError if a column that a row may lack, such as `completion`, is mapped to one that all lack."""
        there = {name: None for rows in splits.values() for _, row in rows if isinstance(row, dict) for name in row}
        for name, given in self.column_names.items():
            if there and given not in there and name not in self.columns:
                raise WorkshopError(f"task.columns.{name} = {given!r}, but no row of {source} has a column {given!r}."
                                    f"{did_you_mean(given, there)} The columns are {', '.join(map(str, there))[:200]}: "
                                    "correct the name, or leave it out.")

    def _checked(self, located: Located) -> RowReport:
        """Check every row, and give it its prompt."""
        report = RowReport(total=len(located))
        for where, row in located:
            try:
                report.rows.append({**self._checked_row(row), WHERE: where})
            except RowError as error:
                report.bad.append(str(error) if error is row else f"{where}: {error}")
        return report

    def _checked_row(self, row: Row | RowError) -> Row:
        if isinstance(row, RowError):
            raise row
        given, row = list(row), self._with_own_names(row)
        missing = [column for column in self.columns if is_empty(row.get(column))]
        if missing:
            theirs = self.column_names.get(missing[0], missing[0])
            hint = "" if theirs in given else did_you_mean(theirs, given)
            here = f"the data's column {self.column_names[missing[0]]!r}" if missing[0] in self.column_names else \
                f"the column {missing[0]!r}"
            raise RowError(
                f"{here} is missing or empty. A {self.name} row needs the columns {', '.join(self.columns)}; this row "
                f"has {', '.join(map(str, given))[:200] or 'none'}.{hint} Fill in the column or remove the row; "
                f"if it has another name, --set task.columns.{missing[0]}=NAME")
        for name, value in row.items():
            if isinstance(value, str) and any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in set(value)):
                raise RowError(f"{name}='{visible(value[:60])}' has control characters, such as NUL: remove them.")
        try:
            checked = self.check_row(row)
            extra = {name: row[name] for name in self.column_names if name in row and name not in checked}
            if not isinstance(self.question(checked), str) or not isinstance(self.gold(checked), str):
                raise TypeError("question and gold must return text")
            prompt = self.prompt(checked)
            if not is_prompt(prompt):
                raise TypeError("prompt must return text, or messages such as {'role': 'user', 'content': 'text'}, not "
                                f"{str(prompt)[:200]!r}")
            return {"prompt": prompt, **checked, **extra}
        except WorkshopError:
            raise
        except Exception as error:
            if not self.own:
                raise
            raise RowError(f"{type(self).__name__} raised {type(error).__name__}: {error}. Correct the task's file, or "
                           "the row.") from error

    def _with_own_names(self, row: Row) -> Row:
        """Return a row with the task's column names and line breaks; an answer may be that of the completion."""
        theirs = {name: row[given] for name, given in self.column_names.items() if given in row}
        taken = {*self.column_names, *self.column_names.values()}
        row = {**{name: value for name, value in row.items() if name not in taken}, **theirs}
        row = {name: value.replace("\r\n", "\n") if isinstance(value, str) else value for name, value in row.items()}
        completion = row.get("completion")
        if "answer" in self.columns and row.get("answer") in (None, "") and isinstance(completion, str) and completion:
            row["answer"] = self.extract(completion)
            if row["answer"] is None:
                raise RowError(f"the row has no answer, and its completion ({visible(completion[-60:])!r}) has none in "
                               f"the response format {self.response_format!r}: write it like "
                               f"{self.formatted('...', '42')!r}, or add an answer.")
        return row

    def _unrepeated(self, report: RowReport) -> RowReport:
        """Leave out rows that are there before, and call a question bad that has two different answers."""
        first: dict[str, Row] = {}
        seen, kept = set(), []
        for row in report.rows:
            where, key = row[WHERE], repr({name: row[name] for name in row if name != WHERE})
            before = first.setdefault(self._asked(row), row)
            if self.gold(before) != self.gold(row):
                report.bad.append(f"{where}: the question of {before[WHERE]} again, with the answer "
                                  f"{visible(self.gold(row)[:60])!r} instead of {visible(self.gold(before)[:60])!r}. "
                                  "Remove one of the two rows.")
            elif key in seen:
                report.repeated.append(where)
            else:
                seen.add(key)
                kept.append(row)
        report.rows = kept
        return report


def as_dataset(rows: list[Row], source: str) -> Dataset:
    """Return rows as a dataset; raise RowError if the values of a column have different types."""
    names = dict.fromkeys(name for row in rows for name in row if name != WHERE)  # the first may lack some
    try:
        return Dataset.from_list([{name: row.get(name) for name in names} for row in rows])
    except (ValueError, TypeError, OverflowError) as error:
        kinds: dict[str, dict[str, str]] = {name: {} for name in names}  # the first place of each type
        for name, row in product(names, rows):
            if row.get(name) is not None:
                kinds[name].setdefault(type(row[name]).__name__, row.get(WHERE, "a row"))
        mixed = [f"{name} ({', '.join(f'{kind} in {where}' for kind, where in found.items())})"
                 for name, found in kinds.items() if len(found) > 1]
        raise RowError(f"The rows of {source} do not form a table, because of "
                       f"{' and '.join(mixed) or f'a column ({str(error)[:200]})'}: give a column the same type in "
                       "every row.") from None


def is_prompt(prompt: object) -> bool:
    """Say whether a prompt is text or a list of messages; chat templates leave out a message of another form."""
    return isinstance(prompt, str) or isinstance(prompt, list) and len(prompt) > 0 and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and isinstance(message.get("content"), str)
        for message in prompt)


def is_empty(value: object) -> bool:
    return value in (None, []) or isinstance(value, str) and not value.strip()


def hold_out(task: Task, report: RowReport, split: str) -> RowReport:
    """Keep the rows of one split of a dataset that has only one: a tenth of the questions, chosen by hash, is test."""
    questions = sorted(set(map(task._asked, report.rows)), key=lambda text: hashlib.sha256(text.encode()).digest())
    if len(questions) < LEAST_TO_SPLIT:
        if not questions:
            return report
        report.note = (f"{len(questions)} questions are too few to keep some for tests, so training and test split are "
                       "the same: accuracy says nothing about new questions")
        return report
    test = set(questions[: len(questions) // TEST_SHARE])
    report.rows = [row for row in report.rows if (task._asked(row) in test) == (split == "test")]
    return report


def same_answer(predicted: str | None, gold: str) -> bool:
    """Return whether two answers are the same number, or the same text up to case, white space and a final period.

    >>> same_answer("$1,000.00", "1000"), same_answer(" Mount  Everest.", "mount everest"), same_answer(None, "a")
    (True, True, False)
    """
    if predicted is None or parse_number(gold) is not None:
        return numbers_match(predicted, gold)
    return " ".join(predicted.casefold().split()).rstrip(".") == " ".join(gold.casefold().split()).rstrip(".")
