"""What the report of an asynchronous run has beside that of a synchronous one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from test_report import synthetic_run

from recipe.flowrl.reporting.catalogue import sections
from recipe.flowrl.reporting.run_records import load_run
from recipe.flowrl.reporting.run_report import _agreement

METRICS = {
    "training/off_policy/trajectory_staleness_worst/mean": 1.2,
    "training/off_policy/trajectory_staleness_worst/max": 3,
    "train/rollout_log_ratio/abs_mean": 0.2,
    "train/rollout_log_ratio/abs_max": 1.4,
    "rollout_corr/rollout_rs_seq_masked_fraction": 0.1,
    "train/trainer_idle": 0.3,
    "train/servers_idle": 0.5,
}


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    run_dir = synthetic_run(tmp_path / "run", steps=6)
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [json.dumps(line | (METRICS if line["step"] else {})) for line in lines]
    (run_dir / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    return run_dir


def figures(run_dir: Path, mode: str) -> dict[str, list[str]]:
    """Section -> the keys of its figures, of the run as one in ``mode``."""
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    config["trainer"]["v1"] = {"trainer_mode": mode}
    (run_dir / "config.yaml").write_text(yaml.safe_dump(config))
    return {section.title: [figure.key for figure in section.figures] for section in sections(load_run(run_dir))}


def test_age_distance_and_what_is_left_out_of_an_asynchronous_run(run_dir: Path) -> None:
    assert figures(run_dir, "separate_async")["Asynchrony"] == ["age", "lag", "left-out"]
    assert "Asynchrony" in figures(run_dir, "colocate_async")
    assert "Asynchrony" not in figures(run_dir, "sync")


@pytest.mark.parametrize("mode", ["sync", "separate_async"])
def test_idle_time_of_any_run(run_dir: Path, mode: str) -> None:
    assert "idle" in figures(run_dir, mode)["Time"]


@pytest.mark.parametrize(("mode", "said"), [("sync", "0.5 of the run"), ("separate_async", "1e-06 of the first step")])
def test_later_data_of_an_asynchronous_run_say_nothing_of_the_weight_sync(run_dir: Path, mode: str, said: str) -> None:
    name = "training/rollout_probs_diff_max"
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [json.dumps(line | ({name: 1e-6 if line["step"] == 1 else 0.5} if line["step"] else {})) for line in lines]
    (run_dir / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    figures(run_dir, mode)
    headline = _agreement(load_run(run_dir))
    value, _, of = said.partition(" ")
    assert float(headline.value) == float(value) and headline.detail.endswith(of)


def test_the_replayed_rollouts_of_a_run_that_has_some(run_dir: Path) -> None:
    assert "Replay" not in figures(run_dir, "sync")
    told = {"replay/share": 0.5, "replay/age_mean": 2, "replay/age_max": 4, "replay/reward": 0.4}
    told |= {"replay/log_ratio_abs_mean": 0.1, "replay/log_ratio_abs_max": 0.7}
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    rows = [json.dumps(line | (told if line["step"] else {})) for line in lines]
    (run_dir / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    assert figures(run_dir, "sync")["Replay"] == ["replay-age", "replay-reward", "replay-lag"]
