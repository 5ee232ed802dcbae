"""Files that appear whole or not at all, and checksums of what a directory holds. Standard library only."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
"""Name of a directory's manifest."""

_THREADS = 8
_CHUNK = 2**24


@contextmanager
def replacing(path: Path, durable: bool = False) -> Iterator[Path]:
    """A temporary name beside ``path`` to write to, renamed to ``path`` if the block ends well and removed if not.

    The directory is made. ``durable``: what is there afterwards is there after a power cut as well.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
        if durable:
            flush(temporary)
        os.replace(temporary, path)
        if durable:
            flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, durable: bool = False) -> None:
    """Write ``text`` to ``path``, like :func:`replacing`."""
    with replacing(path, durable) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any, indent: int | None = None, durable: bool = False) -> None:
    """Write ``content`` to ``path`` as JSON, like :func:`write_text`."""
    write_text(path, json.dumps(content, indent=indent, ensure_ascii=False) + "\n", durable)


def flush(path: Path) -> None:
    """Wait until the disk has a file's content, or a directory's names, whoever wrote them."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path, read: Callable[[int], None] = lambda size: None) -> str:
    """Of a file's content, in hexadecimal; ``read`` is told the size of each piece that has been read."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
            read(len(piece))
    return digest.hexdigest()


def write_manifest(directory: Path) -> None:
    """Flush all files under ``directory`` to the disk, then write size and SHA-256 of each into its manifest."""
    there = sorted(directory.rglob("*"))
    files = [path for path in there if path.is_file() and path != directory / MANIFEST]

    def entry(path: Path) -> dict[str, Any]:
        flush(path)
        return {"size": path.stat().st_size, "sha256": sha256(path)}

    with ThreadPoolExecutor(_THREADS) as pool:  # reading and hashing leave the interpreter's lock
        entries = list(pool.map(entry, files))
    for folder in filter(Path.is_dir, there):
        flush(folder)
    names = [path.relative_to(directory).as_posix() for path in files]
    write_json(directory / MANIFEST, {"files": dict(zip(names, entries, strict=True))}, indent=1, durable=True)


def manifest_problem(directory: Path, progress: Callable[[int, int], None] | None = None) -> str | None:
    """What of ``directory`` isn't as its manifest says: a file that is missing, of another size, or changed.

    Args:
        directory: it holds a manifest.
        progress: called with the bytes read so far and the bytes in all; None: contents aren't read, sizes only.

    Returns:
        None if all is well. Files that the manifest doesn't name aren't looked at.
    """
    manifest = directory / MANIFEST
    try:
        entries = {name: (int(entry["size"]), entry["sha256"]) for name, entry in _entries(manifest).items()}
    except (OSError, ValueError, LookupError, AttributeError, TypeError):
        return f"{manifest} can't be read"
    for name, (size, _) in entries.items():
        path = directory / name
        if not path.is_file():
            return f"{path} is missing"
        if (found := path.stat().st_size) != size:
            return f"{path} has {found} bytes instead of {size}"
    return None if progress is None else _first_changed(directory, list(entries.items()), progress)


def _entries(manifest: Path) -> dict[str, Any]:
    return json.loads(manifest.read_text())["files"]


def _first_changed(
    directory: Path, entries: Sequence[tuple[str, tuple[int, str]]], progress: Callable[[int, int], None]
) -> str | None:
    total, done = sum(size for _, (size, _) in entries), [0]

    def read(size: int) -> None:
        done[0] += size  # a lost update among threads only makes the display lag
        progress(done[0], total)

    def problem(entry: tuple[str, tuple[int, str]]) -> str | None:
        path, digest = directory / entry[0], entry[1][1]
        try:
            return None if sha256(path, read) == digest else f"{path} has changed (its SHA-256 differs)"
        except OSError as error:
            return f"{path} can't be read ({error.strerror})"

    with ThreadPoolExecutor(_THREADS) as pool:
        for future in as_completed([pool.submit(problem, entry) for entry in entries]):
            if found := future.result():
                pool.shutdown(wait=False, cancel_futures=True)
                return found
    return None
