"""The real CPU training job on a real SLURM: stopped by a signal or by its time limit, requeued, resumed, finished."""

import json
import sys
from pathlib import Path

import pytest
from cluster import Cluster
from test_slurm import assert_nothing_left, until

from benchmarks.launches import SMALL_BATCH

PROJECT = Path(__file__).resolve().parents[2]
STEPS = 6
SMALL = [
    "experiment=countdown_cpu",
    *SMALL_BATCH,
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.save_freq=100",
    "slurm.notice_s=120",
]


def submit(cluster: Cluster, directory: Path, *overrides: str) -> tuple[str, Path, Path]:
    """Submit the small run; returns the job, the run's directory and the file of the job's output."""
    run_dir, site = directory / "run", directory / "site.env"
    site.write_text(f"SITE_VENV={Path(sys.executable).parents[1]}\nSITE_LOCAL_DIR={cluster.base}/local\n")
    environment = {"FLOWRL_SITE": str(site), "HF_HUB_OFFLINE": "1", "FLOWRL_LOGS": str(directory / "logs")}
    command = [sys.executable, "-m", "recipe.flowrl", "submit", *SMALL, *overrides, f"run_dir={run_dir}"]
    job = cluster.run(*command, timeout_s=120, **environment).split(";")[0].removeprefix("job ")
    return job, run_dir, run_dir / f"slurm-{job}.out"


def test_a_run_over_two_nodes_is_requeued_and_finished(cluster: Cluster, tmp_path: Path) -> None:
    options = ["trainer.nnodes=2", f"trainer.total_training_steps={STEPS}", "slurm.time=00:25:00"]
    job, run_dir, output = submit(cluster, tmp_path, *options)
    until(cluster, job, output, f"step 2/{STEPS}", 600)
    cluster.run("scancel", "--batch", "--signal=USR1", job)
    until(cluster, job, output, "the run is saved: the job is requeued", 180)
    stopped = json.loads((run_dir / "run.json").read_text())
    assert stopped["exit_status"] == 75 and "which is saved" in stopped["ended"], stopped
    assert int((run_dir / "checkpoints" / "latest_checkpointed_iteration.txt").read_text()) >= 2

    fields = cluster.wait(job, "COMPLETED", "FAILED", timeout_s=600, restarts=1)
    said = output.read_text()
    assert fields["JobState"] == "COMPLETED", said[-4000:]
    assert "continuing after step" in said
    steps = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, STEPS + 1)), "none lost, none done twice"
    assert json.loads((run_dir / "run.json").read_text())["attempts"] == 2
    assert len(list((run_dir / "checkpoints").glob(f"global_step_{STEPS}/actor/model_world_size_2_rank_*.pt"))) == 2
    assert_nothing_left(cluster)


@pytest.mark.slow(reason="five minutes until SLURM says that time is up; the signal itself is sent in the test above")
def test_a_run_that_reaches_its_time_limit_goes_on_afterwards(cluster: Cluster, tmp_path: Path) -> None:
    """Nobody but SLURM says that time is up."""
    job, run_dir, output = submit(cluster, tmp_path, "trainer.total_training_steps=10000", "slurm.time=00:05:00")
    until(cluster, job, output, "USR1: the trainer is asked to finish its step", 300)
    until(cluster, job, output, "the run is saved: the job is requeued", 120)
    assert json.loads((run_dir / "run.json").read_text())["exit_status"] == 75
    saved = int((run_dir / "checkpoints" / "latest_checkpointed_iteration.txt").read_text())
    cluster.wait(job, "RUNNING", timeout_s=60, restarts=1)
    until(cluster, job, output, f"continuing after step {saved}", 300)
    until(cluster, job, output, f" {saved + 1}/10000", 300)
    cluster.run("scancel", job)
    cluster.wait(job, "CANCELLED", timeout_s=120, restarts=1)
    steps = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1)) and len(steps) > saved, "none lost, none done twice"
    assert_nothing_left(cluster)
