"""Bad input on the real command line: one or two lines and exit status 2 within seconds, with nothing written."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


def launch(directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """``main_flowrl`` with ``directory`` as working directory and run_dir and cache in it; its output is in stdout."""
    cache = {"FLOWRL_CACHE": str(directory / "cache"), "PYTHONPATH": str(PROJECT)}
    return subprocess.run(
        [sys.executable, "-m", "recipe.flowrl.main_flowrl", *arguments],
        cwd=directory,
        env=os.environ | cache | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )


def _cpu_seconds() -> float:
    """Of finished child processes: unlike elapsed time, it doesn't depend on what else the machine does."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["data.train_files", "experiment=countdown_cpu"]),
        (["experiment=countdown_cpu", "algo=grop"], ["algo=grop", "did you mean 'grpo'?"]),
        (["experiment=countdown_cpu", "trainer.nnodez=2"], ["trainer.nnodez", "did you mean trainer.nnodes?"]),
        (["experiment=countdown_cpu", "flowrl.beta=-1"], ["flowrl.beta: got -1", "> 0"]),
        (["experiment=countdown_cpu", "algo=grpo", "+flowrl.beta=1"], ["+flowrl.beta=1", "algo=flowrl"]),
        (["experiment=countdown_cpu", "data.train_files=/nonexistent.parquet"], ["/nonexistent.parquet doesn't exist"]),
        (["experiment=countdown_cpu", "actor_rollout_ref.model.path=/proc"], ["/proc is no model", "config.json"]),
        (["experiment=countdown_cpu", "actor_rollout_ref.actor.ppo_mini_batch_size=12"], ["=12 doesn't divide"]),
        (["experiment=countdown_cpu", "trainer.experiment_name=${x}"], ["trainer.experiment_name", "'x' not found"]),
        (["experiment=math_7b", "cluster=1x8", "dryrun=true", "flowrl.beta=-1"], ["flowrl.beta: got -1", "> 0"]),
        (["experiment=math_7b", "cluster=1x8", "dryrun=true", "data_dir=/none"], ["/none/train.parquet doesn't exist"]),
        (["--multirun", "experiment=countdown_cpu", "flowrl.beta=1,2"], ["--multirun", "one command for each"]),
    ],
)
def test_bad_input(arguments: list[str], parts: list[str], tmp_path: Path) -> None:
    before = _cpu_seconds()
    finished = launch(tmp_path, *arguments)
    assert _cpu_seconds() - before < 6, "verl alone takes that long to import"
    assert finished.returncode == 2, finished.stdout
    lines = finished.stdout.splitlines()
    assert len(lines) <= 2 and lines[0].startswith("error: "), finished.stdout
    for part in parts:
        assert part in finished.stdout
    assert list(tmp_path.iterdir()) == [], "nothing is written"


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    for bad in ("flowrl.beta=-1", "trainer.nnodez=2"):
        finished = launch(tmp_path, "experiment=countdown_cpu", bad, FLOWRL_DEBUG="1")
        assert finished.returncode == 2
        assert "Traceback (most recent call last)" in finished.stdout
        assert finished.stdout.splitlines()[-1].startswith("error: ")


def test_hydras_flags_work(tmp_path: Path) -> None:
    shown = launch(tmp_path, "experiment=countdown_cpu", "algo=grpo", "--cfg", "job", "--package", "algorithm")
    assert shown.returncode == 0
    assert "adv_estimator: grpo" in shown.stdout
    assert launch(tmp_path, "--help").returncode == 0
    refused = launch(tmp_path, "experiment=countdown_cpu", "algo=grop", "--cfg", "job")
    assert refused.returncode == 2 and refused.stdout.startswith("error: algo=grop")
    assert list(tmp_path.iterdir()) == []
