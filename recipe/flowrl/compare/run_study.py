"""Runs a study: every run goes through ``main_flowrl``, several side by side, and is measured when it ends.

What is done isn't done again. ``DIR/STUDY.json`` and ``DIR/STUDY.html`` hold the outcome; studies in one directory
share the runs that they have in common.
"""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.files import alone_in, open_own, write_json
from recipe.flowrl.common.progress import short_duration
from recipe.flowrl.common.signals import end_children, ends_with_its_children
from recipe.flowrl.compare.studies import Study, Variant
from recipe.flowrl.reporting.console import RunConsole

BASE = "base"
EVALUATION = "evaluation.json"
"""In the directory of a run that is done."""
LAST_STEPS = 10
"""Steps at the end of a run whose mean training solve rate chooses the learning rate."""


def carry_out(study: Study, directory: Path, name: str) -> None:
    """Run a study with progress on the terminal, and draw its report; ends with what it has started.

    Raises:
        UserError: as :func:`run_study` does, or another process writes to ``directory``.
    """
    with ends_with_its_children(), RunConsole(sys.stdout) as console, alone_in(directory):
        run_study(study, directory, name, console)
        from recipe.flowrl.compare.study_report import write_report

        console.message(f"report: {write_report(directory / f'{name}.json')}")


def run_study(study: Study, directory: Path, name: str, console: RunConsole) -> None:
    """Run what isn't done, seed by seed, so that a study that is cut off has all variants; write ``NAME.json``.

    Raises:
        UserError: training runs failed, and all others are done; or ``directory`` has runs of another kind.
    """
    from recipe.flowrl.compare.outcomes import evaluate, final_checkpoint, training_record, weights_fingerprint

    base, puzzles = prepare(study, console)
    # What can't be composed is no setting of a run.
    check_settings(directory, common_settings(study, ("steps", "puzzles", "samples")))
    base_policy = weights_fingerprint(base)
    base_file = directory / BASE / f"{base_policy}.json"
    if not base_file.exists():
        if others := sorted(file.stem for file in base_file.parent.glob("*.json")):
            console.message(
                f"warning: this base policy, {base_policy}, isn't that of the runs in {directory}, "
                f"{', '.join(others)}: another machine trains another; only runs from the same one are paired"
            )
        with console.phase("evaluating the base policy"):
            write_json(base_file, evaluate(None, base, puzzles, study.puzzles, study.samples))
    sweep = _sweep(study, directory, console)
    lr = {name: max(sweep[name], key=sweep[name].__getitem__) if sweep else study.lrs[0] for name in study.variants}
    runs = [(seed, variant) for seed in study.seeds for variant in study.variants.values()]
    todo = [
        (seed, variant)
        for seed, variant in runs
        if not (run_dir_of(directory, variant, lr[variant.name], seed) / EVALUATION).exists()
    ]
    # Torch's generator, which the samples are drawn from, is the process's.
    one_at_a_time = threading.Lock()

    def carry_out(seed: int, variant: Variant) -> None:
        run_dir = run_dir_of(directory, variant, lr[variant.name], seed)
        _train(study, variant, seed, lr[variant.name], run_dir, console)
        with one_at_a_time, console.phase(f"evaluating {variant.name}, seed {seed}"):
            measured = evaluate(final_checkpoint(run_dir), base, puzzles, study.puzzles, study.samples)
            record = {"lr": lr[variant.name], "base_policy": base_policy, "evaluation": measured}
            write_json(run_dir / EVALUATION, record | {"training": training_record(run_dir)})
            write_json(directory / f"{name}.json", _collect(study, directory, lr, sweep))

    side_by_side([partial(carry_out, *run) for run in todo], len(runs), "runs", study.jobs, console)
    write_json(directory / f"{name}.json", _collect(study, directory, lr, sweep))


def side_by_side(tasks: Sequence[Callable[[], None]], total: int, what: str, jobs: int, console: RunConsole) -> None:
    """Carry out ``tasks`` in their order, ``jobs`` at a time; the others of ``total`` are done already.

    What fails is reported when all others are done.
    """
    failures = []
    started = time.monotonic()
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            for ended, task in enumerate(as_completed(futures), 1):
                if isinstance(error := task.exception(), UserError):
                    failures.append(str(error))
                else:
                    task.result()
                left = (time.monotonic() - started) / ended * (len(tasks) - ended)
                done = total - len(tasks) + ended - len(failures)
                console.message(f"{done}/{total} {what} done, ETA {short_duration(left)}")
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            # Else the pool waits for trainings that nobody waits for any more.
            # What was cancelled before it began never counts as done.
            begun = [future for future in futures if not future.cancelled()]
            while isinstance(error, KeyboardInterrupt) and wait(begun, timeout=1).not_done:
                end_children()
            raise
    if failures:
        raise UserError("; ".join(failures) + ": the same command tries again")


