"""Which addresses a process and all below it listen on, looked at for as long as it runs."""

import threading
from contextlib import suppress

import psutil

from verl_ext.network import is_loopback
from verl_ext.processes import descendants

POLL_S = 0.3


class Listening:
    """Collects listening sockets (TCP) and bound ones (UDP) of ``process`` and its descendants until :meth:`stop`."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._stop = threading.Event()
        self.seen: dict[tuple[str, int], str] = {}
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def reachable(self) -> dict[tuple[str, int], str]:
        """(address, port) -> the process, for all that another machine could reach."""
        return {place: process for place, process in self.seen.items() if not is_loopback(place[0])}

    def _look(self) -> None:
        while not self._stop.wait(POLL_S):
            for process in [self._root, *descendants(self._root)]:
                with suppress(psutil.Error):
                    for connection in process.net_connections("inet"):
                        listens = connection.status == psutil.CONN_LISTEN or connection.type.name == "SOCK_DGRAM"
                        if listens and connection.laddr and not connection.raddr:
                            self.seen.setdefault(tuple(connection.laddr[:2]), process.name())
