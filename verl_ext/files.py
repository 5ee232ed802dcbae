"""Files that appear whole or not at all, and checksums of what a directory holds. Standard library only."""

import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
"""Name of a directory's manifest."""

_WRITING = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # a pipe isn't waited for
_THREADS = 8
_CHUNK = 2**24


def open_own(path: Path, flags: int, mode: int = 0o666) -> int:
    """Open ``path`` for writing, made where it isn't there; never through a symbolic link, whoever put it there.

    Args:
        flags: of ``open(2)``, besides.
        mode: for a new file; one that is there is cut down to it.

    Raises:
        OSError: says so if a link is there.
    """
    try:
        descriptor = os.open(path, _WRITING | flags, mode)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise OSError(error.errno, "is a symbolic link, and isn't written through: remove it", str(path)) from error
    found = stat.S_IMODE(os.fstat(descriptor).st_mode)
    if found & ~mode:
        with suppress(PermissionError):  # somebody else's, who lets us write
            os.fchmod(descriptor, found & mode)
    return descriptor


@contextmanager
def replacing(path: Path, durable: bool = False, private: bool = False) -> Iterator[Path]:
    """A temporary file beside ``path`` to write to, renamed to ``path`` if the block ends well and removed if not.

    The directory is made. ``durable``: what is there afterwards is there after a power cut as well. ``private``: only
    this user can read it. The name can't be foreseen: other machines and containers have the same process ids.

    Raises:
        OSError: a directory, a device or a pipe is there: root could replace ``/dev/null`` for all the machine.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():  # nor a link to such, as /dev/stdout is
        raise OSError(errno.EINVAL, "is no ordinary file, and isn't replaced", str(path))
    temporary = path.with_name(f".{path.name[:200]}.{os.getpid()}.{secrets.token_hex(4)}")
    os.close(open_own(temporary, os.O_EXCL, 0o600 if private else 0o666))
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
