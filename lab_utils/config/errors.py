"""The error of every setting that cannot work, and how a message shows values and names."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

from .. import WorkshopError


class ConfigError(WorkshopError):
    """A setting that cannot work; the message names the key, its value, the rule and a value that works."""


def shown(value: Any) -> str:
    """Return a value as text for a message, cut short if it is long or deeply nested."""
    shortened = reprlib.Repr()
    shortened.maxstring = shortened.maxother = 100
    shortened.maxlevel = 2  # each level multiplies the length
    return shortened.repr(value)


def did_you_mean(name: Any, names: Iterable[str], prefix: str = "") -> str:
    """Return " Did you mean …?" for the closest of `names`, or nothing if none is close."""
    close = difflib.get_close_matches(shown(name).strip("'"), list(names), n=1)
    return f" Did you mean {prefix}{close[0]}?" if close else ""


def check_known(what: str, name: Any, names: list[str]) -> str:
    """Return `name`, or raise ConfigError if it is not one of `names`."""
    if name not in names:
        raise ConfigError(f"There is no {what} {shown(name)}.{did_you_mean(name, names)} "
                          f"Choose one of {', '.join(names)}.")
    return name
