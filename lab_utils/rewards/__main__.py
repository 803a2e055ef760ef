"""Test the rewards of the workshop, or those in a file of your own, without pytest.

    python -m lab_utils.rewards                  # the rewards of the workshop
    python -m lab_utils.rewards my_rewards.py    # your own

The tests are the examples (lines that begin with >>>) in the functions' docstrings.
"""

from __future__ import annotations

import argparse
import doctest
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from .. import WorkshopError, exit_status, rewards
from ..config import own_code


def functions_in(file: Path | None) -> dict[str, Callable]:
    """Return the rewards of the workshop, or the public functions of a file, by name."""
    if file is None:
        found = {name: getattr(rewards, name) for name in rewards.__all__}
        return {name: value for name, value in found.items() if inspect.isfunction(value)}
    module = own_code.load_file(file)
    return {name: value for name, value in inspect.getmembers(module, inspect.isfunction)
            if value.__module__ == module.__name__ and not name.startswith("_")}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("file", nargs="?", type=Path, help="a file of your own with reward functions")
    runner, finder = doctest.DocTestRunner(), doctest.DocTestFinder()
    for name, function in functions_in(parser.parse_args(argv).file).items():
        found = [runner.run(test) for test in finder.find(function, name, globs=dict(function.__globals__))]
        failed, tried = (sum(one[i] for one in found) for i in (0, 1))
        print(f"{'FAILED' if failed else 'ok' if tried else 'no example':<11} {name}: {tried} examples")
    if runner.failures:
        raise WorkshopError(f"{runner.failures} of {runner.tries} examples fail: correct the functions, or the "
                            "examples in their docstrings.")


if __name__ == "__main__":
    sys.exit(exit_status(main))
