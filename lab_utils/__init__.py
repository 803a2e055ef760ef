"""Code shared by the notebooks and scripts of the workshop."""

import atexit
import errno
import gc
import importlib.metadata
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

__version__ = "0.1.0"

# Read when torch is imported. By default its threads spin for milliseconds while they wait for each other. If another
# program has one of two cores, two threads spin through its turns: GRPO took 7 times as long with 20,000 turns, 4 with
# this value and twice with 2,000, which cost a tenth on an idle machine. Where threads follow the idle cores, as they
# do once our sampler has run, it was 1.3 with each of them.
os.environ.setdefault("GOMP_SPINCOUNT", "8000")

# Importing torch, transformers and TRL makes 600,000 objects. The nine full garbage collections on the way take a
# seventh of the time and find hardly anything. Full collections are left to code that asks for them, as training does.
gc.set_threshold(*gc.get_threshold()[:2], 1000)
atexit.register(gc.freeze)  # spares the collections with which Python ends: two seconds

# Notebooks show warnings in red. In these three there is nothing to do: progress bars are text on purpose, a faster
# 4-bit kernel for CPUs is not used, and rows that are too long for a model are counted and left out.
warnings.filterwarnings("ignore", "IProgress not found")
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
logging.getLogger("transformers.tokenization_utils_base").setLevel(logging.ERROR)

REPOSITORY = Path(__file__).resolve().parents[1]
TINY_MODEL = Path(__file__).parent / "models" / "tiny-qwen2"  # the model that ships with the workshop


OWN_CODE = "own_code_"  # how the names of modules begin that are the user's own rewards and tasks
UNUSABLE = {errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG,
            errno.EMFILE, errno.ELOOP, errno.EFBIG, errno.EIO}  # what a path that the user gave can lead to


class WorkshopError(ValueError):
    """A problem that the user can fix. The message says what is wrong, names the value, and says what to do."""

    def _render_traceback_(self) -> list[str]:
        """Return what a notebook shows: the message. With another error behind it, raise: then IPython shows both."""
        if self.__cause__ is not None:
            raise self
        return [f"{type(self).__name__}: {self}"]


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

    A `WorkshopError` becomes one message on standard error and status 2, and so do a full disk and a path that cannot
    be used, and an exception in the user's own code. `TrainingStopped` becomes a message and status 0. Any other
    exception is a bug and keeps its traceback.
    """
    warnings.formatwarning = _short_warning
    gc.freeze()  # the imports are done: without their objects, a collection of training takes 0.35 s less
    try:
        return main() or 0
    except TrainingStopped as stopped:
        print(stopped)
        return 0
    except KeyboardInterrupt:
        print("\nInterrupted. To continue, give the same command again (train.py: with --resume).", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # Python would flush the closed one at its end
        problem = "The program that reads the output has ended. Give the same command again (train.py: with --resume)."
    except WorkshopError as error:
        problem = str(error)
    except Exception as error:
        if is_full_disk(error):
            problem = f"The disk is full ({error}): free space, then"
        elif isinstance(error, OSError) and error.filename and error.errno in UNUSABLE:
            path = error.filename2 or error.filename
            problem = f"{path} cannot be used ({error.strerror}): correct or remove it, then"
        elif own := own_line(error):
            problem = f"{own[0]}, line {own[1]}: {type(error).__name__}: {error}. Correct this file, then"
        else:
            raise
        problem += " give the same command again (train.py: with --resume)."
    print(f"{Path(sys.argv[0]).name}: {problem}", file=sys.stderr)
    return 2


def _short_warning(message, category, filename, lineno, line=None, *, usual=warnings.formatwarning) -> str:
    """Return a warning of the workshop without the line of code that gave it; any other as Python shows it."""
    ours = category is UserWarning and REPOSITORY in Path(filename).parents and "site-packages" not in filename
    return f"Warning: {message}\n" if ours else usual(message, category, filename, lineno, line)


def own_line(error: BaseException) -> tuple[str, int] | None:
    """Return the last file with code of the user's own through which an exception went, and the line in it, or None."""
    lines = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)
             if str(frame.f_globals.get("__name__")).startswith(OWN_CODE)]
    return lines[-1] if lines else None


def is_full_disk(error: Exception) -> bool:
    """Say whether an error means that a disk or a quota is full; safetensors has its own class for it."""
    return any(words in str(error) for words in ("No space left on device", "Disk quota exceeded"))
