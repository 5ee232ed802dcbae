"""Runs a study: ``python -m recipe.flowrl.compare study=countdown [algos=a,b] [seeds=0,1,2] [jobs=N] [dir=DIR]``.

Every run goes through ``main_flowrl``, ``jobs=`` of them side by side, and is measured when it ends. What is done isn't
done again, so the same command continues a study. ``DIR/STUDY.json`` and ``DIR/STUDY.html`` hold the outcome; studies
in one directory share the runs that they have in common. ``steps=``, ``lrs=`` (several: a sweep, of which the best is
used), ``puzzles=`` and ``samples=`` (of the evaluation) make a study smaller or larger; anything else is an override
for Hydra, for every run.
"""

import contextlib
import dataclasses
import json
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

from recipe.flowrl.compare.studies import STUDIES, Study, Variant
from recipe.flowrl.errors import UserError, exit_status_of
from recipe.flowrl.files import alone_in, write_json
from recipe.flowrl.reporting.console import RunConsole, short_duration
from recipe.flowrl.signals import end_children, ends_with_its_children

BASE = "base"
EVALUATION = "evaluation.json"
"""In the directory of a run that is done."""
_MEASURED = ("steps", "puzzles", "samples")
_COUNTS = (*_MEASURED, "jobs")
LAST_STEPS = 10
"""Steps at the end of a run whose mean training solve rate chooses the learning rate."""


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, 1 after a failure, 2 for bad input."""
    try:
        study, directory, name = _parse(arguments)
        with ends_with_its_children(), RunConsole(sys.stdout) as console, alone_in(directory):
            run_study(study, directory, name, console)
            from recipe.flowrl.compare.report import write_report

            console.message(f"report: {write_report(directory, name)}")
    except BaseException as error:
        return exit_status_of(error)
    return 0


def run_study(study: Study, directory: Path, name: str, console: RunConsole) -> None:
    """Run what isn't done, seed by seed, so that a study that is cut off has all variants; write ``NAME.json``.

    Raises:
        UserError: training runs failed, and all others are done; or ``directory`` has runs of another kind.
    """
    from recipe.flowrl.compare.evaluation import evaluate, final_checkpoint, training_record, weights_fingerprint

    base, puzzles = _prepare(study, console)
    _check_settings(study, directory)  # what can't be composed is no setting of a run
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
        if not (_run_dir(directory, variant, lr[variant.name], seed) / EVALUATION).exists()
    ]
    # Torch's generator, which the samples are drawn from, is the process's.
    one_at_a_time = threading.Lock()

    def carry_out(seed: int, variant: Variant) -> None:
        run_dir = _run_dir(directory, variant, lr[variant.name], seed)
        _train(study, variant, seed, lr[variant.name], run_dir, console)
        with one_at_a_time, console.phase(f"evaluating {variant.name}, seed {seed}"):
            measured = evaluate(final_checkpoint(run_dir), base, puzzles, study.puzzles, study.samples)
            record = {"lr": lr[variant.name], "base_policy": base_policy, "evaluation": measured}
            write_json(run_dir / EVALUATION, record | {"training": training_record(run_dir)})
            write_json(directory / f"{name}.json", _collect(study, directory, lr, sweep))

    _side_by_side([partial(carry_out, *run) for run in todo], len(runs), "runs", study.jobs, console)
    write_json(directory / f"{name}.json", _collect(study, directory, lr, sweep))


def _side_by_side(tasks: Sequence[Callable[[], None]], total: int, what: str, jobs: int, console: RunConsole) -> None:
    """Carry out ``tasks`` in their order, ``jobs`` at a time; the others of ``total`` are done already.

    What fails is reported when all others are done.
    """
    failures = []
    started = time.time()
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(task) for task in tasks]
        try:
            for ended, task in enumerate(as_completed(futures), 1):
                if isinstance(error := task.exception(), UserError):
                    failures.append(str(error))
                else:
                    task.result()
                left = (time.time() - started) / ended * (len(tasks) - ended)
                done = total - len(tasks) + ended - len(failures)
                console.message(f"{done}/{total} {what} done, ETA {short_duration(left)}")
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            # Else the pool waits for trainings that nobody waits for any more.
            while isinstance(error, KeyboardInterrupt) and wait(futures, timeout=1).not_done:
                end_children()
            raise
    if failures:
        raise UserError("; ".join(failures) + ": the same command tries again")


def _run_dir(directory: Path, variant: Variant, lr: float, seed: int) -> Path:
    """A run of a sweep stands where the run with the learning rate that was chosen does: it isn't done twice."""
    return directory / variant.name / f"lr_{lr:g}" / f"seed_{seed}"


