"""Ten thousand programs in the sandbox, of every kind of end, and what of the machine is different afterwards.

``python -m benchmarks.leftovers [--programs 10000] [--threads 2] [--seconds S] [--out FILE]``. Runs below a process
that adopts orphans, as the main process of a run does. Prints a JSON object; with ``--out``, the same command goes on
where one of fewer seconds ended. Exit status 1 if anything is left of the process's own.
"""

import argparse
import json
import math
import os
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

from benchmarks.machine import describe
from recipe.flowrl.common.files import write_json
from recipe.flowrl.sandbox.bubblewrap import BubblewrapRunner
from recipe.flowrl.sandbox.outcome import Limits
from verl_ext.processes import adopt_orphans

_LIMITS = Limits(wall_s=2.0, cpu_s=2, memory_bytes=512 * 2**20)
_PROGRAMS = (
    *["print(input())"] * 60,
    "1 / 0",
    "import os\nos._exit(3)",
    "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
    "while True: print('x' * 1000)",
    "for i in range(5000): open(f'/tmp/{i}', 'w').close()",
    "import threading, time\nfor _ in range(9): threading.Thread(target=time.sleep, args=(0.1,)).start()",
    "x = bytearray(2**30)",
    "while True: pass",
)


_OWN = ("processes below", "descriptors", "mounts")
"""Of :func:`_state`, what is this process's own; the rest others on the machine change as well."""


def _state() -> dict[str, int]:
    """Counts of what a program could leave."""
    me = psutil.Process()
    statuses = [process.info["status"] for process in psutil.process_iter(["status"])]
    queues, kinds = Path("/dev/mqueue"), ("shm", "sem", "msg")
    return {
        "processes below": len(me.children(recursive=True)),
        "descriptors": me.num_fds(),
        "mounts": _lines("/proc/self/mountinfo"),
        "processes on the machine": len(statuses),
        "zombies on the machine": statuses.count(psutil.STATUS_ZOMBIE),
        "files in /tmp": len(os.listdir("/tmp")),
        "files in /dev/shm": len(os.listdir("/dev/shm")),
        "message queues": len(os.listdir(queues)) if queues.is_dir() else 0,
        "System V shared memory, semaphores, queues": sum(_lines(f"/proc/sysvipc/{kind}") - 1 for kind in kinds),
        "control groups": sum(int(line.split()[2]) for line in Path("/proc/cgroups").read_text().splitlines()[1:]),
        "resident MB": me.memory_info().rss // 2**20,
    }


def _lines(file: str) -> int:
    return len(Path(file).read_text().splitlines())


def piece(programs: int, first: int, threads: int, seconds: float) -> dict[str, Any]:
    """Run ``programs`` programs, from number ``first`` on, or as many as are begun in so many seconds.

    Returns:
        ``programs``: how many were run; ``seconds``; ``ends``: how they ended; ``before`` and ``after``: the states.
    """
    runner = BubblewrapRunner()
    ends: Counter[str] = Counter()
    runner.run("print(1)", "", _LIMITS)
    before, numbers, started = _state(), iter(range(first, first + programs)), time.monotonic()

    def work() -> None:
        for number in numbers:
            ends[runner.run(_PROGRAMS[number % len(_PROGRAMS)], "x", _LIMITS).status] += 1
            if time.monotonic() - started > seconds:
                return

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    took = round(time.monotonic() - started, 1)
    return {"programs": ends.total(), "seconds": took, "ends": dict(ends), "before": before, "after": _state()}


def summary(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """Programs, seconds and ends of all pieces, and ``left``: by what, the difference after them that isn't zero."""
    ends: Counter[str] = Counter()
    left: Counter[str] = Counter()
    for one in pieces:
        ends.update(one["ends"])
        left.update({name: one["after"][name] - one["before"][name] for name in one["before"]})
    told = {"programs": ends.total(), "seconds": round(sum(one["seconds"] for one in pieces), 1), "ends": dict(ends)}
    return {**told, "left": {name: count for name, count in left.items() if count}}


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leftovers", description=__doc__.splitlines()[0])
    parser.add_argument("--programs", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no program after so long")
    parser.add_argument("--out", type=Path, help="a JSON file; what is there counts, and is continued")
    options = parser.parse_args(arguments)
    kept = options.out is not None and options.out.exists()
    pieces = json.loads(options.out.read_text())["pieces"] if kept else []
    done = sum(one["programs"] for one in pieces)
    adopt_orphans()
    if done < options.programs:
        pieces.append(piece(options.programs - done, done, options.threads, options.seconds))
    total = summary(pieces)
    print(json.dumps(total, indent=1))
    if options.out is not None:
        write_json(options.out, {"machine": describe(), **total, "pieces": pieces}, indent=1)
    return int(any(name in total["left"] for name in _OWN))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
