"""Processes of a run that don't import anew what all of them need: each is a fork of one that has imported it.

A Ray worker imports torch, Ray, verl and mostly vLLM, 4 to 11 s of a core; so does vLLM's engine process. A run on one
machine has ten of them, and on two cores they are most of the time until its first update. Here a *template* imports
once. Ray starts its workers with a program of ours (``runtime_env.py_executable``), and so does ``multiprocessing``;
that asks the template for a fork, hands over its arguments, environment, directory and open files, and stays for as
long as the fork runs: :mod:`verl_ext.from_template`. A fork runs what ``python ARGUMENTS`` would.

Not for processes that see a GPU: CUDA can't be used in a fork of a process that has looked at it.
"""

import atexit
import fcntl
import gc
import importlib
import json
import multiprocessing
import os
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import time
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verl_ext.files import write_text
from verl_ext.patches import patch_actor_class_ids
from verl_ext.processes import python_path

_SOCKET, _PYTHON = "template.sock", "python"
_LARGEST_REQUEST, _MOST_FILES = 1 << 20, 253  # the kernel's limit of descriptors in a message
_HIGH = 512  # descriptors are kept from here on while those below are put in place

_ONE_THREAD = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}
"""Environment of the template: pyarrow would have a thread clean up, and threads are lost in a fork."""


class Template:
    """Starts the template, which ends with the process that made it.

    Args:
        directory: that only this user can enter, for its socket; what comes through that is run.
        first: the modules that it imports at once, in the environment that this process has now. Ray isn't among them,
            nor imported by them: it takes from the environment, for good, which cluster it belongs to.
        then: those that it imports once a fork is asked for, in the environment of who asks.
    """

    def __init__(self, directory: Path, first: Sequence[str], then: Sequence[str] = ()) -> None:
        self.python = directory / _PYTHON
        client = Path(__file__).with_name("from_template.py")
        command = [sys.executable, "-I", "-S", str(client), str(directory / _SOCKET)]
        write_text(self.python, f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
        self.python.chmod(0o700)
        self._socket = directory / _SOCKET
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", "verl_ext.template", str(directory), ",".join(first), ",".join(then)],
            stdin=subprocess.PIPE,  # closed with this process: then it goes
            start_new_session=True,
            env=os.environ | _ONE_THREAD | {"PYTHONPATH": python_path()},
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait(self) -> None:
        """Until it has imported the first modules, or has failed to: then each process imports for itself."""
        while self._process.poll() is None and not self._socket.exists():
            time.sleep(0.05)


@dataclass(frozen=True)
class Request:
    """What a fork is to run: ``arguments`` of ``python``, where, with what, and the open files, number by number."""

    arguments: list[str]
    environment: dict[str, str]
    directory: str
    numbers: list[int]
    files: list[int]


def serve(listener: socket.socket, then: Sequence[str], added: dict[str, str]) -> Request:
    """Fork for each request that comes, and tell the asking process how the fork ended.

    Args:
        listener: where they come.
        then: what is imported in the environment of the first, for all.
        added: gets the variables that these imports add to the environment.

    Returns:
        In a fork: what it is to run. In the template never.
    """
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    asking: dict[int, socket.socket] = {}  # the fork's process id -> who asked for it
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                connection, _ = listener.accept()
                request = _receive(connection)
                if then:
                    os.environ.update(request.environment)
                    patch_actor_class_ids()
                    added |= _import(then)
                    then = ()
                pid = os.fork()
                if pid == 0:
                    selector.close()
                    for opened in (listener, connection, *asking.values()):
                        opened.close()
                    return request
                for descriptor in request.files:
                    os.close(descriptor)
                with suppress(OSError):
                    connection.send(str(pid).encode())
                asking[pid] = connection
                selector.register(connection, selectors.EVENT_READ, pid)
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, pid)
            elif key.fileobj is sys.stdin:
                os._exit(0)
            elif isinstance(key.fileobj, int):  # a fork has ended
                selector.unregister(key.fileobj)
                os.close(key.fileobj)
                connection = asking.pop(key.data)
                status = os.waitstatus_to_exitcode(os.waitpid(key.data, 0)[1])
                with suppress(OSError):
                    connection.send(str(status).encode())
                with suppress(KeyError):
                    selector.unregister(connection)
                connection.close()
            elif key.data in asking:  # who asked for this fork is gone, without waiting for it: that was killed
                selector.unregister(key.fileobj)
                os.kill(key.data, signal.SIGKILL)


def _receive(connection: socket.socket) -> Request:
    message, files, _, _ = socket.recv_fds(connection, _LARGEST_REQUEST, _MOST_FILES)
    return Request(**json.loads(message), files=files)


def _import(modules: Sequence[str]) -> dict[str, str]:
    """Import for all forks; returns the variables that this has added to the environment.

    Raises:
        SystemExit: that has started threads, which a fork wouldn't have.
    """
    given = set(os.environ)
    for module in modules:
        importlib.import_module(module)
    threads = len(os.listdir("/proc/self/task"))
    if threads > 1:
        sys.exit(f"no template for the run's processes: importing {', '.join(modules)} starts {threads - 1} threads")
    gc.freeze()  # never collected while it is frozen, so that forks share the memory
    return {name: value for name, value in os.environ.items() if name not in given}


def become(request: Request, added: Mapping[str, str]) -> tuple[types.CodeType, dict[str, Any]]:
    """Make this fork what ``python ARGUMENTS`` would be before its first line; returns that program and its globals.

    Args:
        request: what it is to run.
        added: variables that the imports have added to the environment.
    """
    os.environ.clear()
    os.environ.update({**added, **request.environment})
    os.chdir(request.directory)
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, _HIGH) for descriptor in request.files]
    for descriptor in request.files:
        os.close(descriptor)
    for descriptor, number in zip(high, request.numbers, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.setpgid(0, 0)  # as who asked: when a worker ends, Ray ends its group
    gc.enable()
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # Python's own generator does it by itself
    first, *rest = request.arguments
    main = types.ModuleType("__main__")
    if first == "-c":
        source, name, sys.path[0] = rest[0], "<string>", ""
        sys.argv = ["-c", *rest[1:]]
    else:
        source, name, sys.path[0] = Path(first).read_text(), first, str(Path(first).parent)
        sys.argv = [first, *rest]
        main.__file__ = first
    sys.modules["__main__"] = main
    return compile(source, name, "exec"), main.__dict__


def main(directory: Path, first: Sequence[str], then: Sequence[str]) -> None:
    """The template, and in each fork the program that it runs."""
    gc.disable()
    atexit.register(gc.unfreeze)
    added = _import(first)
    if "ray" in sys.modules:
        sys.exit(f"no template for the run's processes: importing {', '.join(first)} imports Ray")
    multiprocessing.set_executable(str(directory / _PYTHON))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(str(directory / "starting"))
    listener.listen(64)
    (directory / "starting").rename(directory / _SOCKET)  # who finds it can connect
    program, variables = become(serve(listener, then, added), added)
    exec(program, variables)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(list(filter(None, names.split(","))) for names in sys.argv[2:]))
