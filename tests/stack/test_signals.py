"""Ctrl-C and SIGTERM end a run within 20 s and leave no process behind."""

import signal
import time
from pathlib import Path

import psutil
import pytest
from runs import TINY, finish, start


@pytest.mark.parametrize(
    ("signum", "status", "reached"),
    [
        (signal.SIGINT, 130, "loading vLLM"),
        (signal.SIGTERM, 143, "1/200"),
    ],
)
def test_a_signal_ends_the_run(prepared: None, tmp_path: Path, signum: int, status: int, reached: str) -> None:
    process = start(tmp_path, *TINY, "trainer.total_training_steps=200", "trainer.save_freq=-1", PYTHONUNBUFFERED="1")
    for line in process.stdout:
        if reached in line:
            break
    descendants = psutil.Process(process.pid).children(recursive=True)
    assert len(descendants) > 5, "Ray runs"
    sent = time.monotonic()
    process.send_signal(signum)
    run = finish(process, tmp_path, timeout_s=60)
    assert time.monotonic() - sent < 20
    assert run.status == status
    assert "Traceback" not in run.output
    left = [p for p in descendants if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not left, left
