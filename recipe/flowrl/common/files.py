"""Files that appear whole or not at all, and directories that one process at a time writes to."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recipe.flowrl.common.errors import UserError
from verl_ext.files import open_own, replacing, write_json, write_text

__all__ = ["alone_in", "open_own", "replacing", "write_json", "write_text"]

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a file system says that has none, such as Lustre mounted without ``flock``."""


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Be the only process that writes to ``directory``, which is made, for as long as the block lasts.

    On a file system without locks nothing is said against a second one.

    Raises:
        UserError: another process is.
    """
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / ".lock"
    with os.fdopen(open_own(path, 0), "w") as lock:  # the system drops it with the process, however that ends
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A server of files may keep the lock of a machine that went down.
            raise UserError(
                f"{directory}: another process is writing there: wait for it, or choose another directory. If no such "
                f"process is left, remove {path}"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        yield
