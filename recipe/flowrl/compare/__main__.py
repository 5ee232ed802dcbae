"""Runs a study: ``python -m recipe.flowrl.compare study=countdown [algos=a,b] [seeds=0,1,2] [dir=DIR]``.

Every run goes through ``main_flowrl``, one after another, and is measured when it ends. What is done is not done again,
so the same command continues a study. ``DIR/study.json`` and ``DIR/report.html`` hold the outcome. ``steps=``,
``lrs=`` (several: a sweep), ``puzzles=`` and ``samples=`` (of the evaluation) make a study smaller or larger; anything
else is an override for Hydra, for every run.
"""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from recipe.flowrl.compare.studies import STUDIES, Study, Variant
from recipe.flowrl.errors import UserError, exit_status_of
from recipe.flowrl.files import write_json
from recipe.flowrl.reporting.console import RunConsole, short_duration

BASE = "base"
_COUNTS = ("steps", "puzzles", "samples")
LAST_STEPS = 10
"""Steps at the end of a run whose mean training solve rate chooses the learning rate."""


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, 1 after a failure, 2 for bad input."""
    try:
        study, directory, name = _parse(arguments)
        with RunConsole(sys.stdout) as console:
            run_study(study, directory, console)
            from recipe.flowrl.compare.report import write_report

            console.message(f"report: {write_report(directory, name)}")
    except BaseException as error:
        return exit_status_of(error)
    return 0


def run_study(study: Study, directory: Path, console: RunConsole) -> None:
    """Run what isn't done, seed by seed, so that a study that is cut off has all variants; write ``study.json``.

    Raises:
        UserError: a training run failed.
    """
    from recipe.flowrl.compare.evaluation import evaluate, final_checkpoint, training_record

    base, puzzles = _prepare(study, console)
    base_file = directory / "base.json"
    if not base_file.exists():
        with console.phase("evaluating the base policy"):
            write_json(base_file, evaluate(None, base, puzzles, study.puzzles, study.samples))
    lr = {name: _swept_lr(study, variant, directory, console) for name, variant in study.variants.items()}
    todo = [(seed, variant) for seed in study.seeds for variant in study.variants.values()]
    started, done_now = time.time(), 0
    for index, (seed, variant) in enumerate(todo):
        run_dir = directory / variant.name / f"seed_{seed}"
        evaluation = run_dir / "evaluation.json"
        if not evaluation.exists():
            _train(study, variant, seed, lr[variant.name], run_dir, console)
            with console.phase(f"evaluating {variant.name}, seed {seed}"):
                measured = evaluate(final_checkpoint(run_dir), base, puzzles, study.puzzles, study.samples)
                record = {"lr": lr[variant.name], "evaluation": measured, "training": training_record(run_dir)}
                write_json(evaluation, record)
            done_now += 1
            left = (time.time() - started) / done_now * (len(todo) - index - 1)
            console.message(f"{index + 1}/{len(todo)} runs done, ETA {short_duration(left)}")
        write_json(directory / "study.json", _collect(study, directory, lr))


def _prepare(study: Study, console: RunConsole) -> tuple[Path, Path]:
    """The base policy and the held-out puzzles, made if they aren't there."""
    from recipe.flowrl.compose import compose_run
    from recipe.flowrl.prepare import ensure

    config = compose_run([f"experiment={study.experiment}", *study.overrides])
    ensure(config, console)
    return Path(config.actor_rollout_ref.model.path), Path(config.data.val_files)


def _swept_lr(study: Study, variant: Variant, directory: Path, console: RunConsole) -> float:
    """The learning rate that trains best on the first seed; without runs if there is only one."""
    if len(study.lrs) == 1:
        return study.lrs[0]
    from recipe.flowrl.compare.evaluation import training_record

    rates = {}
    for lr in study.lrs:
        run_dir = directory / variant.name / f"lr_{lr:g}"
        _train(study, variant, study.seeds[0], lr, run_dir, console)
        rates[lr] = float(np.mean(training_record(run_dir)["curves"]["solve_rate"][1][-LAST_STEPS:]))
    return max(rates, key=rates.get)


def _train(study: Study, variant: Variant, seed: int, lr: float, run_dir: Path, console: RunConsole) -> None:
    console.message(f"training {variant.name}, seed {seed}, learning rate {lr:g}")
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
    if status := subprocess.run([*command, *variant.overrides, *study.overrides]).returncode:
        raise UserError(f"{variant.name}, seed {seed}: training ended with status {status}; the study continues there")


def _collect(study: Study, directory: Path, lr: dict[str, float]) -> dict[str, Any]:
    """Everything that was measured so far."""
    runs: dict[str, dict[str, Any]] = {}
    for variant in study.variants.values():
        for seed in study.seeds:
            path = directory / variant.name / f"seed_{seed}" / "evaluation.json"
            if path.exists():
                runs.setdefault(variant.name, {})[str(seed)] = json.loads(path.read_text())
    facts = dataclasses.asdict(dataclasses.replace(study, variants={}))
    return {"study": facts, "lr": lr, BASE: json.loads((directory / "base.json").read_text()), "runs": runs}


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
        changes: dict[str, Any] = {"overrides": tuple(extra)}
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
    directory = Path(own.get("dir", f"outputs/compare/{name}")).absolute()
    return dataclasses.replace(study, **changes), directory, name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
