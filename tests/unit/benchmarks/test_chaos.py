"""The plan of the chaos script and its judgement of an end; what it does to a run is tests/stack/test_deaths.py's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.chaos import KINDS, STARTING, Kill, Record, plan, problems_of, read, table
from benchmarks.victims import Outcome


def test_the_plan_is_drawn_from_its_seed_and_hits_every_kind() -> None:
    kills = plan(30, seed=1)
    assert kills == plan(30, seed=1) != plan(30, seed=2)
    assert {kill.kind for kill in kills} == set(KINDS)
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


def test_an_interrupted_plan_is_gone_on_with_and_what_went_wrong_is_done_again(tmp_path: Path) -> None:
    kills = plan(4, seed=3)
    for kill, problems in zip(kills, (["y"], []), strict=False):
        kill.outcome, kill.problems, kill.resumed_step = Outcome(1.5, 1, "x", []), problems, 2
    Record(tmp_path / "chaos.json", 3, kills).write(2)
    assert [len(json.loads((tmp_path / "chaos.json").read_text())[key]) for key in ("kills", "to_do")] == [2, 2]
    found = read(tmp_path / "chaos.json")
    assert found.kills == [kills[1], *kills[2:], plan(4, seed=3)[0]]
    assert (found.done, found.seed) == (1, 3)
    assert [(kill["kind"], kill["problems"]) for kill in found.wrong_before] == [(kills[0].kind, ["y"])]
    assert table(kills).row_count == 4
    found.write(1)
    assert read(tmp_path / "chaos.json") == found
