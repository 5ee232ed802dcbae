"""Files that appear whole or not at all, and directories that one process at a time writes to."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipe.flowrl.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` through a temporary name beside it; its directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Write ``content`` to ``path`` as JSON, like :func:`write_text`."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n")


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Be the only process that writes to ``directory``, which is made, for as long as the block lasts.

    Raises:
        UserError: another process is.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / ".lock", "w") as lock:  # the system drops it with the process, however that ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{directory}: another process is writing there: wait for it, or choose another") from None
        yield
