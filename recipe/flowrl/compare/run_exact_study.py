"""Runs an exact study: a process a run, or a run of the stack, several side by side.

What is done isn't done again, and a run that was cut off goes on from its last evaluation. ``DIR/STUDY.jsonl`` and
``DIR/STUDY.html`` hold the outcome.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.files import alone_in, open_own, write_json, write_text
from recipe.flowrl.common.jsonl import JsonLines, to_line
from recipe.flowrl.common.signals import ends_with_its_children
from recipe.flowrl.compare.run_study import check_settings, common_settings, prepare, run_dir_of, side_by_side
from recipe.flowrl.compare.studies import ExactStudy, Variant
from recipe.flowrl.reporting.console import RunConsole

_ONE_AT_A_TIME = threading.Lock()
"""Figures are drawn by one thread."""


def carry_out(study: ExactStudy, directory: Path, name: str) -> None:
    """Run what isn't done, seed by seed, so that a study that is cut off has all variants; then draw the report.

    Raises:
        UserError: runs failed, and all others are done; or ``directory`` has runs of another kind, or is in use.
    """
    with ends_with_its_children(), RunConsole(sys.stdout) as console, alone_in(directory):
        from recipe.flowrl.compare.exact_run import DONE
        from recipe.flowrl.compare.outcomes import weights_fingerprint

        base, _ = prepare(study, console)
        shared = common_settings(study, ("steps", "puzzles", "samples", "train_puzzles", "every"))
        check_settings(directory, shared | {"base_policy": weights_fingerprint(base)})
        runs = list(itertools.product(study.seeds, study.lrs, study.variants.values()))
        todo = [run for run in runs if not (_place(directory, *run) / DONE).exists()]
        tasks = [partial(_run, study, directory, name, *run, console) for run in todo]
        try:
            side_by_side(tasks, len(runs), "runs", study.jobs, console)
        finally:
            page = collect(study, directory, name)
            if page is not None:
                console.message(f"report: {page}")


def collect(study: ExactStudy, directory: Path, name: str) -> Path | None:
    """Write all that was measured so far, a line a run and evaluation, and draw it; None if there is nothing yet."""
    with _ONE_AT_A_TIME:
        return _collect(study, directory, name)


def _collect(study: ExactStudy, directory: Path, name: str) -> Path | None:
    from recipe.flowrl.compare.frontier_report import write_report

    lines = list(_lines(study, directory))
    if not lines:
        return None
    facts = dataclasses.asdict(dataclasses.replace(study, variants={})) | {"seeds": sorted({x["seed"] for x in lines})}
    path = directory / f"{name}.jsonl"
    write_text(path, "".join(map(to_line, [{"study": facts}, *lines])))
    return write_report(path)


def _lines(study: ExactStudy, directory: Path) -> Iterator[dict[str, Any]]:
    from recipe.flowrl.compare.exact_run import POINTS

    for variant, lr, seed in itertools.product(study.variants.values(), study.lrs, study.seeds):
        for point in JsonLines(_place(directory, seed, lr, variant) / POINTS).read():
            yield {"variant": variant.name, "lr": lr, "seed": seed, **point}


def _place(directory: Path, seed: int, lr: float, variant: Variant) -> Path:
    return run_dir_of(directory, variant, lr, seed)


def _run(
    study: ExactStudy, directory: Path, name: str, seed: int, lr: float, variant: Variant, console: RunConsole
) -> None:
    """One run; beside others what it says goes into its directory."""
    from recipe.flowrl.compare.exact_run import RUN, Run

    run_dir = _place(directory, seed, lr, variant)
    output = run_dir / "console.log" if study.jobs > 1 else None
    console.message(f"{variant.name}, seed {seed}, learning rate {lr:g}" + (f", output in {output}" if output else ""))
    overrides = [
        f"experiment={study.experiment}",
        f"algo={variant.algo}",
        f"run_dir={run_dir}",
        f"data.seed={seed}",
        f"actor_rollout_ref.actor.optim.lr={lr}",
        *variant.overrides,
        *study.overrides,
    ]
    run = Run(
        tuple(overrides),
        study.steps,
        study.every,
        study.train_puzzles,
        study.puzzles,
        study.samples,
        variant.staleness,
    )
    run_dir.mkdir(parents=True, exist_ok=True)
    written = run_dir / RUN
    if written.exists() and json.loads(written.read_text()) != json.loads(json.dumps(dataclasses.asdict(run))):
        raise UserError(f"{run_dir}: the run there was started with other options: move it away, or another dir=")
    write_json(written, dataclasses.asdict(run))
    module = "stack_run" if variant.stack else "exact_run"
    command = [sys.executable, "-m", f"recipe.flowrl.compare.{module}", str(run_dir)]
    environment = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **os.environ}
    with os.fdopen(open_own(output, os.O_APPEND), "a") if output else contextlib.nullcontext() as stdout:
        status = subprocess.run(command, stdout=stdout, stderr=stdout, env=environment).returncode
    if status:
        raise UserError(f"{variant.name}, seed {seed}: the run ended with status {status}")
    collect(study, directory, name)
