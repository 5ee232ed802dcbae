"""What an option accepts, in code and in words. Standard library only."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def _unchanged(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Rule:
    """What an option accepts, in words and in code, and the type it is stored as."""

    allowed: str
    accepts: Callable[[Any], bool]
    convert: Callable[[Any], Any] = _unchanged
    names: tuple[str, ...] = ()
    """What it accepts, where that is a list: one of them may have been meant."""

    def or_none(self, meaning: str) -> Rule:
        """The same, or None, which stands for ``meaning``."""
        return Rule(
            f"{self.allowed}, or null ({meaning})",
            lambda value: value is None or self.accepts(value),
            lambda value: None if value is None else self.convert(value),
            self.names,
        )


def is_number(value: Any) -> bool:
    """A finite int or float that is no bool."""
    # bool is an int in Python. The comparison also refuses nan, infinities and integers too large for a float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def number(interval: str, inside: Callable[[float], bool]) -> Rule:
    """A finite number for which ``inside`` holds, described as ``interval``."""
    return Rule(f"a finite number {interval}".rstrip(), lambda value: is_number(value) and inside(value), float)


def one_of(names: Iterable[str]) -> Rule:
    """One of the given names."""
    names = tuple(names)
    return Rule(" | ".join(map(repr, names)), lambda value: value in names, names=names)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def at_least(least: int) -> Rule:
    """An integer from ``least`` upwards."""
    return Rule(f"an integer >= {least}", lambda value: _is_integer(value) and value >= least)


BOOLEAN = Rule("true | false", lambda value: isinstance(value, bool))
TEXT = Rule("text", lambda value: isinstance(value, str))
PATH = Rule("a path", lambda value: isinstance(value, str) and value != "", Path)
DIRECTORY = Rule("a directory that exists", lambda value: PATH.accepts(value) and Path(value).is_dir(), Path)
URL = Rule("a URL that starts with http:// or https://", lambda value: str(value).startswith(("http://", "https://")))
INTEGER = Rule("an integer", _is_integer)
COUNT = at_least(1)
COUNT_OR_ZERO = at_least(0)
FINITE = number("", lambda value: True)
POSITIVE = number("> 0", lambda value: value > 0)
NOT_NEGATIVE = number(">= 0", lambda value: value >= 0)
INSIDE = number("in (0, 1)", lambda value: 0 < value < 1)
FRACTION = number("in [0, 1)", lambda value: 0 <= value < 1)


def show(value: Any) -> str:
    """``value`` on one line, with its type: 15 and '15' must not look alike."""
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def guess(name: Any, known: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the known name that is closest to ``name``, else an empty string."""
    close = difflib.get_close_matches(str(name), known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
