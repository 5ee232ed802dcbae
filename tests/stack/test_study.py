"""A small study through the real stack: two algorithms of verl's own, trained, evaluated, reported."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from runs import PROJECT, TINY, Run

ALGORITHMS = ("grpo", "reinforce_plus_plus")
pytestmark = pytest.mark.slow(
    reason="two trainings and their evaluations, five minutes; test_signals starts a study as well"
)

SMALL = ["seeds=0", "steps=2", "lrs=1e-4", "puzzles=4", "samples=16", *TINY]
STUDY = ["study=countdown", f"algos={','.join(ALGORITHMS)}", *SMALL]


def compare(directory: Path, timeout_s: float, study: Sequence[str] = STUDY) -> str:
    """Run the study in ``directory``; returns what it said."""
    command = [sys.executable, "-m", "recipe.flowrl", "compare", *study, f"dir={directory}"]
    finished = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=timeout_s)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return finished.stdout


@pytest.fixture(scope="module")
def study(prepared: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("study")
    compare(directory, timeout_s=900)
    return directory


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_other_algorithms_run_on_the_same_footing(study: Path, algo: str) -> None:
    """The same model, data, rollouts and reporting, without anything of FlowRL."""
    run = Run(study / algo / "lr_0.0001" / "seed_0", 0, "", 0.0)
    assert run.metrics[2]["actor/grad_norm"] > 0
    assert run.metrics[2]["train/solve_rate"] >= 0
    assert not [name for name in run.metrics[2] if name.startswith("actor/flowrl/")]
    assert not (run.checkpoint(2) / "actor" / "log_partition.pt").exists()
    assert (run.run_dir / "report.html").exists()


def test_every_run_is_measured(study: Path) -> None:
    result = json.loads((study / "countdown.json").read_text())
    assert set(result["runs"]) == set(ALGORITHMS)
    (base,) = result["base"].values()
    for system in (base, *(runs["0"]["evaluation"] for runs in result["runs"].values())):
        assert len(system["exist"]) == 4
        for temperature in ("0.6", "1.0"):
            assert all(0 <= correct <= 16 for correct in system[temperature]["correct"])
    assert base["1.0"]["kl_to_base"] == pytest.approx([0.0] * 4, abs=1e-5)
    assert all(0 <= correct <= 16 for temperature in ("0.2", "0.4") for correct in base[temperature]["correct"])
    page = (study / "countdown.html").read_text()
    assert all(algo in page for algo in ALGORITHMS) and "<svg" in page


def test_what_is_done_is_not_done_again(study: Path) -> None:
    before = (study / "countdown.json").read_text()
    assert "training" not in compare(study, timeout_s=120)
    assert (study / "countdown.json").read_text() == before


def test_an_exact_study_measures_what_the_stack_and_one_process_have_trained(prepared: None, tmp_path: Path) -> None:
    study = ["study=agreement", "algos=grpo,grpo_stack", *SMALL]
    assert "s/step" in compare(tmp_path, 600, study)
    header, *lines = map(json.loads, (tmp_path / "agreement.jsonl").read_text().splitlines())
    points = {(line["variant"], line["step"]): line for line in lines}
    assert set(points) == {(variant, step) for variant in ("grpo", "grpo_stack") for step in (0, 2)}
    base, ours, stacks = (points[key] for key in (("grpo", 0), ("grpo", 2), ("grpo_stack", 2)))
    assert points["grpo_stack", 0]["train"]["1"] == base["train"]["1"]
    assert ours["samples"] == stacks["samples"] > 0
    for point in (ours, stacks):
        moved = abs(point["train"]["1"]["right"] - base["train"]["1"]["right"])
        assert 1e-4 < moved < 0.1, "two updates"
        assert point["training"]["grad_norm"] > 0
    stack = tmp_path / "grpo_stack" / "lr_0.0001" / "seed_0"
    assert len(pq.read_table(stack / "puzzles.parquet")) == header["study"]["train_puzzles"]
    assert (stack / "stack" / "report.html").exists() and "grpo_stack" in (tmp_path / "agreement.html").read_text()
    assert "s/step" not in compare(tmp_path, 120, study), "what is done is not done again"
