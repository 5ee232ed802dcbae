"""The steps of a whole run of the recipe: seconds, processor time, memory, tokens, reward, phases."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.launches import launch
from benchmarks.pictures import save_picture
from benchmarks.rows import Row, summary_row
from benchmarks.stats import summarize
from benchmarks.usage import Usage, watched
from recipe.flowrl.reporting import names

PHASES = ("gen", "old_log_prob", "ref", "update_actor")
TIMEOUT_S = 3600.0
SMOOTHED_OVER = 5
"""Steps of the curves' moving average."""


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
        distinct: different right answers of a prompt's responses, the mean over the prompts; None where it isn't told.
    """

    seconds: float
    cpu_seconds: float
    tokens: int
    peak_bytes: int
    reward: float
    phases: dict[str, float]
    distinct: float | None = None


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
            "distinct": metrics[step].get(names.DISTINCT),
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


def draw_curves(samples: dict[str, list[list[dict[str, Any]]]], path: Path) -> None:
    """Draw what runs learn, by step and by the time since the first rollout began.

    Args:
        samples: what is compared -> its runs -> their steps, each a :class:`Step` as a dictionary.
        path: of the PNG file.
    """
    save_picture(curves(samples), path)


def curves(samples: dict[str, list[list[dict[str, Any]]]]) -> Figure:
    """The mean reward of the rollouts and, where all tell it, distinct solutions; moving averages, a line a run."""
    told = all(step.get("distinct") is not None for runs in samples.values() for run in runs for step in run)
    quantities = {"reward": "mean reward of the rollouts"} | (
        {"distinct": "distinct solutions a puzzle"} if told else {}
    )
    figure = Figure(figsize=(9, 3.4 * len(quantities)), layout="constrained")
    panels = figure.subplots(len(quantities), 2, squeeze=False, sharey="row")
    for (quantity, title), (by_step, by_time) in zip(quantities.items(), panels, strict=True):
        _draw(by_step, by_time, samples, quantity)
        by_step.set(xlabel="step", ylabel=f"{title},\naverage over {SMOOTHED_OVER} steps")
        by_time.set(xlabel="seconds since the first rollout began")
        by_step.legend(frameon=False)
        by_step.grid(alpha=0.3)
        by_time.grid(alpha=0.3)
    return figure


def _draw(by_step: Axes, by_time: Axes, samples: dict[str, list[list[dict[str, Any]]]], quantity: str) -> None:
    for number, (variant, runs) in enumerate(samples.items()):
        for place, run in enumerate(runs):
            style = {"color": f"C{number}", "label": variant if place == 0 else None, "alpha": 0.85}
            smooth = _smooth([step[quantity] for step in run])
            by_step.plot(range(1, len(run) + 1), smooth, **style)
            by_time.plot(list(accumulate(step["seconds"] for step in run)), smooth, **style)


def _smooth(values: Sequence[float]) -> list[float]:
    parts = (values[max(0, end - SMOOTHED_OVER) : end] for end in range(1, len(values) + 1))
    return [sum(part) / len(part) for part in parts]
