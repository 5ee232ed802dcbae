"""``status``: what a run's directory says of it, and what is no run's directory."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipe.flowrl.__main__ import main
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.reporting.events import EventWriter
from recipe.flowrl.run.run_dir import recorded_launch
from recipe.flowrl.run.status import QUIET_S, status

NOW = 2_000_000_000.0


def write(run_dir: Path, **record: object) -> None:
    """A run of which steps 1 to 4 of 10 have ended, 5 s each, the last of them 2 s ago."""
    (run_dir / "run.json").write_text(
        json.dumps({"experiment": "countdown_cpu", "algo": "flowrl", "attempts": 2, "launched": NOW - 100} | record)
    )
    events = [
        {"time": NOW - 2 - 5 * (4 - step), "event": "step", "step": step, "total": 10,
         "metrics": {"critic/score/mean": step / 10, "timing_s/step": 4.5}}
        for step in range(1, 5)
    ]  # fmt: skip
    events.append({"time": NOW - 1, "event": "phase", "name": "rollout"})
    (run_dir / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def lines(run_dir: Path) -> dict[str, str]:
    return {line[:19].strip(): line[19:] for line in status(run_dir, NOW).splitlines()}


def test_a_run_under_way_elsewhere(tmp_path: Path) -> None:
    write(tmp_path, host="n7", slurm_job="12", previous_end="ended by SIGTERM")
    shown = lines(tmp_path)
    assert shown["state"] == "running on n7, SLURM job 12, in phase 'rollout'; last sign of life 1s ago"
    assert (shown["step"], shown["reward"], shown["s/step"]) == ("4/10", "0.400", "5.0")
    assert shown["ETA"] == "29s", "six steps of 5 s, less the second since the last event"
    assert (shown["attempts"], shown["last attempt ended"]) == ("2", "not yet")
    assert shown["the one before"] == "ended by SIGTERM"
    assert shown["last checkpoint"] == "none yet"


def test_the_time_between_two_launches_is_no_steps(tmp_path: Path) -> None:
    write(tmp_path, host="n7")
    steps = [
        {"time": NOW + time, "event": "step", "step": step, "total": 10, "metrics": {}}
        for step, time in ((5, 1000), (6, 1003))
    ]
    with (tmp_path / "events.jsonl").open("a") as file:
        for event in [{"time": NOW + 900, "event": "phase", "name": "starting Ray"}, *steps]:
            file.write(json.dumps(event) + "\n")
    assert lines(tmp_path)["s/step"] == "3.0"


def test_a_run_that_went_silent(tmp_path: Path) -> None:
    write(tmp_path, host="n7")
    record = json.loads((tmp_path / "run.json").read_text())
    assert "silent on n7" in status(tmp_path, record["launched"] + QUIET_S + 200)


def test_a_run_whose_process_is_gone(tmp_path: Path) -> None:
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    write(tmp_path, host=socket.gethostname(), pid=finished.pid)
    shown = lines(tmp_path)
    assert "gone without an end, in phase 'rollout'" in shown["state"]
    assert "killed" in shown["last attempt ended"]
    assert shown["ETA"] == "none, it isn't running"


def test_another_process_with_the_same_number_is_not_the_run(tmp_path: Path) -> None:
    write(tmp_path, host=socket.gethostname(), pid=os.getpid(), launched=1000.0)
    assert "gone without an end" in lines(tmp_path)["state"]


def test_while_and_after_a_real_launch(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    checkpoints = tmp_path / "checkpoints"
    trainer = {"project_name": "p", "experiment_name": "e", "resume_mode": "auto", "default_local_dir": checkpoints}
    config = OmegaConf.create({"trainer": {name: str(value) for name, value in trainer.items()}})
    with pytest.raises(RuntimeError), recorded_launch(config, tmp_path, resumed=False):
        EventWriter(tmp_path / "events.jsonl").write("phase", name="starting Ray")
        assert main(["status", str(tmp_path)]) == 0
        assert "running on" in capsys.readouterr().out
        raise RuntimeError("node n2 didn't join")
    assert main(["status", str(tmp_path)]) == 0
    assert "last attempt ended error: RuntimeError: node n2 didn't join" in capsys.readouterr().out


def test_the_last_checkpoint_of_a_directory_that_was_moved(tmp_path: Path) -> None:
    write(tmp_path, finished=NOW - 60, exit_status=0, ended="finished")
    (tmp_path / "config.yaml").write_text("run_dir: /old/run\ntrainer: {default_local_dir: /old/run/saved}\n")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "latest_checkpointed_iteration.txt").write_text("4")
    os.utime(tmp_path / "saved" / "latest_checkpointed_iteration.txt", (NOW - 90, NOW - 90))
    expected = f"step 4, 1m30s ago: {tmp_path / 'saved' / 'global_step_4'}"
    assert lines(tmp_path)["last checkpoint"] == f"{expected}, but it is missing"
    (tmp_path / "saved" / "global_step_4").mkdir()
    assert lines(tmp_path)["last checkpoint"] == expected
    assert (lines(tmp_path)["state"], lines(tmp_path)["last attempt ended"]) == ("finished 1m00s ago", "finished")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [("absent", None, "doesn't exist"), ("file", "x", "is a file"), (".", None, "has no run.json")],
)
def test_what_is_no_run(name: str, content: str | None, part: str, tmp_path: Path) -> None:
    if content:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=part):
        status(tmp_path / name, NOW)


def test_runs_below_are_named(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "run.json").write_text("{}")
    with pytest.raises(UserError, match="there are runs in .*/a/b"):
        status(tmp_path, NOW)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_record(content: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "run.json").write_text(content)
    assert main(["status", str(tmp_path)]) == 2
    assert str(tmp_path / "run.json") in capsys.readouterr().err
