"""Errors for the person at the terminal, and the exit status that goes with each. Standard library only."""

import os
import sys
import traceback

from verl_ext.faults import RunFault
from verl_ext.stop import StopRequested

BAD_INPUT, FAILED, STOPPED, INTERRUPTED, TERMINATED = 2, 1, 75, 130, 143
"""Exit statuses; 75 is sysexits' "try again later", the last two are the shell's for SIGINT and SIGTERM."""

_LONGEST_CAUSE = 400
"""Characters of a failure's message that are shown; the log has the rest."""


class UserError(Exception):
    """Bad input, or an environment in which the run cannot work.

    The message is one or two lines: what is wrong, where, and what to do about it.
    """


class Terminated(BaseException):
    """A SIGTERM arrived."""


def exit_status_of(error: BaseException) -> int:
    """Tell the person at the terminal what ended the run, in one or two lines on stderr.

    ``FLOWRL_DEBUG=1`` adds the traceback. If the error has an attribute ``log_path``, the traceback goes to the end of
    that file.

    Returns:
        The exit status: 2 for a :class:`UserError`, 75 for a run that stopped because it was asked to, 130 for SIGINT,
        143 for SIGTERM, a ``SystemExit``'s own, else 1.
    """
    if isinstance(error, SystemExit):
        return _status_of_exit(error)
    log_path = _write_to_log(error)
    if os.environ.get("FLOWRL_DEBUG") == "1":
        traceback.print_exception(error)

    message, status = account_of(error)
    if status == FAILED:
        message += f"\n{log_path} has the traceback" if log_path else "\nFLOWRL_DEBUG=1 shows the traceback"
    print(message, file=sys.stderr, flush=True)
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


def _status_of_exit(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr, flush=True)
    return FAILED


def _in_one_line(error: BaseException) -> str:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
    return text if len(text) <= _LONGEST_CAUSE else f"{text[: _LONGEST_CAUSE - 3]}..."


def _write_to_log(error: BaseException) -> str | None:
    """Append the traceback to the error's log; returns its path, or None if there is none or it can't be written."""
    path = getattr(error, "log_path", None)
    if path is None:
        return None
    try:
        with open(path, "a") as log:
            traceback.print_exception(error, file=log)
    except OSError:
        return None
    return str(path)
