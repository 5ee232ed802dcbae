"""The run directory: what a launch finds in it, and what it writes there around the training itself."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.common.errors import account_of
from recipe.flowrl.common.files import replacing, write_json
from recipe.flowrl.common.foreign import read_text
from recipe.flowrl.common.secrets import masked

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
    """Write the resolved configuration, without secrets, for this user alone. No run is composed from it."""
    with replacing(run_dir / "config.yaml", private=True) as temporary:
        OmegaConf.save(OmegaConf.create(masked(OmegaConf.to_container(config))), temporary)


@contextmanager
def recorded_launch(config: DictConfig, run_dir: Path, resumed: bool) -> Iterator[None]:
    """Keep ``run.json``: what ran, when, where, how many launches it took (with those that this one continues, where it
    is ``resumed``), and how the last two ended.

    ``finished`` (seconds since the epoch), ``exit_status`` and ``ended`` are missing while a launch is under way, and
    after one that was killed.
    """
    path = run_dir / "run.json"
    before = _earlier(path)
    earlier = before if resumed else {}
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


def _earlier(path: Path) -> dict[str, Any]:
    """The record of the launch before; empty where there is none that can be read, as after a crash while writing."""
    try:
        record = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(record, dict):
        return {}
    kinds = {"started": int | float, "attempts": int, "ended": str}
    return {name: value for name, value in record.items() if isinstance(value, kinds.get(name, object))}


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
