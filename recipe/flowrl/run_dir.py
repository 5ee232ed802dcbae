"""The run directory: what a launch finds in it, and what it writes there around the training itself."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.errors import account_of
from recipe.flowrl.files import replacing, write_json
from recipe.flowrl.resume import choose

KILLED = "killed, or its machine went down"
"""The end of a launch that couldn't record one."""

RECORDS = ("metrics.jsonl", "events.jsonl", "rollouts", "validation", "report.html")
"""What a run writes step by step."""


def next_log(run_dir: Path) -> Path:
    """A log file for this launch; a resumed run keeps the earlier ones."""
    logs = run_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return logs / f"launch_{len(list(logs.glob('launch_*.log'))) + 1}.log"


def save_config(config: DictConfig, run_dir: Path) -> None:
    """Write the resolved configuration."""
    with replacing(run_dir / "config.yaml") as temporary:
        OmegaConf.save(config, temporary)


@contextmanager
def recorded_launch(config: DictConfig, run_dir: Path) -> Iterator[None]:
    """Keep ``run.json``: what ran, when, where, how many launches it took, and how the last two ended.

    ``finished`` (seconds since the epoch), ``exit_status`` and ``ended`` are missing while a launch is under way, and
    after one that was killed.
    """
    path = run_dir / "run.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    earlier = before if choose(config).checkpoint else {}
    record = {
        "experiment": config.trainer.project_name,
        "algo": config.trainer.experiment_name,
        "started": earlier.get("started", time.time()),
        "attempts": earlier.get("attempts", 0) + 1,
        "launched": time.time(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "previous_end": before.get("ended", KILLED) if before else None,
    }
    write_json(path, record, indent=1)
    ended, status = "finished", 0
    try:
        yield
    except BaseException as error:
        ended, status = account_of(error)
        raise
    finally:
        write_json(path, record | {"finished": time.time(), "exit_status": status, "ended": ended}, indent=1)


def set_aside_records(run_dir: Path) -> Path | None:
    """Before a start from scratch: move an earlier run's records to ``superseded/N``, so that the two don't mix.

    Returns:
        Where they are now; None if there were none.
    """
    records = [run_dir / name for name in RECORDS if (run_dir / name).exists()]
    if not records:
        return None
    superseded = run_dir / "superseded"
    target = superseded / str(len(list(superseded.glob("*"))) + 1)
    target.mkdir(parents=True)
    for record in records:
        record.rename(target / record.name)
    return target