def _check_settings(study: Study, directory: Path) -> None:
    """Write down what all runs in ``directory`` have in common.

    Raises:
        UserError: those that are there have something else.
    """
    file = directory / "settings.json"
    ours = {key: getattr(study, key) for key in ("experiment", *_MEASURED)} | {"overrides": list(study.overrides)}
    if not file.exists():
        write_json(file, ours)
        return
    theirs = json.loads(file.read_text())
    if different := [key for key in ours if theirs.get(key) != ours[key]]:
        key = different[0]
        raise UserError(
            f"{directory}: the runs there have {key}={theirs.get(key)}, not {ours[key]}: set it so, or another dir="
        )


def _prepare(study: Study, console: RunConsole) -> tuple[Path, Path]:
    """The base policy and the held-out puzzles, made if they aren't there."""
    from recipe.flowrl.compose import compose_run
    from recipe.flowrl.prepare import ensure

    config = compose_run([f"experiment={study.experiment}", *study.overrides])
    ensure(config, console)
    return Path(config.actor_rollout_ref.model.path), Path(config.data.val_files)


def _sweep(study: Study, directory: Path, console: RunConsole) -> dict[str, dict[float, float]]:
    """How well each variant trains on the first seed with each learning rate; empty if there is only one."""
    if len(study.lrs) == 1:
        return {}
    seed = study.seeds[0]
    run_dirs = {
        (name, lr): _run_dir(directory, variant, lr, seed)
        for lr in study.lrs
        for name, variant in study.variants.items()
    }
    runs = [
        partial(_train, study, study.variants[name], seed, lr, run_dir, console)
        for (name, lr), run_dir in run_dirs.items()
        if not (run_dir / EVALUATION).exists()
    ]
    _side_by_side(runs, len(run_dirs), "runs of the sweep", study.jobs, console)
    return {name: {lr: _solve_rate(run_dirs[name, lr]) for lr in study.lrs} for name in study.variants}


def _solve_rate(run_dir: Path) -> float:
    """The training solve rate over the last steps of a run, measured already or not."""
    from recipe.flowrl.compare.evaluation import training_record

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
    with output.open("a") if output else contextlib.nullcontext() as stdout:
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
            path = _run_dir(directory, variant, lr[variant.name], seed) / EVALUATION
            if path.exists():
                runs.setdefault(variant.name, {})[str(seed)] = json.loads(path.read_text())
    facts = dataclasses.asdict(dataclasses.replace(study, variants={}))
    started_from = {run["base_policy"] for seeds in runs.values() for run in seeds.values()}
    base = {name: json.loads((directory / BASE / f"{name}.json").read_text()) for name in sorted(started_from)}
    return {"study": facts, "lr": lr, "sweep": sweep, BASE: base, "runs": runs}


def _parse(arguments: list[str]) -> tuple[Study, Path, str]:
    """The study as asked for, its directory and its name.

    Raises:
        UserError: something is missing or wrong.
    """
    own: dict[str, str] = {}
    extra = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals:
            raise UserError(f"{argument!r}: expected KEY=VALUE, for example study=countdown")
        if key in ("study", "algos", "seeds", "lrs", "dir", *_COUNTS):
            own[key] = value
        else:
            extra.append(argument)
    name = own.get("study", "countdown")
    if name not in STUDIES:
        raise UserError(f"study={name}: unknown; there are {', '.join(STUDIES)}")
    study = STUDIES[name]
    try:
        changes: dict[str, Any] = {"overrides": (*study.overrides, *extra)}
        if "seeds" in own:
            changes["seeds"] = tuple(int(seed) for seed in own["seeds"].split(","))
        if "lrs" in own:
            changes["lrs"] = tuple(float(lr) for lr in own["lrs"].split(","))
        changes |= {key: int(own[key]) for key in _COUNTS if key in own}
    except ValueError as error:
        raise UserError(
            f"seeds and lrs are numbers with commas between, {', '.join(_COUNTS)} a number: {error}"
        ) from None
    if bad := [key for key in _COUNTS if changes.get(key, 1) < 1]:
        raise UserError(f"{bad[0]}={own[bad[0]]}: must be at least 1")
    if changes.get("samples", 16) < 16:
        raise UserError(f"samples={own['samples']}: avg@16 needs at least 16")
    if "algos" in own:
        asked = own["algos"].split(",")
        if unknown := [variant for variant in asked if variant not in study.variants]:
            raise UserError(f"algos={unknown[0]}: not in the study; it has {', '.join(study.variants)}")
        changes["variants"] = {variant: study.variants[variant] for variant in asked}
    directory = Path(own.get("dir", "outputs/compare")).absolute()
    return dataclasses.replace(study, **changes), directory, name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
