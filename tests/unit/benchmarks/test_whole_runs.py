"""Whole runs side by side: what is made of what was seen. The runs themselves are no test's."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.configuration import compose
from benchmarks.steps import PHASES, Step, curves, draw_curves
from benchmarks.whole_runs import COMPARISONS, WARM_UP_STEPS, compared, rows


def run(*seconds: float, memory: int = 1) -> list[Step]:
    return [Step(s, 2 * s, 100, memory, 0.5, dict.fromkeys(PHASES, 0.0)) for s in (*[99.0] * WARM_UP_STEPS, *seconds)]


@pytest.mark.parametrize(("name", "variant"), [(name, v) for name, c in COMPARISONS.items() for v in c.variants])
def test_each_is_a_run_of_its_own(name: str, variant: str) -> None:
    comparison = COMPARISONS[name]
    others = [comparison.overrides(other) for other in comparison.variants if other != variant]
    assert all(compose(*comparison.overrides(variant)) != compose(*other) for other in others)


def test_ratios_are_those_to_the_first_variant_of_steps_after_the_first() -> None:
    summary = compared({"a": [run(1, 2)], "b": [run(3, 6, memory=2)]})
    assert summary["ratios"]["b"]["seconds"]["median"] == 3
    assert summary["ratios"]["b"]["peak_bytes"]["median"] == 2
    assert summary["variants"]["a"]["seconds"]["median"] == 1.5
    told = {row.name: row for row in rows({"summary": summary, "settings": {"largest": 2.5}})}
    assert told["b / a: seconds"].met is False and told["b / a: peak_bytes"].met
    assert told["b / a: cpu_seconds"].met is None


def test_the_picture_has_a_line_a_run(tmp_path: Path) -> None:
    samples = {name: [list(map(asdict, run(1, 2)))] * 2 for name in ("sync", "async")}
    by_step, by_time = curves(samples).axes
    assert len(by_step.lines) == len(by_time.lines) == 4
    assert list(by_time.lines[0].get_xdata()) == [99, 198, 199, 201]
    both = {name: [[{**step, "distinct": 1.5} for step in one] for one in runs] for name, runs in samples.items()}
    assert len(curves(both).axes) == 4 and list(curves(both).axes[2].lines[0].get_ydata()) == [1.5] * 4
    draw_curves(samples, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
