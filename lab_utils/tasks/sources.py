"""Read rows from a file or from the Hub, as pairs of a location for messages, such as "mine.csv, line 7", and a row.

A row that cannot be read comes as its RowError, so that a caller can count all of them.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetsError

from .. import WorkshopError

MOST_BYTES = 1_000_000  # of one line or cell
SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
HUB_ID = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(:(?P<config>[\w.-]+))?")
TEST_NAMES = ("test", "validation")  # of splits on the Hub

Row = dict[str, Any]


class RowError(WorkshopError):
    """A row cannot be used. The message says where the row is, what is wrong with it and what to do."""


Located = list[tuple[str, Row | RowError]]


def read_source(source: str) -> dict[str, Located]:
    """Return the rows of a file, a folder or a dataset on the Hub by split: "train", and "test" if there is one."""
    path = Path(source)
    if path.is_file():
        return {"train": read_file(path)}
    if path.is_dir():
        return {split: read_file(file) for split in ("train", "test") if (file := split_file(path, split))}
    found = on_hub(source)
    if found is None:
        raise WorkshopError(
            f"source={source!r} is neither 'synthetic' nor 'hub', and there is no file {path}: give the path of a "
            ".jsonl, .csv or .parquet file, of a folder with train.jsonl and test.jsonl, or OWNER/NAME of a dataset on "
            "the Hub. A path in a recipe counts from the recipe's folder, with --set from the current one.")
    splits = load_hub(found["id"], found["config"])
    tests = [name for name in TEST_NAMES if name in splits]
    named = {"train": "train", **({"test": tests[0]} if tests else {})}
    return {split: hub_rows(found["id"], name, splits[name]) for split, name in named.items() if name in splits}


def on_hub(source: str) -> re.Match | None:
    """Return the parts `id` and `config` of a source that names a dataset on the Hub, or None for a path."""
    path = Path(source)
    return None if path.suffix in SUFFIXES or path.exists() else HUB_ID.fullmatch(source)


def split_file(folder: Path, split: str) -> Path | None:
    """Return the file of a split in a folder, or None; raise WorkshopError if there are two."""
    found = [path for suffix in SUFFIXES if (path := folder / f"{split}{suffix}").is_file()]
    if len(found) > 1:
        raise WorkshopError(f"{folder} has {' and '.join(path.name for path in found)}: remove or rename all but one.")
    return found[0] if found else None


def read_file(path: Path) -> Located:
    """Read a .jsonl, .csv, .tsv or .parquet file; any other suffix is read as JSON Lines."""
    try:
        if path.suffix == ".parquet":
            return read_parquet(path)
        return [*(read_csv(path) if path.suffix in (".csv", ".tsv") else read_json_lines(path))]
    except OSError as error:
        raise WorkshopError(f"{path} cannot be read ({error.strerror or error}): check its permissions, or copy it "
                            "again.") from None


# --- JSON Lines ------------------------------------------------------------------------------------------------------


def read_json_lines(path: Path) -> Iterator[tuple[str, Row | RowError]]:
    with path.open("rb") as lines:
        if lines.peek(100).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"[":
            raise RowError(f"{path.name} starts with '[', like a JSON list. Write one object per line: "
                           f"python -c \"import json; rows = json.load(open('{path}', encoding='utf-8-sig')); "
                           f"open('{path.with_name(path.stem + '-rows.jsonl')}', 'w').writelines(json.dumps(row) + "
                           "chr(10) for row in rows)\"")
        for number, line in enumerate(lines, 1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line  # the mark that some editors put first
            if line.strip():
                where = f"{path.name}, line {number}"
                try:
                    yield where, json_row(line)
                except RowError as error:
                    yield where, RowError(f"{where}: {error}")


def json_row(line: bytes) -> Row:
    if len(line) > MOST_BYTES:
        raise RowError(f"the line has {len(line):,} bytes, and at most {MOST_BYTES:,} are read. Shorten or remove this "
                       "line.")
    try:
        row = json.loads(line.decode("utf-8"), parse_int=_whole_number, parse_constant=_whole_number)
        json.dumps(row, ensure_ascii=False).encode("utf-8")  # fails if half of a surrogate pair is missing
    except UnicodeError:
        raise RowError("the text is not valid UTF-8. Save the file as UTF-8, or remove this line.") from None
    except json.JSONDecodeError as error:
        raise RowError(f"not valid JSON ({error.msg.removesuffix(' at')} at column {error.colno}). Every line must be "
                       "one JSON object: fix or remove this line.") from None
    except (OverflowError, RecursionError) as error:
        problem = "brackets are nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise RowError(f"{problem}. Fix or remove this line.") from None
    if not isinstance(row, dict):
        raise RowError(f'the line is a JSON {type(row).__name__}, not an object. Write it as {{"column": value, ...}} '
                       "or remove it.")
    return row


def _whole_number(text: str) -> int:
    """Return a JSON number as a 64-bit integer, which is what a dataset holds; NaN and infinity have none."""
    if len(text) > 20 or text.strip("-").isalpha() or not -(2**63) <= int(text) < 2**63:
        raise OverflowError(f"the number {text[:20]}{'…' * (len(text) > 20)} does not fit into 64 bits")
    return int(text)


# --- CSV and Parquet -------------------------------------------------------------------------------------------------


def read_csv(path: Path) -> Iterator[tuple[str, Row | RowError]]:
    """Read a table with a header line, separated by commas, semicolons or tabs.

    The cells of a column become whole numbers, or lists such as [9, 14, 20], if all of them can; otherwise they stay
    text.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise RowError(f"{path.name}, line {line}: the text is not valid UTF-8. Save the file as UTF-8 (in Excel: CSV "
                       "UTF-8).") from None
    header = text.split("\n", 1)[0]
    separator = max(",;\t", key=header.count)
    csv.field_size_limit(MOST_BYTES)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    names, rows, start = None, [], 1
    try:
        for cells in reader:
            where, start = f"{path.name}, line {start}", reader.line_num + 1
            if names is None:
                names = [cell.strip() for cell in cells]
                if not all(names) or len(set(names)) < len(names):
                    raise RowError(f"{where}: the header {names} has empty or repeated names. The first line must name "
                                   "every column once (with pandas: to_csv(path, index=False)).")
            elif len(cells) != len(names) and cells:
                rows.append((where, RowError(f"{where}: {len(cells)} cells, but the header has {len(names)} "
                                             f"({', '.join(names)}). Put text with {separator!r} into double quotes.")))
            elif any(cell.strip() for cell in cells):
                rows.append((where, dict(zip(names, cells, strict=True))))
    except csv.Error as error:
        raise RowError(f"{path.name}, line {start}: not valid CSV ({error}). Probably a double quote is not closed: "
                       'write a quote inside a cell twice, "".') from None
    good = [row for _, row in rows if isinstance(row, dict)]
    for name in names or ():
        if values := _parsed([row[name] for row in good]):
            for row, value in zip(good, values, strict=True):
                row[name] = value
    return iter(rows)


