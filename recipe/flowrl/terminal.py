"""Keeping what libraries print away from the person at the terminal. Standard library only."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO


@contextmanager
def output_into(log_path: Path) -> Iterator[TextIO]:
    """Send this process's stdout and stderr, and so what Ray forwards, to a file; yields the terminal."""
    saved = os.dup(1), os.dup(2)
    with open(log_path, "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        with os.fdopen(os.dup(saved[0]), "w", buffering=1, encoding="utf-8", errors="replace") as terminal:
            yield terminal
    finally:
        for descriptor, original in zip((1, 2), saved, strict=True):
            os.dup2(original, descriptor)
            os.close(original)
