"""Directories that are made once, kept under a key of all that went into them, and never seen half-made."""

import dataclasses
import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recipe.flowrl.common.errors import UserError


def cache_directory() -> Path:
    """Where prepared data and models are by default, as in a run's ``cache_dir``."""
    return Path(os.environ.get("FLOWRL_CACHE") or os.path.expanduser("~/.cache/flowrl"))


def fingerprint(*parts: Any) -> str:
    """Twelve hexadecimal digits that stand for ``parts``: dataclasses or JSON values."""
    plain = [
        dataclasses.asdict(part) if dataclasses.is_dataclass(part) and not isinstance(part, type) else part
        for part in parts
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def ensure(link: Path, key: str, build: Callable[[Path], Any]) -> Path:
    """Make ``link`` point to the directory ``<link>-<key>``, which ``build`` fills if it isn't there yet.

    The directory appears under its name when it is complete; the one that ``link`` pointed to before stays. Processes
    that do this at the same time may both build; the first one's result is kept.

    Args:
        link: path that users name.
        key: of everything that determines the content (:func:`fingerprint`).
        build: fills the empty directory that it is given.

    Returns:
        ``link``.

    Raises:
        UserError: something else than a link is at ``link``.
    """
    link = link.expanduser().absolute()
    if link.exists() and not link.is_symlink():
        raise UserError(f"{link} isn't a link made by this program: move it away, or choose another directory")
    link.parent.mkdir(parents=True, exist_ok=True)
    directory = link.with_name(f"{link.name}-{key}")
    if not directory.is_dir():
        _build_beside(directory, build)
    _point(link, directory)
    return link


def _build_beside(directory: Path, build: Callable[[Path], Any]) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        scratch.chmod(0o755)  # mkdtemp's directories are private; this one is to be shared
        build(scratch)
        try:
            scratch.rename(directory)
        except OSError:
            if not directory.is_dir():
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _point(link: Path, directory: Path) -> None:
    if link.is_symlink() and os.readlink(link) == directory.name:
        return
    temporary = link.with_name(f".{link.name}.{secrets.token_hex(8)}")  # hosts and containers share process ids
    temporary.symlink_to(directory.name)
    os.replace(temporary, link)
