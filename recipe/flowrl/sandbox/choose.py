"""Which sandbox a run uses, and how many programs run at once."""

import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.sandbox import bubblewrap
from recipe.flowrl.sandbox.fusion import SandboxFusionRunner
from recipe.flowrl.sandbox.outcome import Limits, Outcome, Runner, SandboxError
from recipe.flowrl.sandbox.process import limited, run_bounded

UNSAFE = "unsafe_without_isolation"
"""What a user has to write to run a model's programs with the rights of the trainer."""


class UnsafeRunner:
    """Runs Python programs as processes of this user: with limits, and with access to everything this user has."""

    def run(self, program: str, stdin: str, limits: Limits) -> Outcome:
        """See :class:`recipe.flowrl.sandbox.outcome.Runner`."""
        with tempfile.TemporaryDirectory(prefix="unsafe_") as directory:
            path = Path(directory, "program.py")
            path.write_text(program, errors="replace")
            try:
                command = [*limited(limits), "--", sys.executable, str(path)]
                ended = run_bounded(command, stdin.encode(errors="replace"), limits)
                return Outcome(ended.status, ended.stdout)
            except OSError as error:
                raise SandboxError(f"the program can't be started: {error}") from error


class Gate:
    """Lets ``size`` programs run at once; further callers wait, and with them the rollouts that ask for a reward."""

    def __init__(self, runner: Runner, size: int) -> None:
        self._runner, self._slots = runner, threading.BoundedSemaphore(size)

    @contextmanager
    def slot(self) -> Iterator[Runner]:
        """The runner, for as long as one response is graded."""
        with self._slots:
            yield self._runner


@lru_cache(maxsize=4)
def gate(sandbox: str, url: str | None, concurrency: int | None) -> Gate:
    """The sandbox that the configuration names; the same object for the same arguments.

    Args:
        sandbox: ``bubblewrap``, or :data:`UNSAFE`. Not looked at if there is a ``url``.
        url: of a SandboxFusion server.
        concurrency: programs at once, for each process that computes rewards; None: half of the CPUs.

    Raises:
        UserError: there is no sandbox, and nobody asked in so many words to do without.
    """
    size = concurrency or max(1, (os.cpu_count() or 2) // 2)
    if url:
        return Gate(SandboxFusionRunner(url), size)
    if sandbox == UNSAFE:
        return Gate(UnsafeRunner(), size)
    if sandbox != "bubblewrap":
        raise UserError(f"sandbox={sandbox!r}: choose bubblewrap, or {UNSAFE}")
    if reason := bubblewrap.problem():
        raise UserError(
            f"no sandbox for the model's programs: {reason}. Make bubblewrap work, or name a SandboxFusion server with "
            f"reward.sandbox_fusion.url=http://HOST:8080; to run them with all your rights: sandbox={UNSAFE}"
        )
    return Gate(bubblewrap.BubblewrapRunner(), size)
