"""All benchmarks: ``python -m benchmarks.run``. Prints a table and writes a JSON file for each benchmark.

The table shows the figures committed last beside those of today; where the machine is another, only ratios compare.
The figures of a busy machine are worth nothing: run it when nothing else does.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks import checkpoint_cost, grading, plan_memory, startup, step_floor, update_cost
from benchmarks.command_line import chosen
from benchmarks.configuration import compose
from benchmarks.launches import Launch, launch
from benchmarks.machine import PROJECT, describe
from benchmarks.rows import Row
from recipe.flowrl.common.files import write_json
from recipe.flowrl.prepare import own_tasks as prepare
from recipe.flowrl.reporting.console import RunConsole

NAMES = ("update_cost", "plan_memory", "grading", "step_floor", "startup", "checkpoint_cost")
ROWS = {
    "update_cost": update_cost.rows,
    "plan_memory": plan_memory.rows,
    "grading": grading.rows,
    "step_floor": step_floor.rows,
    "startup": startup.rows,
    "checkpoint_cost": checkpoint_cost.rows,
}
TITLES = {
    "update_cost": "cost of an update",
    "plan_memory": "memory of an update against plan",
    "grading": "grading responses",
    "step_floor": "RL step against its floor",
    "startup": "start-up",
    "checkpoint_cost": "cost of a checkpoint",
}


def main() -> None:
    """Measure what the command line asks for."""
    options = _options()
    machine = describe()
    earlier = {name: committed(name) for name in options.names}  # before today's take their place
    tables: dict[str, list[Row]] = {}
    with RunConsole(sys.stdout) as console:
        for name, result in _measure(options, console):
            facts = {"benchmark": name, "quick": options.quick, "machine": machine}
            write_json(options.out / f"{name}.json", facts | result, indent=1)
            tables[name] = ROWS[name](result)
    Console().print(table(tables, earlier))


def committed(name: str, directory: Path = PROJECT / "benchmarks") -> dict[str, float]:
    """The figures of the last committed run of a benchmark: row to value; none where there is no such file."""
    shown = subprocess.run(
        ["git", "show", f"HEAD:./{name}.json"], cwd=directory, capture_output=True, text=True, check=False
    )
    if shown.returncode:
        return {}
    try:
        return {row.name: row.value for row in ROWS[name](json.loads(shown.stdout))}
    except (AttributeError, KeyError, TypeError):
        return {}  # of a version that measured something else


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="does it work at all? Small sizes, figures worth nothing")
    parser.add_argument("--steps", type=int, default=20, help="RL steps that are compared")
    parser.add_argument(
        "--override", action="append", default=[], metavar="KEY=VALUE", help="Hydra override of the runs"
    )
    parser.add_argument("--out", type=Path, help="directory of the JSON files; by default here, --quick: outputs/")
    options = chosen(parser, NAMES)
    options.steps = 2 if options.quick else options.steps
    options.out = options.out or PROJECT / ("outputs/benchmarks_quick" if options.quick else "benchmarks")
    return options


def _measure(options: argparse.Namespace, console: RunConsole) -> Iterator[tuple[str, dict[str, Any]]]:
    if "update_cost" in options.names:
        effort = update_cost.QUICK if options.quick else update_cost.Effort()
        yield "update_cost", update_cost.measure(effort, console)
    if "plan_memory" in options.names:
        names = tuple(plan_memory.CASES)
        yield "plan_memory", plan_memory.measure(console, names[:1] if options.quick else names)
    if "grading" in options.names:
        yield "grading", grading.measure(grading.QUICK if options.quick else grading.Effort(references=True), console)
    if {"step_floor", "startup", "checkpoint_cost"} & set(options.names):
        with tempfile.TemporaryDirectory(prefix="flowrl_bench_") as directory:
            yield from _measure_runs(options, Path(directory), console)


def _measure_runs(
    options: argparse.Namespace, directory: Path, console: RunConsole
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The benchmarks of real runs: one without checkpoints serves two, short ones repeat the start-up."""

    def overrides(own: Sequence[str]) -> list[str]:
        return ["experiment=countdown_cpu", *own, *options.override]

    def run(steps: int, own: Sequence[str]) -> Launch:
        number = len(list(directory.iterdir())) + 1
        with console.phase(f"run {number}, steps: {steps}"):
            return launch([*overrides(own), f"trainer.total_training_steps={steps}"], directory / f"run_{number}")

    prepare.ensure(compose(*overrides(startup.OVERRIDES)), console)
    launches: list[Launch] = []
    if "step_floor" in options.names:
        launches.append(run(step_floor.WARM_UP_STEPS + options.steps + 1, startup.OVERRIDES))
        result = step_floor.measure(launches[0], console)
        yield "step_floor", result | {"settings": result["settings"] | {"overrides": overrides(startup.OVERRIDES)}}
    if "startup" in options.names:
        while len(launches) < (1 if options.quick else 2):
            launches.append(run(1, startup.OVERRIDES))
        yield "startup", startup.summarize_startup(launches)
    if "checkpoint_cost" in options.names:
        saving = run(checkpoint_cost.steps_needed(options.steps), checkpoint_cost.OVERRIDES)
        yield "checkpoint_cost", checkpoint_cost.measure(saving)


def table(tables: Mapping[str, Sequence[Row]], earlier: Mapping[str, Mapping[str, float]]) -> Table:
    """What was measured, beside the committed figures.

    Args:
        tables: benchmark to its rows.
        earlier: benchmark to :func:`committed`.
    """
    result = Table(title="benchmarks")
    columns = ("", "median", "spread", "target", "met", "committed", "change")
    for title, justify in zip(columns, ("left", "right", "left", "right", "left", "right", "right"), strict=True):
        result.add_column(title, justify=justify)
    for name, lines in tables.items():
        result.add_section()
        result.add_row(TITLES.get(name, name), style="bold")
        for row in lines:
            target = "" if row.target is None else f"<= {row.target:g} {row.unit}"
            met = {None: "", True: "yes", False: "no"}[row.met]
            before = earlier.get(name, {}).get(row.name)
            then = "" if before is None else f"{before:.3f} {row.unit}"
            change = f"{row.value / before - 1:+.0%}" if before else ""
            result.add_row(row.name, f"{row.value:.3f} {row.unit}", row.spread, target, met, then, change)
    return result


if __name__ == "__main__":
    main()
