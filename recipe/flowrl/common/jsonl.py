"""JSON lines: one JSON value a line, whatever text is in it, and a last line that a kill may have cut short."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recipe.flowrl.common.foreign import read_bytes
from verl_ext.files import open_own


def to_line(value: Any) -> str:
    """``value`` as JSON on one line, its newline included.

    In ASCII, so that no character of a text can end a line (U+2028, U+0085) or refuse to be written (a lone surrogate).
    """
    return json.dumps(value) + "\n"


def values(text: bytes) -> Iterator[Any]:
    """The values of the lines in ``text``; a line that is no JSON, as one that a kill cut off, is left out."""
    for line in text.split(b"\n"):
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            continue


class JsonLines:
    """The file ``path`` of JSON lines, which grows and needn't be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[Any]:
        """The values of all whole lines."""
        return list(values(read_bytes(self.path))) if self.path.exists() else []

    def append(self, value: Any) -> None:
        """Add a line; one that a kill cut off before is ended first, so that the new one is whole."""
        with os.fdopen(open_own(self.path, os.O_APPEND), "ab") as file:
            file.write((b"\n" if self._is_cut() else b"") + to_line(value).encode())

    def _is_cut(self) -> bool:
        with open(self.path, "rb") as file:
            end = file.seek(0, 2)
            file.seek(max(0, end - 1))
            return bool(end) and file.read(1) != b"\n"
