"""Processor time and memory of all processes below this one, as they go."""

import bisect
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from verl_ext.processes import descendants

INTERVAL_S = 0.5


@dataclass
class Usage:
    """What was seen, at which time (seconds since the epoch).

    Attributes:
        times: of the looks.
        seconds: of processor time until then, of all processes together, also those that have ended.
        memory: bytes then, each shared page counted once (PSS).
    """

    times: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)

    def seconds_between(self, begin: float, end: float) -> float:
        """Processor seconds from ``begin`` to ``end``, interpolated between looks."""
        return self._seconds_until(end) - self._seconds_until(begin)

    def peak_between(self, begin: float, end: float) -> int:
        """The most memory that was seen from ``begin`` to ``end``, in bytes.

        Raises:
            ValueError: nobody looked in that time.
        """
        return max(self.memory[bisect.bisect_left(self.times, begin) : bisect.bisect_right(self.times, end)])

    def _seconds_until(self, moment: float) -> float:
        after = bisect.bisect_left(self.times, moment)
        if after == 0 or after == len(self.times):
            return self.seconds[min(after, len(self.times) - 1)]
        share = (moment - self.times[after - 1]) / (self.times[after] - self.times[after - 1])
        return self.seconds[after - 1] + share * (self.seconds[after] - self.seconds[after - 1])


@contextmanager
def watched() -> Iterator[Usage]:
    """Look on until the block ends."""
    usage, stop = Usage(), threading.Event()
    thread = threading.Thread(target=_watch, args=(usage, stop), daemon=True)
    thread.start()
    try:
        yield usage
    finally:
        stop.set()
        thread.join()


def _watch(usage: Usage, stop: threading.Event) -> None:
    spent: dict[psutil.Process, float] = {}
    while not stop.wait(INTERVAL_S):
        memory = 0
        for process in descendants(psutil.Process()):
            with suppress(psutil.Error, OSError):
                times = process.cpu_times()
                spent[process] = times.user + times.system
                memory += _shared_out_bytes(process.pid)
        usage.times.append(time.time())
        usage.seconds.append(sum(spent.values()))
        usage.memory.append(memory)


def _shared_out_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    return 0
