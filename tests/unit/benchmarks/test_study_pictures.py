"""The pictures of docs/results.md: every system that they name was measured."""

import pytest

from benchmarks.study_pictures import PICTURES
from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.compare.frontier_report import load


@pytest.mark.parametrize("name", PICTURES)
def test_the_systems_of_a_picture_are_in_the_measurements(name: str) -> None:
    _, runs = load(PROJECT / "benchmarks" / name / f"{name}.jsonl")
    assert set(PICTURES[name]) <= set(runs)
