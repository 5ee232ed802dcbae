"""Files that appear whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any


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
