"""SIGTERM as an exception, and commands that end together with what they have started."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from recipe.flowrl.common.errors import Terminated
from verl_ext.faults import RunFault
from verl_ext.processes import end, wait_and_leave

_GRACE_S = 30.0
"""A training that is asked to end has done so within 20 s; what is left then is killed."""


class Sigterm:
    """Turns SIGTERM into the exception that Ray lets through while it waits for a result, and remembers why."""

    arrived = False
    fault: RunFault | None = None

    def handle(self) -> None:
        """Install the handler."""
        signal.signal(signal.SIGTERM, self._raise)

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Make what ends the block a :class:`Terminated` where it was the signal, or the fault that sent it."""
        try:
            yield
        except BaseException as error:
            if self.arrived and not isinstance(error, Terminated | RunFault):
                raise self.fault or Terminated() from error
            raise

    def raise_in_main(self, fault: RunFault) -> None:
        """From another thread: end what the main thread does because of ``fault``."""
        self.fault = fault
        os.kill(os.getpid(), signal.SIGTERM)

    def _raise(self, signum: int, frame: Any) -> None:
        self.arrived = True
        raise KeyboardInterrupt


@contextmanager
def ends_with_its_children() -> Iterator[None]:
    """Make SIGTERM end the block as Ctrl-C does, and whatever ends the block early end the processes that it started.

    Raises:
        Terminated: a SIGTERM arrived.
    """
    sigterm, before = Sigterm(), signal.getsignal(signal.SIGTERM)
    sigterm.handle()
    try:
        with sigterm.translated():
            yield
    except BaseException:
        end_children()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def end_children() -> None:
    """Ask the processes that this one started to end, each of which ends its own, and kill those that don't.

    They are left to be waited for by whoever started them, who wants their status.
    """
    end(psutil.Process().children(), _GRACE_S, wait_and_leave)
