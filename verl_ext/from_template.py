"""Stands for a process that the template forks: ``python`` for the processes of a run (:mod:`verl_ext.template`).

It ends as the fork does, hands SIGTERM and SIGINT on, and takes the fork along when it is killed. Where there is no
template, or for arguments that aren't a program's (``-c CODE`` or a file), it becomes the Python that it runs on.
Standard library only, and little of it, since this is started for each process.
"""

import json
import os
import select
import signal
import socket
import sys


def main(address: str, arguments: list[str]) -> None:
    """Be ``python ARGUMENTS``, by the template that listens at ``address`` if there is one."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        if arguments[0] != "-c" and not arguments[0].endswith(".py"):
            raise ValueError
        numbers = sorted(number for number in map(int, os.listdir("/proc/self/fd")) if _is_open(number))
        numbers.remove(server.fileno())
        server.connect(address)
        request = {
            "arguments": arguments,
            "environment": dict(os.environ),
            "directory": os.getcwd(),
            "numbers": numbers,
        }
        socket.send_fds(server, [json.dumps(request).encode()], numbers)
        pid = int(server.recv(16))
    except (OSError, ValueError):
        os.execv(sys.executable, [sys.executable, *arguments])
    try:
        fork = os.pidfd_open(pid)
    except ProcessLookupError:  # it has ended
        _end(int(server.recv(16)))
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda received, frame: signal.pidfd_send_signal(fork, received))
    for number in numbers:  # else the other end of a pipe would not see the fork's end
        os.close(number)
    status = server.recv(16)
    if not status:  # the template is gone, and with it how the fork ends
        select.select([fork], [], [])
    _end(int(status or 1))


def _end(status: int) -> None:
    """As a process does with this ``returncode``."""
    if status < 0:
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:  # the listing's own
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
