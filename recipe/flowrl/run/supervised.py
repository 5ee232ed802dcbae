"""A run that notices when a process of its own dies or nothing moves, and says what it was."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recipe.flowrl.common.errors import UserError, account_of, root_cause
from recipe.flowrl.common.files import write_text
from recipe.flowrl.reporting.console import RunConsole
from verl_ext.faults import RunFault
from verl_ext.guardian import Guardian
from verl_ext.stacks import innermost_frame, python_stacks
from verl_ext.stop import StopRequested
from verl_ext.supervision import ENDING, FAILING, Member, Supervisor

END_S = 40.0
"""A run that has failed has so long to end its processes, before it is killed with them."""


@contextmanager
def supervised(
    events: Path,
    watchdog_s: float | None,
    console: RunConsole,
    guardian: Guardian,
    interrupt: Callable[[RunFault], None],
) -> Iterator[None]:
    """Watch the processes and the events of a run until the block ends.

    Args:
        events: the file to which the run writes its events.
        watchdog_s: seconds without an event that end the run; None: no limit.
        console: shows the events.
        guardian: is told when the run is about to end because of a failure.
        interrupt: ends the block from another thread, because of a fault.

    Raises:
        RunFault: what ended the block, where that was a fault.
    """

    def end(fault: RunFault) -> None:
        guardian.expect_end(END_S, str(fault))
        interrupt(fault)

    def show_stacks(members: list[Member]) -> None:
        path = events.parent / "logs" / f"stacks_{time.strftime('%Y%m%d_%H%M%S')}.txt"
        stacks = python_stacks([m.process.pid for m in members])
        write_text(path, "\n".join(f"==== {m}\n{stacks[m.process.pid]}" for m in members))
        console.error(f"nothing has moved for {watchdog_s:g} s; all stacks: {path}")
        for m in members:
            console.message(f"  {m}: {innermost_frame(stacks[m.process.pid])}")

    supervisor = Supervisor(end, watchdog_s, show_stacks)

    def on_event(event: Mapping[str, Any]) -> None:
        match event:
            case {"event": "phase", "name": name, "time": at} if name == FAILING:
                supervisor.failing(at)
            case {"event": "phase", "name": name} if name == ENDING:
                supervisor.closing()
            case {"event": "phase", "name": name}:
                supervisor.progress(name)
            case {"event": "step", "step": step}:
                supervisor.progress(f"after step {step}")
        if guardian.ensure():
            console.message("warning: the guardian process was gone; there is a new one")

    with console.following(events, on_event), supervisor.watching():
        try:
            yield
        except BaseException as error:
            fault = _fault_behind(error, supervisor)
            guardian.expect_end(END_S, str(fault) if fault else account_of(error)[0].removeprefix("error: "))
            if fault is None:
                raise
            raise fault from error


def _fault_behind(error: BaseException, supervisor: Supervisor) -> RunFault | None:
    cause = root_cause(error)
    if not isinstance(cause, Exception) or isinstance(cause, UserError | StopRequested | RunFault):
        return None  # says all there is to say
    return supervisor.fault_behind(cause)
