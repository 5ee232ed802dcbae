"""Progress of a run as JSON events in a file, one a line: the trainer appends them, the driver follows them.

The trainer lives in a Ray actor, possibly on another node, and the run directory is what both sides share. An event is
``{"time": seconds since the epoch, "event": kind, ...}``; the kinds and their fields are

* ``phase``: ``name``. It lasts until the next phase begins, a step ends, or the run does.
* ``step``: ``step``, ``total`` (null if not known), ``metrics``.
* ``message`` and ``error``: ``text``.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

from recipe.flowrl.common.files import open_own
from recipe.flowrl.common.foreign import opened

FIRST_PHASE = "starting Ray"
"""The phase with which every launch of a run begins."""


class EventWriter:
    """Appends events to a file. One writer at a time; a later one (of a resumed run) continues the file.

    Each event is one ``write`` of a whole line to a file opened for that write alone: closing is what makes it visible
    to other nodes on a network file system.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        end_line(self.path)

    def write(self, event: str, **fields: Any) -> None:
        """Append an event of the kind ``event``; ``fields`` must be JSON, non-finite numbers included."""
        line = json.dumps({"time": time.time(), "event": event} | fields)
        append(self.path, line.encode() + b"\n")


def append(path: Path, data: bytes) -> None:
    """Append ``data`` to a file by one ``write``."""
    descriptor = open_own(path, os.O_APPEND, 0o644)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def end_line(path: Path) -> None:
    """Complete the last line of a file whose writer was killed half-way, so that a line can be appended."""
    if not _ends_a_line(path):
        append(path, b"\n")


def follow(path: str | Path, stop: Event, *, offset: int = 0, poll_s: float = 0.2) -> Iterator[dict[str, Any]]:
    """Yield the events of ``path`` from byte ``offset`` on as they come, until ``stop`` is set and all are read.

    The file need not exist yet. A line is read once it is complete; a complete line that is no event is yielded as a
    ``message`` saying so. The file is opened anew for every look, which makes a network file system look again.
    """
    path, rest = Path(path), b""
    while True:
        stopping = stop.is_set()
        try:
            with opened(path) as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            data = b""
        offset += len(data)
        *lines, rest = (rest + data).split(b"\n")
        for line in filter(bytes.strip, lines):
            yield _parse(line, path)
        if stopping:
            return
        stop.wait(poll_s)


def end_of(path: str | Path) -> int:
    """The size of the file in bytes, 0 if there is none: the ``offset`` from which only new events are followed."""
    try:
        return os.path.getsize(path)
    except FileNotFoundError:
        return 0


def _parse(line: bytes, path: Path) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        event = None
    if isinstance(event, dict) and isinstance(event.get("event"), str):
        return event
    return {"time": time.time(), "event": "message", "text": f"{path}: a line is not an event: {line[:80]!r}"}


def is_number(value: Any) -> bool:
    """Whether ``value``, as JSON has it, is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _ends_a_line(path: Path) -> bool:
    """Whether a line can be appended as it is: the file is absent, empty, or its last line is complete."""
    if end_of(path) == 0:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"
