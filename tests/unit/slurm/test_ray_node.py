"""Ray on a node of a SLURM job: its tries, its end, its ports. A shell script stands in for Ray here."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from recipe.flowrl.common.project import PROJECT

SLURM = PROJECT / "slurm"


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """What ``job.sh`` and SLURM put into the environment."""
    for name in ("bin", "attempt", "local"):
        (tmp_path / name).mkdir()
    return os.environ | {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(SLURM.parent),
        "FLOWRL_ATTEMPT": str(tmp_path / "attempt"),
        "SITE_LOCAL_DIR": str(tmp_path / "local"),
        "SLURM_JOB_ID": "12",
        "SLURMD_NODENAME": "n1",
        "RAY_ADDRESS": "10.0.0.1:20240",
        "RAY_CPUS_PER_NODE": "4",
        "RAY_GPUS_PER_NODE": "8",
    }


def start(job: dict[str, str], role: str, ray: str) -> subprocess.Popen:
    program = Path(job["PATH"].split(os.pathsep)[0], "ray")
    program.write_text(f"#!/bin/bash\n{ray}\n")
    program.chmod(0o755)
    with Path(job["FLOWRL_ATTEMPT"], "ray_n1.log").open("w") as log:
        return subprocess.Popen([sys.executable, SLURM / "ray_node.py", role], env=job, stdout=log, stderr=log)


def log(job: dict[str, str]) -> str:
    return Path(job["FLOWRL_ATTEMPT"], "ray_n1.log").read_text()


def test_a_ray_that_does_not_start_is_tried_again(job: dict[str, str]) -> None:
    assert start(job, "head", "echo try; exit 3").wait(30) == 3
    assert log(job).splitlines() == ["try"] * 3


def test_a_ray_that_had_started_is_not(job: dict[str, str]) -> None:
    assert start(job, "head", "echo Ray runtime started.; exit 4").wait(30) == 4
    assert log(job).splitlines() == ["Ray runtime started."]


@pytest.mark.parametrize(
    ("role", "there", "absent"),
    [
        ("head", ["--head", "--node-ip-address=10.0.0.1", "--port=20240", "--num-gpus=8"], "--address="),
        ("worker", ["--address=10.0.0.1:20240", "--num-cpus=4"], "--head"),
    ],
)
def test_the_command(job: dict[str, str], role: str, there: list[str], absent: str) -> None:
    start(job, role, 'echo Ray runtime started "$@" "[$RAY_ADDRESS]"').wait(30)
    for part in [*there, "[]"]:
        assert part in log(job)
    assert absent not in log(job)


def test_the_end_leaves_logs_and_no_process(job: dict[str, str]) -> None:
    """Not even one in a session of its own, which ignores SIGTERM."""
    session = Path(job["SITE_LOCAL_DIR"], "ray_12", "session_2026", "logs")
    stubborn = "setsid bash -c \"trap '' TERM; echo raylet; while :; do sleep 1; done\" &"
    process = start(job, "head", f"mkdir -p {session}; echo error > {session}/raylet.err; {stubborn} wait")
    while "raylet" not in log(job):
        time.sleep(0.1)
    descendants = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 143
    assert len(descendants) >= 2 and not any(p.is_running() for p in descendants)
    assert Path(job["FLOWRL_ATTEMPT"], "ray_n1", "raylet.err").read_text() == "error\n"
    assert not Path(job["SITE_LOCAL_DIR"], "ray_12").exists()


def test_the_port_depends_on_the_job_and_is_free() -> None:
    def shown(job: int) -> tuple[str, int]:
        command = [sys.executable, SLURM / "node_address.py", str(job)]
        host, port = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return host, int(port)

    host, port = shown(7)
    assert not host.startswith("127.") or socket.gethostbyname(socket.gethostname()).startswith("127.")
    assert 20000 <= port < 32000 and shown(8)[1] // 20 == port // 20 + 1
    with socket.socket() as taken:
        taken.bind((host, port))
        taken.listen()
        assert shown(7) == (host, port + 1)
