"""``plan``'s bytes against those of real updates; ``benchmarks/plan_memory.json`` has the figures."""

import io
import json
from pathlib import Path

import pytest

from benchmarks.plan_memory import CASES, TOLERANCE, measure
from recipe.flowrl.reporting.console import RunConsole

RECORDED = Path(__file__).resolve().parents[2] / "benchmarks" / "plan_memory.json"


@pytest.fixture(scope="module")
def measured() -> dict:
    with RunConsole(io.StringIO()) as console:
        return measure(console)


@pytest.mark.parametrize("name", CASES)
def test_an_update_takes_about_what_plan_says(measured: dict, name: str) -> None:
    assert measured["summary"][name] == pytest.approx(1.0, abs=TOLERANCE), measured["samples"][name]


def test_the_cases_have_their_worst_moments_at_different_places(measured: dict) -> None:
    assert len({sample["moment"] for sample in measured["samples"].values()}) >= 3


def test_parameters_and_optimizer_are_those_of_the_plan(measured: dict) -> None:
    for sample in measured["samples"].values():
        planned = sample["planned"]["parameters"] + sample["planned"]["optimizer"]
        assert sample["resident"] == pytest.approx(planned, rel=0.01)


def test_the_record_is_of_these_cases() -> None:
    recorded = json.loads(RECORDED.read_text())
    assert set(recorded["summary"]) == set(CASES)
    assert all(ratio == pytest.approx(1.0, abs=TOLERANCE) for ratio in recorded["summary"].values())
