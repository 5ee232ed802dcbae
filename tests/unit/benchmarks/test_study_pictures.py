"""The pictures of docs/results.md: what they name was measured."""

import pytest

from benchmarks.study_pictures import ENDINGS, FIELD, FRONTIERS, MEASURED, PICTURES, distances
from recipe.flowrl.compare.frontier_report import load
from recipe.flowrl.compare.studies import STUDIES


@pytest.mark.parametrize("name", FRONTIERS)
def test_the_systems_of_a_picture_are_in_the_measurements(name: str) -> None:
    outcome, systems = FRONTIERS[name]
    assert set(systems) <= set(load(MEASURED / outcome)[1])


def test_the_systems_of_all_pictures_are_among_the_firsts() -> None:
    first, *others = (set(systems) for _, systems in FRONTIERS.values())
    assert all(systems <= first for systems in others)


def test_every_variant_was_measured() -> None:
    assert {name for outcome in FIELD for name in load(MEASURED / outcome)[1]} >= set(STUDIES["repeated"].variants)


def test_every_objective_of_the_exact_test_has_three_runs() -> None:
    assert {len(distances(directory)) for directory in ENDINGS.values()} == {3}
    assert max(distances("raw_3/flowrl_plus")) < 0.01 < min(distances("norm_15/flowrl"))


def test_a_picture_has_a_row_an_objective() -> None:
    axes = PICTURES["endings"]().axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(ENDINGS) and len(axes.lines) == len(ENDINGS)
