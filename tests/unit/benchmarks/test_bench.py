"""The arithmetic of the benchmarks: medians, paired ratios, order of runs, and phases read from a run's events."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks import checkpoint_cost, run
from benchmarks.launches import BEFORE_RAY, startup_phases, step_periods
from benchmarks.rows import Row
from benchmarks.stats import block_sums, interleaved, paired_ratio, summarize
from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.reporting.console import RunConsole


def test_summary_is_median_and_quartiles() -> None:
    summary = summarize([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (summary.median, summary.lower_quartile, summary.upper_quartile, summary.count) == (3.0, 2.0, 4.0, 5)


def test_no_sample_has_no_summary() -> None:
    with pytest.raises(ValueError, match="no measurement"):
        summarize([])


def test_what_weighs_on_both_of_a_pair_divides_out() -> None:
    load = np.array([1.0, 3.0, 0.5, 20.0, 7.0])
    ratio = paired_ratio(1.25 * load, load)
    assert (ratio.median, ratio.low, ratio.high, ratio.pairs) == pytest.approx((1.25, 1.25, 1.25, 5))


def test_ratio_is_robust_to_an_outlier() -> None:
    assert paired_ratio([1.1, 1.1, 1.1, 1.1, 50.0], [1.0] * 5).median == pytest.approx(1.1)


def test_interval_covers_the_true_ratio_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(3)
    covered = 0
    for _ in range(100):
        truth = paired_ratio(generator.lognormal(np.log(1.1), 0.05, 15), np.ones(15), confidence=0.9)
        covered += truth.low <= 1.1 <= truth.high
    assert 80 <= covered <= 99


def test_interval_narrows_with_the_confidence_asked_for() -> None:
    numerators = np.random.default_rng(0).normal(1.0, 0.1, 20)
    wide, narrow = (paired_ratio(numerators, np.ones(20), confidence=level) for level in (0.99, 0.5))
    assert wide.low < narrow.low <= narrow.median <= narrow.high < wide.high


@pytest.mark.parametrize(("numerators", "denominators"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0])])
def test_no_ratio_without_pairs_of_positive_numbers(numerators: list[float], denominators: list[float]) -> None:
    with pytest.raises(ValueError):
        paired_ratio(numerators, denominators)


def test_a_linear_drift_cancels_within_each_block() -> None:
    order = interleaved("a", "b", blocks=3)
    assert order == list("abbaabbaabba")
    drifting = [1.0 + 0.1 * time for time in range(12)]
    assert block_sums(order, drifting, "a") == pytest.approx(block_sums(order, drifting, "b"))


def test_block_sums_belong_to_their_name() -> None:
    assert block_sums(list("abba") * 2, [1, 10, 20, 2, 3, 30, 40, 4], "b") == [30, 70]


@pytest.mark.parametrize(("order", "values"), [("abb", [1, 2, 3]), ("abba", [1, 2, 3]), ("aaab", [1, 2, 3, 4])])
def test_other_orders_are_refused(order: str, values: list[float]) -> None:
    with pytest.raises(ValueError):
        block_sums(list(order), values, "a")


def phase(time: float, name: str) -> dict[str, object]:
    return {"time": time, "event": "phase", "name": name}


EVENTS = [
    phase(13.0, "starting Ray"),
    phase(20.0, "loading vLLM"),
    {"time": 21.0, "event": "message", "text": "no phase"},
    phase(30.0, "rollout"),
    phase(32.0, "update"),
    phase(35.0, "weight sync"),
    {"time": 36.0, "event": "step", "step": 1, "total": 2, "metrics": {}},
    phase(36.5, "rollout"),
    phase(40.5, "update"),
]


def test_startup_ends_with_the_first_update() -> None:
    phases = startup_phases(EVENTS, started=10.0)
    assert phases == {BEFORE_RAY: 3.0, "starting Ray": 7.0, "loading vLLM": 10.0, "rollout": 2.0, "update": 3.0}
    assert sum(phases.values()) == 25.0


def test_startup_without_an_update_is_refused() -> None:
    with pytest.raises(ValueError, match="no update has ended"):
        startup_phases(EVENTS[:5], started=10.0)


def test_a_step_lasts_until_the_next_begins() -> None:
    assert step_periods(EVENTS) == [6.5]


def test_a_save_is_compared_with_steps_that_it_does_not_touch() -> None:
    periods = [9.0, 9.0, 9.0, 2.0, 1.5, 1.0, 1.25, 3.0, 1.0, 1.0, 1.0]
    metrics = {4: {checkpoint_cost.TIMER: 0.5}, 8: {checkpoint_cost.TIMER: 0.25}}
    assert checkpoint_cost.blocks(periods, metrics) == [
        {"step": 4, "save": 0.5, "with": [2.0, 1.5], "without": [1.0, 1.25]},
        {"step": 8, "save": 0.25, "with": [3.0, 1.0], "without": [1.0, 1.0]},
    ]
    assert len(periods) == checkpoint_cost.steps_needed(5) - 1, "the last step has no period"
    with pytest.raises(ValueError, match="no save"):
        checkpoint_cost.blocks(periods[:6], metrics)


@pytest.mark.parametrize(("value", "target", "met"), [(1.02, 1.02, True), (1.03, 1.02, False), (1.0, None, None)])
def test_a_target_is_a_largest_value(value: float, target: float | None, met: bool | None) -> None:
    assert Row("ratio", value, target=target).met is met


def test_graded_responses_are_counted_only_if_they_are_right() -> None:
    from benchmarks import grading

    result = grading.measure(grading.Effort(responses=3, batches=2, threads=2), RunConsole(io.StringIO()))
    assert set(result["summary"]) >= {"math"} and all(row.value > 0 for row in grading.rows(result))
    with pytest.raises(RuntimeError, match="0 of 2"):
        grading._rate(lambda: {"score": 0.0}, 2, 1)


def test_every_benchmark_imports() -> None:
    """In a process of its own: a name that moved shows here, not after hours of waiting for a quiet machine."""
    names = sorted(path.stem for path in (PROJECT / "benchmarks").glob("*.py") if path.stem != "__init__")
    programs = "".join(
        f"import benchmarks.{name}\n" for name in names if not name.startswith(("floor_", "update_child"))
    )
    done = subprocess.run([sys.executable, "-c", programs], cwd=PROJECT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_todays_figures_stand_beside_the_committed_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The committed file counts, not the one that the run before left; a file of another shape counts for nothing."""
    monkeypatch.setitem(run.ROWS, "startup", lambda result: [Row("start", result["seconds"], "s", target=3.0)])
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    (tmp_path / "startup.json").write_text('{"seconds": 4.0}')
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "figures"], check=True)
    (tmp_path / "startup.json").write_text('{"seconds": 9.0}')
    earlier = run.committed("startup", tmp_path)
    assert earlier == {"start": 4.0}
    assert run.committed("grading", tmp_path) == {}
    console = Console(width=150, file=io.StringIO())
    console.print(run.table({"startup": [Row("start", 5.0, "s", target=3.0), Row("new", 1.0)]}, {"startup": earlier}))
    lines = console.file.getvalue().splitlines()
    (start,) = (line for line in lines if "5.000 s" in line)
    assert "4.000 s" in start and "+25%" in start and "no" in start
    (new,) = (line for line in lines if "1.000" in line)
    assert "%" not in new
    monkeypatch.setitem(run.ROWS, "startup", lambda result: [Row("start", result["other"]["median"])])
    assert run.committed("startup", tmp_path) == {}
