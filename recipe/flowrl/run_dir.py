"""The run directory: what a launch finds in it, and what it writes there before training starts."""

import os
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

RECORDS = ("metrics.jsonl", "events.jsonl", "rollouts", "validation", "report.html")
"""What a run writes step by step."""


def next_log(run_dir: Path) -> Path:
    """A log file for this launch; a resumed run keeps the earlier ones."""
    logs = run_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    return logs / f"launch_{len(list(logs.glob('launch_*.log'))) + 1}.log"


def save_config(config: DictConfig, run_dir: Path) -> None:
    """Write the resolved configuration."""
    temporary = run_dir / "config.yaml.tmp"
    OmegaConf.save(config, temporary)
    os.replace(temporary, run_dir / "config.yaml")


def resume_step(config: DictConfig) -> int:
    """The step after which this launch will continue; 0 is a start from scratch."""
    if config.trainer.resume_mode == "resume_path":
        return int(str(config.trainer.resume_from_path).rstrip("/").rsplit("global_step_", 1)[-1])
    tracker = Path(config.trainer.default_local_dir) / "latest_checkpointed_iteration.txt"
    if config.trainer.resume_mode == "disable" or not tracker.is_file():
        return 0
    return int(tracker.read_text())


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
