"""Code of your own in a recipe: `my_rewards.py:brevity` names a function, `my_task.py` a task, in a file beside it.

A configuration in memory has absolute paths. A run directory has a copy of every file in its folder `code`, and its
config.yaml names these copies, so that a run can be read after the originals have changed.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .. import OWN_CODE
from .errors import ConfigError, did_you_mean, shown

OWN = re.compile(r"(?P<path>.+\.py)(?::(?P<name>\w+))?")
CODE = "code"  # the folder for copies, in a run directory and in the source of a SageMaker job


def is_own(reference: Any) -> bool:
    """Say whether a name in a recipe refers to a Python file instead of the package."""
    return isinstance(reference, str) and OWN.fullmatch(reference) is not None


def short_name(reference: str) -> str:
    """Return the name of what a reference means, under which it is logged.

    >>> short_name("my_rewards.py:brevity"), short_name("format_reward"), short_name("/home/me/my_task.py")
    ('brevity', 'format_reward', 'my_task')
    """
    found = OWN.fullmatch(reference)
    return (found["name"] or Path(found["path"]).stem) if found else reference


def own_files(values: Mapping[str, Any]) -> Iterator[tuple[str, Path]]:
    """Yield the section ("task" or "rewards") and the file of every reference to code of the user's own."""
    for section, reference in _references(values):
        yield section, Path(OWN.fullmatch(reference)["path"])


def located(values: Mapping[str, Any], *folders: Path) -> dict[str, Any]:
    """Return settings whose references have absolute paths, from the first of `folders` that has the file.

    Raises:
        ConfigError: none of the folders has it.
    """
    def locate(path: Path, reference: str) -> Path:
        for folder in folders:
            if (found := (folder / path).resolve()).is_file():
                return found
        there = [file.name for file in folders[0].glob("*.py")] if folders[0].is_dir() else []
        raise ConfigError(f"{reference} names a file that does not exist: looked for {path} in "
                          f"{' and '.join(map(str, folders))}.{did_you_mean(path.name, there)} Correct the path; it "
                          "counts from the recipe's folder, with --set from the current one.")

    return _renamed(values, locate)


def portable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings whose references name the copies of the files, code/FILE.py."""
    return _renamed(values, lambda path, reference: Path(CODE) / path.name)


def problems(values: Mapping[str, Any]) -> Iterator[str]:
    """Yield which names cannot be told apart in a run directory or in its metrics."""
    files, names = {}, {}
    for _, path in own_files(values):
        if files.setdefault(path.name, path) != path:
            yield f"{files[path.name]} and {path} have one file name: rename one of them."
    for reference in values.get("rewards") or {}:
        if is_own(reference) and not OWN.fullmatch(reference)["name"]:
            yield f"rewards.{reference} names a file without a function: write {reference}:FUNCTION."
        elif (other := names.setdefault(short_name(reference), reference)) != reference:
            yield (f"rewards.{other} and rewards.{reference} would both be logged as {short_name(reference)}: rename "
                   "one of the functions.")


def load_object(reference: str, kind: str, fits: Callable[[Any], bool]) -> Any:
    """Return what a reference names; without a name, the only object of the kind that its file defines.

    Raises:
        ConfigError: the file cannot be imported, or has no such object.
    """
    found = OWN.fullmatch(reference)
    path, name = Path(found["path"]), found["name"]
    module = load_file(path)
    there = {key: value for key, value in vars(module).items()
             if fits(value) and (getattr(value, "__module__", "") == module.__name__ or key == name)}
    if name is None and len(there) == 1:
        return next(iter(there.values()))
    if name in there:
        return there[name]
    listed = ", ".join(there) or "none"
    if name is None:
        raise ConfigError(f"{path} must define one {kind}, and it has {len(there)} ({listed}): define or name "
                          f"one, {path.name}:NAME.")
    raise ConfigError(f"{path} has no {kind} {name!r}.{did_you_mean(name, there)} It has: {listed}.")


def load_file(path: Path) -> types.ModuleType:
    """Import a Python file by its path. A file whose text has changed is imported again."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): correct the path, or copy the file "
                          "there.") from None
    return _import(path, text)


class _Source(importlib.machinery.SourceFileLoader):
    """Reads the file each time: compiled copies are by the second, and would be written into the user's folder."""

    def path_stats(self, path):
        raise OSError


@functools.lru_cache(maxsize=64)
def _import(path: Path, text: bytes) -> types.ModuleType:
    name = f"{OWN_CODE}{path.stem}_{len(sys.modules)}"  # hides no other module, and differs after a change
    spec = importlib.util.spec_from_file_location(name, path, loader=_Source(name, str(path)))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        problem = str(error.msg if isinstance(error, SyntaxError) else error).strip()[:300]
        raise ConfigError(f"{path}{in_line(error, path)}: the file cannot be imported ({type(error).__name__}: "
                          f"{problem}). Correct it until `python {path.name}` runs without an error; it can import "
                          "lab_utils and installed packages, not files beside it.") from error
    return module


def in_line(error: BaseException, path: Path) -> str:
    """Return ", line N" for the line of a file in which an error was raised, or nothing if it was elsewhere."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f", line {line}" if line else ""


def _references(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    task, rewards = values.get("task"), values.get("rewards")
    if isinstance(task, Mapping) and is_own(task.get("name")):
        yield "task", task["name"]
    for name in rewards if isinstance(rewards, Mapping) else ():
        if is_own(name):
            yield "rewards", name


def _renamed(values: Mapping[str, Any], rename: Callable[[Path, str], Path]) -> dict[str, Any]:
    def new(reference: str) -> str:
        found = OWN.fullmatch(reference)
        return str(rename(Path(found["path"]), shown(reference))) + (f":{found['name']}" if found["name"] else "")

    values = dict(values)
    for section, reference in _references(values):
        if section == "task":
            values["task"] = {**values["task"], "name": new(reference)}
        else:
            values["rewards"] = {new(name) if name == reference else name: weight
                                 for name, weight in values["rewards"].items()}
    return values
