"""Keeping what libraries print away from the person at the terminal. Standard library only."""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from recipe.flowrl.common.secrets import knows_any, mask
from verl_ext.files import open_own

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """``text`` without what a terminal takes for a command, or shows in another order; tabs and line ends stay."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


@contextmanager
def output_into(log_path: Path) -> Iterator[TextIO]:
    """Send this process's stdout and stderr, and so what Ray forwards, to a file; yields the terminal.

    Only this user can read the file. Secrets that are known by now are masked in it.
    """
    saved = os.dup(1), os.dup(2)
    log = open_own(log_path, os.O_APPEND, 0o600)
    filtering = None
    if knows_any():  # else a process that dies in native code writes its last words by itself
        reading, writing = os.pipe()
        filtering = threading.Thread(target=_masked_into, args=(reading, log), daemon=True)
        filtering.start()
        log = writing
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    try:
        with os.fdopen(os.dup(saved[0]), "w", buffering=1, encoding="utf-8", errors="replace") as terminal:
            yield terminal
    finally:
        for descriptor, original in zip((1, 2), saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)
        if filtering:
            filtering.join(timeout=5)  # a child that still has the pipe mustn't keep this process


def _masked_into(reading: int, log: int) -> None:
    with os.fdopen(reading, errors="replace") as lines, os.fdopen(log, "w", buffering=1) as file:
        for line in lines:
            file.write(mask(line))