def _parsed(cells: list[str]) -> list[Any] | None:
    """Return the cells of a column as whole numbers or as lists, None for an empty one; None if some are other text."""
    if not all(re.fullmatch(r"-?(0|[1-9]\d{0,17})|\[.*\]|", cell.strip()) for cell in cells):
        return None
    try:
        values = [json.loads(cell) if cell.strip() else None for cell in cells]
    except ValueError:
        return None
    return values if len({type(value) for value in values if value is not None}) == 1 else None


def read_parquet(path: Path) -> Located:
    try:
        table = pd.read_parquet(path, dtype_backend="numpy_nullable")  # whole numbers stay whole beside empty cells
        rows = json.loads(table.to_json(orient="records", double_precision=15, date_format="iso"))
    except (ValueError, NotImplementedError) as error:  # pyarrow's errors
        raise RowError(f"{path.name}: not a Parquet file that can be read ({str(error)[:200]}). Write it again, or "
                       "save it as CSV.") from None
    return [(f"{path.name}, row {number}", row) for number, row in enumerate(rows, 1)]


# --- The Hub ---------------------------------------------------------------------------------------------------------


def load_hub_rows(hub_id: str, config: str | None, split: str, limit: int | None) -> Located:
    """Load the first rows of one split of a task's own dataset (needs a network or a filled cache)."""
    return hub_rows(hub_id, split, load_hub(hub_id, config, split if limit is None else f"{split}[:{limit}]"))


def hub_rows(hub_id: str, split: str, rows: Any) -> Located:
    return [(f"{hub_id}, {split}, row {i}", row) for i, row in enumerate(rows.to_list(), 1)]


def load_hub(hub_id: str, config: str | None, split: str | None = None) -> Any:
    """Load a dataset on the Hub, one split or all of them by name; raise WorkshopError if that fails."""
    try:
        found = load_dataset(hub_id, config, split=split)
    except OSError as error:  # ConnectionError is one
        raise WorkshopError(
            f"The dataset {hub_id!r} could not be loaded from the Hub ({type(error).__name__}): check the name and the "
            "network, and unset HF_HUB_OFFLINE, or work offline with source='synthetic' or the path of a .jsonl file."
        ) from error
    except (ValueError, RuntimeError, DatasetsError) as error:  # several configurations, a script, damaged files
        raise WorkshopError(f"The dataset {hub_id!r} cannot be used as it is ({str(error)[:300]}): name one of its "
                            "configurations, OWNER/NAME:CONFIG, or download it and give the path of a file.") from error
    if isinstance(found, DatasetDict) and "train" not in found:
        raise WorkshopError(f"The dataset {hub_id!r} has no split 'train', only {', '.join(found)}: download it and "
                            "save a file train.jsonl.")
    return found
