"""Runs of the recipe and of TRL in turn, and what their steps took."""

import json
import os
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.children import ChildError
from benchmarks.machine import PROJECT
from benchmarks.rows import Row, ratio_row
from benchmarks.stats import paired_ratio
from benchmarks.steps import PHASES, TIMEOUT_S, Step, run_steps, steps_between, summarized
from benchmarks.steps import rows as rows_of
from benchmarks.trl.workloads import Workload
from benchmarks.usage import watched
from recipe.flowrl.common.files import open_own, write_json
from recipe.flowrl.reporting.console import RunConsole

OURS, TRL = "recipe", "TRL"
WARM_UP_STEPS = 1


def measure(workload: Workload, python: Path, directory: Path, console: RunConsole) -> dict[str, Any]:
    """Returns ``settings``, ``summary`` and ``samples``, all JSON; seconds, bytes."""
    runs: dict[str, list[list[Step]]] = {OURS: [], TRL: []}
    for number in range(workload.runs):
        for name in (OURS, TRL) if number % 2 == 0 else (TRL, OURS):
            with console.phase(f"{workload.title}: {name}, run {number + 1} of {workload.runs}"):
                place = directory / f"{name}_{number}"
                steps = run_steps(workload.overrides(), place) if name == OURS else _trl(workload, python, place)
                runs[name].append(steps)
    return {
        "settings": asdict(workload),
        "summary": compared(runs),
        "samples": {name: [[asdict(step) for step in steps] for steps in of_runs] for name, of_runs in runs.items()},
    }


def compared(runs: dict[str, list[list[Step]]]) -> dict[str, Any]:
    """Of each: medians over the steps but the first of each run. ``ratio``: ours to TRL's, step by step."""
    steps = {name: [step for run in of_runs for step in run[WARM_UP_STEPS:]] for name, of_runs in runs.items()}
    return {
        "ratio": asdict(paired_ratio([step.seconds for step in steps[OURS]], [step.seconds for step in steps[TRL]])),
        **{name: summarized(of_it) for name, of_it in steps.items()},
    }


def rows(result: dict[str, Any]) -> list[Row]:
    """The table's lines."""
    summary = result["summary"]
    lines = [ratio_row("a step of the recipe / of TRL", summary["ratio"])]
    return lines + [row for name in (OURS, TRL) for row in rows_of(name, summary[name])]


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
    for step, begin, end in zip(found["steps"], moments[:-1], moments[1:], strict=True):
        before_update = step["phases"].pop("before_update")
        phases = dict.fromkeys(PHASES, 0.0) | step["phases"] | {"update_actor": end - begin - before_update}
        told.append({"tokens": step["tokens"], "reward": step["reward"], "phases": phases})
    return steps_between(moments, told, usage)
