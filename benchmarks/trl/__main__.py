"""A training step of the recipe, ``algo=grpo`` through the whole stack, beside one of TRL's GRPO trainer.

``python -m benchmarks.trl``: runs of the two in turn on the same model, prompts, lengths, reference policy and updates.
Prints a table, writes ``benchmarks/trl/NAME.json`` with each step, rewards included, and draws what both learn on
Countdown, ``docs/images/trl.png``. TRL gets an environment of its own, made on first use.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.command_line import chosen
from benchmarks.machine import PROJECT, describe
from benchmarks.rows import Row
from benchmarks.run import table
from benchmarks.steps import draw_curves
from benchmarks.trl import compare, environment
from benchmarks.trl.workloads import WORKLOADS
from recipe.flowrl.common.files import write_json
from recipe.flowrl.prepare import own_tasks
from recipe.flowrl.reporting.console import RunConsole

PICTURE = PROJECT / "docs" / "images" / "trl.png"


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trl", description=__doc__.splitlines()[0])
    parser.add_argument("--environment", type=Path, default=PROJECT / "outputs" / "trl_env", help="where TRL's is")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="directory of the JSON files")
    options = chosen(parser, WORKLOADS)
    machine, tables = describe(), dict[str, list[Row]]()
    with RunConsole(sys.stdout) as console, tempfile.TemporaryDirectory(prefix="flowrl_bench_") as directory:
        with console.phase("TRL's environment"):
            python = environment.ensure(options.environment)
        for name in options.names:
            workload = WORKLOADS[name]
            own_tasks.ensure(workload.config(), console)
            (Path(directory) / name).mkdir()
            result = compare.measure(workload, python, Path(directory) / name, console)
            write_json(
                options.out / f"{name}.json", {"benchmark": f"trl/{name}", "machine": machine} | result, indent=1
            )
            tables[workload.title] = compare.rows(result)
            if name == "countdown":
                draw_curves(result["samples"], PICTURE)
    Console().print(table(tables, {}))


if __name__ == "__main__":
    main()