def run_dir_of(directory: Path, variant: Variant, lr: float, seed: int) -> Path:
    """A run of a sweep stands where the run with the learning rate that was chosen does: it isn't done twice."""
    return directory / variant.name / f"lr_{lr:g}" / f"seed_{seed}"


def common_settings(study: Study, names: Sequence[str]) -> dict[str, Any]:
    """What the runs of a study in one directory have in common: its experiment, its overrides, and the fields given."""
    return {key: getattr(study, key) for key in ("experiment", *names)} | {"overrides": list(study.overrides)}


def check_settings(directory: Path, ours: dict[str, Any]) -> None:
    """Write down what all runs in ``directory`` have in common.

    Raises:
        UserError: those that are there have something else.
    """
    file = directory / "settings.json"
    if not file.exists():
        write_json(file, ours)
        return
    theirs = json.loads(file.read_text())
    if different := [key for key in ours if theirs.get(key) != ours[key]]:
        key = different[0]
        raise UserError(
            f"{directory}: the runs there have {key}={theirs.get(key)}, not {ours[key]}: set it so, or another dir="
        )


def prepare(study: Study, console: RunConsole) -> tuple[Path, Path]:
    """The base policy and the held-out puzzles, made if they aren't there."""
    from recipe.flowrl.preflight.compose import compose_run
    from recipe.flowrl.prepare.own_tasks import ensure

    config = compose_run([f"experiment={study.experiment}", *study.overrides])
    ensure(config, console)
    return Path(config.actor_rollout_ref.model.path), Path(config.data.val_files)


def _sweep(study: Study, directory: Path, console: RunConsole) -> dict[str, dict[float, float]]:
    """How well each variant trains on the first seed with each learning rate; empty if there is only one."""
    if len(study.lrs) == 1:
        return {}
    seed = study.seeds[0]
    run_dirs = {
        (name, lr): run_dir_of(directory, variant, lr, seed)
        for lr in study.lrs
        for name, variant in study.variants.items()
    }
    runs = [
        partial(_train, study, study.variants[name], seed, lr, run_dir, console)
        for (name, lr), run_dir in run_dirs.items()
        if not (run_dir / EVALUATION).exists()
    ]
    side_by_side(runs, len(run_dirs), "runs of the sweep", study.jobs, console)
    return {name: {lr: _solve_rate(run_dirs[name, lr]) for lr in study.lrs} for name in study.variants}


def _solve_rate(run_dir: Path) -> float:
    """The training solve rate over the last steps of a run, measured already or not."""
    from recipe.flowrl.compare.outcomes import training_record

    measured = run_dir / EVALUATION
    training = json.loads(measured.read_text())["training"] if measured.exists() else training_record(run_dir)
    return float(np.mean(training["curves"]["solve_rate"][1][-LAST_STEPS:]))


def _train(study: Study, variant: Variant, seed: int, lr: float, run_dir: Path, console: RunConsole) -> None:
    """One run; beside others what it says goes into its directory."""
    output = run_dir / "console.log" if study.jobs > 1 else None
    console.message(
        f"training {variant.name}, seed {seed}, learning rate {lr:g}" + (f", output in {output}" if output else "")
    )
    command = [sys.executable, "-m", "recipe.flowrl.main_flowrl", f"experiment={study.experiment}"]
    command += [
        f"algo={variant.algo}",
        f"run_dir={run_dir}",
        f"trainer.total_training_steps={study.steps}",
        f"trainer.save_freq={study.steps}",
        "trainer.test_freq=-1",
        "trainer.val_before_train=false",
        f"data.seed={seed}",
        f"actor_rollout_ref.actor.fsdp_config.seed={42 + seed}",
        f"actor_rollout_ref.actor.optim.lr={lr}",
    ]
    run_dir.mkdir(parents=True, exist_ok=True)
    with os.fdopen(open_own(output, os.O_APPEND), "a") if output else contextlib.nullcontext() as stdout:
        done = subprocess.run([*command, *variant.overrides, *study.overrides], stdout=stdout, stderr=stdout)
    if status := done.returncode:
        console.message(f"training {variant.name}, seed {seed}, ended with status {status}")
        raise UserError(f"{variant.name}, seed {seed}: training ended with status {status}")


def _collect(
    study: Study, directory: Path, lr: dict[str, float], sweep: dict[str, dict[float, float]]
) -> dict[str, Any]:
    """Everything that was measured so far."""
    runs: dict[str, dict[str, Any]] = {}
    for variant in study.variants.values():
        for seed in study.seeds:
            path = run_dir_of(directory, variant, lr[variant.name], seed) / EVALUATION
            if path.exists():
                runs.setdefault(variant.name, {})[str(seed)] = json.loads(path.read_text())
    facts = dataclasses.asdict(dataclasses.replace(study, variants={}))
    started_from = {run["base_policy"] for seeds in runs.values() for run in seeds.values()}
    base = {name: json.loads((directory / BASE / f"{name}.json").read_text()) for name in sorted(started_from)}
    return {"study": facts, "lr": lr, "sweep": sweep, BASE: base, "runs": runs}
