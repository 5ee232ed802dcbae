"""Reading files that somebody else may have made: what they say, and neither a wait nor all of the memory."""

import errno
import os
import stat
from pathlib import Path
from typing import IO

import yaml

MOST_BYTES = 2**30
"""Of a file that is read: a run's records have megabytes."""


def opened(path: Path) -> IO[bytes]:
    """Open ``path`` for reading.

    Raises:
        OSError: it can't be opened, has more than :data:`MOST_BYTES`, or is no ordinary file: a pipe is waited for, and
            a device has no end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # of a pipe, too, this doesn't wait
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "is no ordinary file", str(path))
        if found.st_size > MOST_BYTES:
            raise OSError(errno.EFBIG, f"has more than {MOST_BYTES} bytes", str(path))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path) -> bytes:
    """All of ``path``. Raises as :func:`opened` does."""
    with opened(path) as file:
        return file.read(MOST_BYTES)


def read_text(path: Path, errors: str = "strict") -> str:
    """All of ``path``, which is UTF-8. Raises as :func:`opened` does, and UnicodeDecodeError unless ``errors``."""
    return read_bytes(path).decode(errors=errors)


def without_aliases(text: str) -> str:
    """``text``, which is YAML; in a few lines of it, aliases of aliases can stand for more than the memory holds.

    Raises:
        yaml.YAMLError: there are some, as no run writes them; or it is no YAML.
    """
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"line {event.start_mark.line + 1}: an alias, which no run writes")
    return text
