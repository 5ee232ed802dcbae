"""From the command to the end of the first optimizer step, and how the time divides into phases."""

from dataclasses import asdict
from typing import Any

from benchmarks.launches import Launch, startup_phases
from benchmarks.rows import Row, summary_row
from benchmarks.stats import summarize

TARGET_S = 45.0

OVERRIDES = ["trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.save_freq=-1"]
"""Nothing but training steps."""


def summarize_startup(launches: list[Launch]) -> dict[str, Any]:
    """Returns ``settings``, ``summary`` (seconds in all and of each phase) and ``samples``."""
    samples = [startup_phases(launch.events, launch.started) for launch in launches]
    return {
        "settings": {"overrides": OVERRIDES, "target_s": TARGET_S},
        "summary": {
            "total": asdict(summarize([sum(phases.values()) for phases in samples])),
            "phases": {name: asdict(summarize([phases[name] for phases in samples])) for name in samples[0]},
        },
        "samples": samples,
    }


def rows(result: dict[str, Any]) -> list[Row]:
    """The table's lines."""
    summary = result["summary"]
    lines = [summary_row("command to the end of the first update", summary["total"], "s", target=TARGET_S)]
    return lines + [summary_row(f"  {name}", phase, "s") for name, phase in summary["phases"].items()]
