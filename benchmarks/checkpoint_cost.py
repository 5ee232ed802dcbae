"""What a checkpoint costs the steps of a real run: on the critical path, and through what goes on in the background.

Every fourth step of the run saves. The save is timed on the path; what is flushed, checksummed and renamed in the
background may slow the step that saves and the next, so these two are compared with the two after them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.launches import Launch, step_periods
from benchmarks.rows import Row, ratio_row, summary_row
from benchmarks.stats import paired_ratio, summarize

EVERY = 4
TARGET = 0.10
TIMER = "timing_s/save_checkpoint"

OVERRIDES = ["trainer.val_before_train=false", "trainer.test_freq=-1", f"trainer.save_freq={EVERY}"]


def steps_needed(steps: int) -> int:
    """Steps of a run in which at least ``steps`` are compared; the first ones warm up, the last one has no period."""
    return EVERY * (max(1, -(-steps // EVERY)) + 1)


def measure(launch: Launch) -> dict[str, Any]:
    """Returns ``settings``, ``summary`` and ``samples``, all JSON, times in seconds."""
    samples = blocks(step_periods(launch.events), launch.metrics)
    touched, untouched = ([sum(sample[of]) for sample in samples] for of in ("with", "without"))
    plain = [seconds / 2 for seconds in untouched]
    size = sum(path.stat().st_size for path in launch.run_dir.glob("checkpoints/*/**/*") if path.is_file())
    return {
        "settings": {"overrides": OVERRIDES, "target": TARGET, "bytes": size},
        "summary": {
            "on_path": asdict(paired_ratio([sample["save"] for sample in samples], plain)),
            "two_steps": asdict(
                paired_ratio(
                    [sum(sample["with"]) for sample in samples], [sum(sample["without"]) for sample in samples]
                )
            ),
            "save": asdict(summarize([sample["save"] for sample in samples])),
            "step": asdict(summarize(plain)),
        },
        "samples": samples,
    }


def blocks(periods: Sequence[float], metrics: Mapping[int, Mapping[str, float]]) -> list[dict[str, Any]]:
    """For each save: its time, the periods of the two steps that it touches, and of the two after them.

    Args:
        periods: of steps 1, 2, ..., in seconds.
        metrics: step -> its metrics.

    Raises:
        ValueError: the run is too short for one.
    """
    found = []
    for step in range(EVERY, len(periods) - 2, EVERY):
        touched, untouched = periods[step - 1 : step + 1], periods[step + 1 : step + 3]
        found.append({"step": step, "save": metrics[step][TIMER], "with": touched, "without": untouched})
    if not found:
        raise ValueError(f"{len(periods)} steps: no save with three steps after it")
    return found


def rows(result: dict[str, Any]) -> list[Row]:
    """The table's lines."""
    summary = result["summary"]
    return [
        ratio_row("a save on the critical path / a step", summary["on_path"], TARGET),
        ratio_row("two steps that a save touches / two without", summary["two_steps"]),
        summary_row("a save on the critical path", summary["save"], "s"),
        summary_row("a step without", summary["step"], "s"),
    ]
