"""Start the ranks of ``scenarios.py``, wait for them for a limited time, and read what they found."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SCENARIOS = Path(__file__).with_name("scenarios.py")
PROJECT = Path(__file__).parents[2]
HELPERS = PROJECT / "tests" / "helpers"


@dataclass(frozen=True)
class Failure:
    """A scenario raised."""

    traceback: str


def run_ranks(directory: Path, ranks: int, *scenarios: str, limit_s: float = 500.0) -> dict[str, Any]:
    """Results of all or the named scenarios on ``ranks`` gloo ranks: name -> what it returned, or a :class:`Failure`.

    Raises:
        RuntimeError: a rank ended with an error or the time was up; with the end of that rank's output.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = "_".join([str(ranks), *scenarios])
    logs = [directory / f"rank_{rank}_of_{run}.log" for rank in range(ranks)]
    processes = []
    try:
        for rank, log in enumerate(logs):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            place |= {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "PYTHONPATH": f"{PROJECT}:{PROJECT / 'tests' / 'helpers'}",
            }
            environment = os.environ | {name: str(value) for name, value in place.items()}
            with log.open("w") as output:
                command = [sys.executable, str(SCENARIOS), str(directory), f"results_{run}.pt", *scenarios]
                processes.append(subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT))
        deadline = time.monotonic() + limit_s
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() for process in processes):
                break  # the others would wait for it for ever
            time.sleep(0.1)
        codes = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if any(code != 0 for code in codes):
        tails = "\n".join(f"--- {log.name}\n{log.read_text()[-3000:]}" for log in logs)
        raise RuntimeError(f"exit codes after at most {limit_s:.0f} s (None: still running): {codes}\n{tails}")
    return torch.load(directory / f"results_{run}.pt", weights_only=False)
