"""Files of JSON lines, compressed, that grow by whole problems and survive a kill at any moment.

Each append is a gzip member of its own. Any gzip reader reads the file as one text; what a kill left unfinished at its
end is cut off before the next append.
"""

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.files import open_own
from recipe.flowrl.common.foreign import MOST_BYTES, opened
from recipe.flowrl.common.jsonl import to_line

Record = dict[str, Any]

_CHUNK = 1 << 20
"""Bytes read at once."""


class Records:
    """Records by problem in the file ``path``, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_problem: dict[str, list[Record]] = {}
        self._whole_bytes = 0
        try:
            for self._whole_bytes, text in _members(path) if path.is_file() else ():
                self._take(map(json.loads, filter(None, text.split(b"\n"))))
        except (zlib.error, ValueError, LookupError, TypeError, RecursionError) as error:
            raise UserError(
                f"{path} is damaged after byte {self._whole_bytes} ({error}): move it away, and its problems are done "
                "again"
            ) from error

    def append(self, records: Sequence[Record]) -> None:
        """Add all records of one problem."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        member = gzip.compress("".join(map(to_line, records)).encode(), mtime=0)
        with os.fdopen(open_own(self.path, 0), "wb") as file:  # which cuts nothing off by itself
            file.truncate(self._whole_bytes)
            file.seek(self._whole_bytes)
            file.write(member)
        self._whole_bytes += len(member)
        self._take(records)

    def _take(self, records: Iterable[Record]) -> None:
        for record in records:
            self.by_problem.setdefault(record["problem"], []).append(record)


def _members(path: Path) -> Iterator[tuple[int, bytes]]:
    """The end and the text of each complete gzip member; an unfinished one at the end is left out."""
    with opened(path) as file:
        end, pending = 0, file.read(_CHUNK)
        while pending:
            member, text = zlib.decompressobj(wbits=31), []
            while not member.eof:
                if not pending:
                    return
                text.append(member.decompress(pending))
                if sum(map(len, text)) > MOST_BYTES:
                    raise ValueError(f"a problem of more than {MOST_BYTES} bytes")
                end += len(pending) - len(member.unused_data)
                pending = member.unused_data or file.read(_CHUNK)
            yield end, b"".join(text)
