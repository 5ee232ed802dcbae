"""The plan of the chaos script and its judgement of an end; what it does to a run is tests/stack/test_deaths.py's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.chaos import STARTING, Kill, plan, problems_of, read, table, write
from benchmarks.victims import TITLES, Outcome


def test_the_plan_is_drawn_from_its_seed_and_hits_every_kind() -> None:
    kills = plan(30, seed=1)
    assert kills == plan(30, seed=1) != plan(30, seed=2)
    assert {kill.kind for kill in kills} == set(TITLES)
    assert sum(kill.phase == "checkpoint" for kill in kills) >= 6
    assert any(kill.phase in STARTING for kill in kills)


@pytest.mark.parametrize(
    ("outcome", "problem"),
    [
        (Outcome(7.0, 1, "error: the trainer (TaskRunnerV1, pid 5) died", []), None),
        (Outcome(7.0, -9, "error: the main process (pid 5) died; its processes have been ended", []), None),
        (Outcome(61.0, 1, "error: the trainer (TaskRunnerV1, pid 5) died", []), "no end within 60 s"),
        (Outcome(120.0, None, "error: the trainer (TaskRunnerV1, pid 5) died", []), "no end within 60 s"),
        (Outcome(7.0, 0, "error: the trainer (TaskRunnerV1, pid 5) died", []), "exit status 0"),
        (Outcome(7.0, 1, "error: the trainer (TaskRunnerV1, pid 6) died", []), "no single line that names what died"),
        (Outcome(7.0, 1, "error: a (pid 5)\nerror: b", []), "no single line that names what died"),
        (Outcome(7.0, 1, "error: the trainer (TaskRunnerV1, pid 5) died", ["process 8"]), "left: process 8"),
    ],
)
def test_what_is_wrong_with_an_end(outcome: Outcome, problem: str | None) -> None:
    assert problems_of(Kill("trainer", "rollout", 0.1, outcome=outcome), pid=5) == ([problem] if problem else [])


def test_an_interrupted_plan_is_read_back(tmp_path: Path) -> None:
    kills = plan(4, seed=3)
    kills[0].outcome, kills[0].problems, kills[0].resumed_step = Outcome(1.5, 1, "x", []), ["y"], 2
    write(tmp_path / "chaos.json", kills, 1, seed=3)
    assert read(tmp_path / "chaos.json") == (kills, 1, 3)
    assert len(json.loads((tmp_path / "chaos.json").read_text())["kills"]) == 1
    assert table(kills).row_count == 4
