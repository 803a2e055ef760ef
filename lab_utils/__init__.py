"""Code shared by the notebooks and scripts of the workshop."""

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path

__version__ = "0.1.0"

REPOSITORY = Path(__file__).resolve().parents[1]
TINY_MODEL = Path(__file__).parent / "models" / "tiny-qwen2"  # the model that ships with the workshop


class WorkshopError(ValueError):
    """A problem that the user can fix. The message says what is wrong, names the value, and says what to do."""


class TrainingStopped(Exception):
    """SIGTERM came, and the run is saved. The message says how to resume."""


def installed_version(package: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def exit_status(main: Callable[[], int | None]) -> int:
    """Run a command line's `main` and return its exit status.

    A `WorkshopError` becomes one message on standard error and status 2, `TrainingStopped` a message and status 0. Any
    other exception is a bug and keeps its traceback.
    """
    try:
        return main() or 0
    except TrainingStopped as stopped:
        print(stopped)
        return 0
    except WorkshopError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return 2
