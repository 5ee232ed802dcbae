"""Whole runs of ``experiment=countdown_cpu`` that differ in one thing, in turn: ``python -m benchmarks.whole_runs``.

- ``algorithms``: what FlowRL costs beside GRPO with a KL loss, in time and memory of a step. The weights stay, so that
  both do the same work.
- ``threads``, ``ranks``: one or two threads a process, one or two ranks.
- ``modes``: who waits for whom (docs/async.md), and what is learned by when; draws ``docs/images/modes.png``.

Prints a table and writes ``benchmarks/whole_runs/NAME.json``. For a machine on which nothing else runs.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import steps
from benchmarks.command_line import chosen
from benchmarks.configuration import compose
from benchmarks.machine import PROJECT, describe
from benchmarks.rows import Row, ratio_row
from benchmarks.run import table
from benchmarks.startup import OVERRIDES
from benchmarks.stats import paired_ratio
from benchmarks.steps import Step, run_steps
from recipe.flowrl.common.files import write_json
from recipe.flowrl.prepare import own_tasks
from recipe.flowrl.reporting.console import RunConsole

WARM_UP_STEPS = 2
PICTURE = PROJECT / "docs" / "images" / "modes.png"


@dataclass(frozen=True)
class Comparison:
    """Runs that are compared.

    Attributes:
        variants: name -> overrides; ratios are those to the first.
        common: overrides of all.
        steps: of a run.
        rounds: runs of each; every second round is in the opposite order.
        largest: the goal for the ratios of time and memory.
    """

    variants: dict[str, list[str]]
    common: list[str]
    steps: int
    rounds: int
    largest: float | None = None

    def overrides(self, variant: str) -> list[str]:
        """All of a run's."""
        total = f"trainer.total_training_steps={self.steps}"
        return ["experiment=countdown_cpu", *OVERRIDES, *self.common, *self.variants[variant], total]


_THREADS = "ray_kwargs.ray_init.runtime_env.env_vars.OMP_NUM_THREADS"
COMPARISONS = {
    "algorithms": Comparison(
        {"GRPO with KL": ["algo=grpo"], "FlowRL": ["algo=flowrl"]},
        ["actor_rollout_ref.actor.optim.lr=1e-12", "data.seed=1"],
        steps=16,
        rounds=2,
        largest=1.01,
    ),
    "threads": Comparison(
        {"1 thread": [f'{_THREADS}="1"'], "2 threads": [f'{_THREADS}="2"']}, ["algo=flowrl"], steps=8, rounds=1
    ),
    "ranks": Comparison(
        {"1 rank": ["trainer.n_gpus_per_node=1"], "2 ranks": ["trainer.n_gpus_per_node=2"]},
        ["algo=grpo", "data.seed=1"],
        steps=10,
        rounds=1,
    ),
    "modes": Comparison(
        {
            "sync": ["mode=sync"],
            "colocate_async": ["trainer.v1.trainer_mode=colocate_async"],
            "async": ["mode=async"],
        },
        ["algo=flowrl_plus"],
        steps=30,
        rounds=1,
    ),
}


def measure(name: str, directory: Path, console: RunConsole) -> dict[str, Any]:
    """Returns ``settings``, ``summary`` and ``samples``, all JSON; seconds, bytes."""
    comparison = COMPARISONS[name]
    runs: dict[str, list[list[Step]]] = {variant: [] for variant in comparison.variants}
    own_tasks.ensure(compose(*comparison.overrides(next(iter(runs)))), console)
    for number in range(comparison.rounds):
        for variant in list(runs)[:: 1 if number % 2 == 0 else -1]:
            with console.phase(f"{name}: {variant}, run {number + 1} of {comparison.rounds}"):
                runs[variant].append(run_steps(comparison.overrides(variant), directory / f"{variant}_{number}"))
    return {
        "settings": asdict(comparison),
        "summary": compared(runs),
        "samples": {variant: [list(map(asdict, run)) for run in of_it] for variant, of_it in runs.items()},
    }


def compared(runs: dict[str, list[list[Step]]]) -> dict[str, Any]:
    """Of each variant: medians over the steps but the first of each run, and the ratios to the first, step by step."""
    warm = {variant: [step for run in of_it for step in run[WARM_UP_STEPS:]] for variant, of_it in runs.items()}
    first, *others = warm

    def ratio(variant: str, quantity: str) -> dict[str, Any]:
        return asdict(paired_ratio(*([getattr(step, quantity) for step in warm[name]] for name in (variant, first))))

    return {
        "variants": {variant: steps.summarized(of_it) for variant, of_it in warm.items()},
        "ratios": {
            variant: {quantity: ratio(variant, quantity) for quantity in ("seconds", "cpu_seconds", "peak_bytes")}
            for variant in others
        },
    }


def rows(result: dict[str, Any]) -> list[Row]:
    """The table's lines."""
    summary, largest = result["summary"], result["settings"]["largest"]
    first = next(iter(summary["variants"]))
    lines = [
        ratio_row(f"{variant} / {first}: {quantity}", ratio, None if quantity == "cpu_seconds" else largest)
        for variant, ratios in summary["ratios"].items()
        for quantity, ratio in ratios.items()
    ]
    return lines + [row for variant, of_it in summary["variants"].items() for row in steps.rows(variant, of_it)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.whole_runs", description=__doc__.splitlines()[0])
    options = chosen(parser, COMPARISONS, arguments)
    machine, tables = describe(), dict[str, list[Row]]()
    with RunConsole(sys.stdout) as console, tempfile.TemporaryDirectory(prefix="flowrl_bench_") as directory:
        for name in options.names:
            result = measure(name, Path(directory) / name, console)
            out = Path(__file__).parent / "whole_runs" / f"{name}.json"
            write_json(out, {"benchmark": f"whole_runs/{name}", "machine": machine} | result, indent=1)
            tables[name] = rows(result)
            if name == "modes":
                steps.draw_curves(result["samples"], PICTURE)
    Console().print(table(tables, {}))


if __name__ == "__main__":
    main()
