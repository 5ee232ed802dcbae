"""The steps of a whole run of the recipe: seconds, processor time, memory, tokens, reward, phases."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.launches import launch
from benchmarks.rows import Row, summary_row
from benchmarks.stats import summarize
from benchmarks.usage import Usage, watched

PHASES = ("gen", "old_log_prob", "ref", "update_actor")
TIMEOUT_S = 3600.0


@dataclass(frozen=True)
class Step:
    """A step from the beginning of its rollout to that of the next.

    Attributes:
        seconds: how long.
        cpu_seconds: of all processes.
        tokens: of prompts and responses.
        peak_bytes: the most memory of all processes together.
        reward: the mean over the responses.
        phases: seconds of each of :data:`PHASES`; ``gen`` with the rewards.
    """

    seconds: float
    cpu_seconds: float
    tokens: int
    peak_bytes: int
    reward: float
    phases: dict[str, float]


def run_steps(overrides: Sequence[str], directory: Path) -> list[Step]:
    """Run the recipe in ``directory``, by itself on this machine.

    Raises:
        ChildError: it failed, or took more than an hour.
    """
    with watched() as usage:
        run = launch(overrides, directory, TIMEOUT_S)
    begins = [event["time"] for event in run.events if event["event"] == "phase" and event["name"] == "rollout"]
    last = next(
        event["time"] for event in reversed(run.events) if event["event"] == "phase" and event["name"] == "weight sync"
    )
    metrics = run.metrics
    told = [
        {
            "tokens": int(metrics[step]["perf/total_num_tokens"]),
            "reward": metrics[step]["critic/score/mean"],
            "phases": {phase: metrics[step].get(f"timing_s/{phase}", 0.0) for phase in PHASES},
        }
        for step in range(1, len(begins) + 1)
    ]
    return steps_between([*begins, last], told, usage)


def steps_between(moments: Sequence[float], told: Sequence[dict[str, Any]], usage: Usage) -> list[Step]:
    """Args: ``moments``, when each step begins and the last one ends; ``told``, what else is known of each."""
    return [
        Step(
            seconds=end - begin,
            cpu_seconds=usage.seconds_between(begin, end),
            peak_bytes=usage.peak_between(begin, end),
            **of_step,
        )
        for begin, end, of_step in zip(moments[:-1], moments[1:], told, strict=True)
    ]


def summarized(steps: Sequence[Step]) -> dict[str, Any]:
    """Medians over the steps, JSON."""
    return {
        "seconds": asdict(summarize([step.seconds for step in steps])),
        "cpu_seconds": asdict(summarize([step.cpu_seconds for step in steps])),
        "tokens_per_second": asdict(summarize([step.tokens / step.seconds for step in steps])),
        "peak_bytes": asdict(summarize([step.peak_bytes for step in steps])),
        "phases": {phase: asdict(summarize([step.phases[phase] for step in steps])) for phase in PHASES},
    }


def rows(name: str, summary: dict[str, Any]) -> list[Row]:
    """The table's lines of what is called ``name``."""
    return [
        summary_row(f"{name}: step", summary["seconds"], "s"),
        *(summary_row(f"{name}:   {phase}", summary["phases"][phase], "s") for phase in PHASES),
        summary_row(f"{name}: processor time of a step", summary["cpu_seconds"], "s"),
        summary_row(f"{name}: tokens a second", summary["tokens_per_second"], "1/s"),
        summary_row(f"{name}: peak memory, all processes", summary["peak_bytes"], "MB", scale=1e6),
    ]
