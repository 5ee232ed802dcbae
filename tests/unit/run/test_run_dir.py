"""What a launch finds in a run directory and writes into it."""

import json
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.reporting.observer import RunRecorder
from recipe.flowrl.run.run_dir import next_log, recorded_launch, save_config, set_aside_records


@pytest.fixture
def config(tmp_path: Path) -> DictConfig:
    trainer = {
        "project_name": "countdown_cpu",
        "experiment_name": "flowrl",
        "resume_mode": "auto",
        "resume_from_path": None,
        "default_local_dir": str(tmp_path / "checkpoints"),
        "nnodes": 1,
        "n_gpus_per_node": 1,
    }
    return OmegaConf.create({"trainer": trainer})


def test_every_launch_has_its_log(tmp_path: Path) -> None:
    first = next_log(tmp_path)
    first.touch()
    assert next_log(tmp_path) != first


def test_records_of_an_earlier_run_are_kept_apart(tmp_path: Path) -> None:
    assert set_aside_records(tmp_path) is None
    for number in (1, 2):
        (tmp_path / "metrics.jsonl").write_text(f"run {number}")
        (tmp_path / "rollouts").mkdir()
        assert set_aside_records(tmp_path) == tmp_path / "superseded" / str(number)
        assert not (tmp_path / "metrics.jsonl").exists() and not (tmp_path / "rollouts").exists()
    assert (tmp_path / "superseded" / "1" / "metrics.jsonl").read_text() == "run 1"


def test_launches_are_recorded(config: DictConfig, tmp_path: Path) -> None:
    def record() -> dict:
        return json.loads((tmp_path / "run.json").read_text())

    with pytest.raises(KeyboardInterrupt), recorded_launch(config, tmp_path, resumed=False):
        assert "finished" not in record()
        raise KeyboardInterrupt
    assert record()["exit_status"] == 130 and record()["ended"] == "interrupted"
    started = record()["started"]

    with recorded_launch(config, tmp_path, resumed=True):
        pass
    assert record()["attempts"] == 2 and record()["exit_status"] == 0
    assert record()["previous_end"] == "interrupted" and record()["ended"] == "finished"
    assert record()["started"] == started <= record()["finished"]


def test_config_is_saved_whole(tmp_path: Path) -> None:
    save_config(OmegaConf.create({"a": 1}), tmp_path)
    assert OmegaConf.load(tmp_path / "config.yaml") == {"a": 1}
    assert not list(tmp_path.glob("*.tmp"))


def test_recorder_writes_numbers_only_and_tells_the_console(tmp_path: Path) -> None:
    import numpy as np
    import torch

    recorder = RunRecorder(tmp_path)
    recorder.total_steps = 5
    recorder.phase("update")
    recorder.log({"a": np.float32(0.5), "b": torch.tensor(2), "text": "x", "flag": True, "list": [1, 2]}, step=3)
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert {name: line[name] for name in line.keys() - {"time"}} == {"step": 3, "a": 0.5, "b": 2}
    events = [json.loads(text) for text in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(event["event"], event.get("name"), event.get("total")) for event in events] == [
        ("phase", "update", None),
        ("step", None, 5),
    ]
