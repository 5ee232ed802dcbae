"""A worker of the pool that fails on request: what machines and hostile answers do to one."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from recipe.flowrl.tasks.math.worker_pool import serve


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what ``request`` names; ``once``: a file that is made first, and if it is there nothing is done."""
    once = request.get("once")
    if once is None or not Path(once).exists():
        if once is not None:
            Path(once).touch()
        _do(request.get("do", ""))
    return {"process": os.getpid()}


def _do(what: str) -> None:
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "crash":
        os.abort()
    elif what == "remember":
        bytearray(2**30)
    elif what == "recurse":
        _do(what)
    elif what == "compute":
        while True:
            pass
    elif what == "sleep":
        time.sleep(600)
    elif what == "raise":
        raise KeyError(what)


if __name__ == "__main__":
    if path := os.environ.get("FAILING_WORKER_STARTS"):
        with open(path, "a") as starts:
            print(os.getpid(), file=starts)
        sys.exit(3)
    serve(answer, 2**29)
