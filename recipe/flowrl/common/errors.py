"""Errors for the person at the terminal, and the exit status that goes with each. Standard library only."""

import contextlib
import errno
import os
import select
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recipe.flowrl.common.secrets import mask
from recipe.flowrl.common.terminal import printable
from verl_ext.faults import RunFault
from verl_ext.files import open_own
from verl_ext.stop import StopRequested

BAD_INPUT, FAILED, STOPPED, INTERRUPTED, CUT_OFF, TERMINATED = 2, 1, 75, 130, 141, 143
"""Exit statuses; 75 is sysexits' "try again later", the last three are the shell's for SIGINT, SIGPIPE and SIGTERM."""

_LONGEST_CAUSE = 400
"""Characters of a failure's message that are shown; the log has the rest."""


class UserError(Exception):
    """Bad input, or an environment in which the run cannot work.

    The message is one or two lines: what is wrong, where, and what to do about it.
    """


class Terminated(BaseException):
    """A SIGTERM arrived."""


class LoggedFailure(Exception):
    """Something failed, and the traceback stands in ``log_path``. What failed is this error's ``__cause__``."""

    def __init__(self, log_path: Path) -> None:
        super().__init__(str(log_path))
        self.log_path = log_path


@contextmanager
def traceback_in(log_path: Path) -> Iterator[None]:
    """Append the traceback of whatever ends the block early to ``log_path``.

    Raises:
        LoggedFailure: a failure ended the block. Bad input and signals are raised as they are, and so is a failure
            where the log can't be written.
    """
    try:
        yield
    except BaseException as error:
        written = _append_traceback(log_path, error)
        if written and isinstance(error, Exception) and account_of(error)[1] == FAILED:
            raise LoggedFailure(log_path) from error
        raise


def exit_status_of(error: BaseException) -> int:
    """Tell the person at the terminal what ended the run, in one or two lines on stderr.

    ``FLOWRL_DEBUG=1`` adds the traceback. Of a :class:`LoggedFailure` the log is named, which has it.

    Returns:
        The exit status: 2 for a :class:`UserError`, 75 for a run that stopped because it was asked to, 130 for SIGINT,
        141, without a word, where nobody reads the output any more (``| head``), 143 for SIGTERM, a ``SystemExit``'s
        own, else 1.
    """
    if isinstance(error, SystemExit):
        return _status_of_exit(error)
    if isinstance(root_cause(error), BrokenPipeError) and _nobody_reads(1):
        # What is left in the buffer must not fail again when the interpreter ends.
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        return CUT_OFF
    if os.environ.get("FLOWRL_DEBUG") == "1":
        print(printable(mask("".join(traceback.format_exception(error)))), end="", file=sys.stderr)

    message, status = account_of(error)
    if status == FAILED:
        where = f"{error.log_path} has" if isinstance(error, LoggedFailure) else "FLOWRL_DEBUG=1 shows"
        message += f"\n{where} the traceback"
    with contextlib.suppress(BrokenPipeError):
        print(printable(mask(message)), file=sys.stderr, flush=True)
    return status


def account_of(error: BaseException) -> tuple[str, int]:
    """What ended the run, in the words for a person, and the exit status that goes with it."""
    cause = root_cause(error)
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, Terminated):
        return "ended by SIGTERM", TERMINATED
    if isinstance(cause, StopRequested):
        return str(cause), STOPPED
    if isinstance(cause, UserError):
        return f"error: {cause}", BAD_INPUT
    if isinstance(cause, OSError) and cause.errno == errno.ENAMETOOLONG:
        return f"error: {str(cause.filename)[:60]}...: a name of more bytes than the file system takes", BAD_INPUT
    if isinstance(cause, RunFault):
        return f"error: {cause}", FAILED
    return f"error: {_in_one_line(cause)}", FAILED


def root_cause(error: BaseException) -> BaseException:
    """The error that the others were raised from, also where it was raised in a Ray worker.

    Of an error that was raised from another, that is the other one, unless the first is a :class:`UserError` or a
    :class:`RunFault`, which says all there is to say.
    """
    # Ray is not imported for this: no error is Ray's unless Ray is loaded.
    ray_task_error = getattr(sys.modules.get("ray.exceptions"), "RayTaskError", ())
    while True:
        if isinstance(error, ray_task_error) and isinstance(error.cause, BaseException):
            error = error.cause
        elif isinstance(error, UserError | RunFault) or error.__cause__ is None:
            return error
        else:
            error = error.__cause__


def _nobody_reads(descriptor: int) -> bool:
    """Whether the other end of a pipe is closed."""
    poll = select.poll()
    poll.register(descriptor, 0)  # an error is reported unasked
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _status_of_exit(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr, flush=True)
    return FAILED


def _in_one_line(error: BaseException) -> str:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
    return text if len(text) <= _LONGEST_CAUSE else f"{text[: _LONGEST_CAUSE - 3]}..."


def _append_traceback(log_path: Path, error: BaseException) -> bool:
    """Returns whether the log could be written."""
    try:
        with os.fdopen(open_own(log_path, os.O_APPEND, 0o600), "a", errors="backslashreplace") as log:
            log.write(mask("".join(traceback.format_exception(error))))
    except OSError:
        return False
    return True
