"""Runs of the recipe and of TRL in turn, and what their steps took."""

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.children import ChildError
from benchmarks.launches import launch
from benchmarks.machine import PROJECT
from benchmarks.rows import Row, ratio_row, summary_row
from benchmarks.stats import paired_ratio, summarize
from benchmarks.trl.usage import Usage, watched
from benchmarks.trl.workloads import Workload
from recipe.flowrl.common.files import open_own, write_json
from recipe.flowrl.reporting.console import RunConsole

OURS, TRL = "recipe", "TRL"
PHASES = ("gen", "old_log_prob", "ref", "update_actor")
WARM_UP_STEPS = 1
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


def measure(workload: Workload, python: Path, directory: Path, console: RunConsole) -> dict[str, Any]:
    """Returns ``settings``, ``summary`` and ``samples``, all JSON; seconds, bytes."""
    runs: dict[str, list[list[Step]]] = {OURS: [], TRL: []}
    for number in range(workload.runs):
        for name in (OURS, TRL) if number % 2 == 0 else (TRL, OURS):
            with console.phase(f"{workload.title}: {name}, run {number + 1} of {workload.runs}"):
                place = directory / f"{name}_{number}"
                runs[name].append(_ours(workload, place) if name == OURS else _trl(workload, python, place))
    return {
        "settings": asdict(workload),
        "summary": summarized(runs),
        "samples": {name: [[asdict(step) for step in steps] for steps in of_runs] for name, of_runs in runs.items()},
    }


def summarized(runs: dict[str, list[list[Step]]]) -> dict[str, Any]:
    """Of each: medians over the steps but the first of each run. ``ratio``: ours to TRL's, step by step."""
    steps = {name: [step for run in of_runs for step in run[WARM_UP_STEPS:]] for name, of_runs in runs.items()}
    return {
        "ratio": asdict(paired_ratio([step.seconds for step in steps[OURS]], [step.seconds for step in steps[TRL]])),
        **{
            name: {
                "seconds": asdict(summarize([step.seconds for step in of_it])),
                "cpu_seconds": asdict(summarize([step.cpu_seconds for step in of_it])),
                "tokens_per_second": asdict(summarize([step.tokens / step.seconds for step in of_it])),
                "peak_bytes": asdict(summarize([step.peak_bytes for step in of_it])),
                "phases": {phase: asdict(summarize([step.phases[phase] for step in of_it])) for phase in PHASES},
            }
            for name, of_it in steps.items()
        },
    }


def rows(result: dict[str, Any]) -> list[Row]:
    """The table's lines."""
    summary = result["summary"]
    lines = [ratio_row("a step of the recipe / of TRL", summary["ratio"])]
    for name in (OURS, TRL):
        of_it = summary[name]
        lines.append(summary_row(f"{name}: step", of_it["seconds"], "s"))
        lines += [summary_row(f"{name}:   {phase}", of_it["phases"][phase], "s") for phase in PHASES]
        lines.append(summary_row(f"{name}: processor time of a step", of_it["cpu_seconds"], "s"))
        lines.append(summary_row(f"{name}: tokens a second", of_it["tokens_per_second"], "1/s"))
        lines.append(summary_row(f"{name}: peak memory, all processes", of_it["peak_bytes"], "MB", scale=1e6))
    return lines


def _ours(workload: Workload, directory: Path) -> list[Step]:
    with watched() as usage:
        run = launch(workload.overrides(), directory, TIMEOUT_S)
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
    return _steps([*begins, last], told, usage)


def _trl(workload: Workload, python: Path, directory: Path) -> list[Step]:
    directory.mkdir()
    given, results = directory / "argument.json", directory / "results.json"
    write_json(given, workload.of_trl(results))
    with os.fdopen(open_own(directory / "log", 0), "w") as log, watched() as usage:
        command = [python, "-m", "benchmarks.trl.train", given]
        ended = subprocess.run(command, cwd=PROJECT, stdout=log, stderr=subprocess.STDOUT, timeout=TIMEOUT_S)
    if ended.returncode:
        raise ChildError(f"TRL: {ended.returncode}\n{(directory / 'log').read_text(errors='replace')[-3000:]}")
    found = json.loads(results.read_text())
    moments = [step["begin"] for step in found["steps"]] + [found["end"]]
    told = []
    for step, begin, end in zip(found["steps"], moments, moments[1:], strict=True):
        before_update = step["phases"].pop("before_update")
        phases = dict.fromkeys(PHASES, 0.0) | step["phases"] | {"update_actor": end - begin - before_update}
        told.append({"tokens": step["tokens"], "reward": step["reward"], "phases": phases})
    return _steps(moments, told, usage)


def _steps(moments: Sequence[float], told: Sequence[dict[str, Any]], usage: Usage) -> list[Step]:
    """Args: ``moments``, when each step begins and the last one ends; ``told``, what else is known of each."""
    return [
        Step(
            seconds=end - begin,
            cpu_seconds=usage.seconds_between(begin, end),
            peak_bytes=usage.peak_between(begin, end),
            **of_step,
        )
        for begin, end, of_step in zip(moments, moments[1:], told, strict=True)
    ]
