"""``dryrun=true``: a run's own configuration on a machine without an accelerator, small, from the data to the export.

The configuration is checked as the run's, then turned into the rehearsal's (:mod:`.transform`) and launched like any
other. What differs is printed before, what it went through afterwards.
"""

import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from recipe.flowrl import preflight
from recipe.flowrl.preflight.batches import check_batches
from recipe.flowrl.preflight.options import check_options
from recipe.flowrl.preflight.registries import check_registered_names
from recipe.flowrl.preflight.reward import check_reward_source
from recipe.flowrl.prepare.own_tasks import MAKERS, Makers
from recipe.flowrl.rehearsal.inputs import inputs_of
from recipe.flowrl.rehearsal.table import difference_lines
from recipe.flowrl.rehearsal.transform import changes, rehearsal_of, settings, switched_off

EXPORTED = "exported"
"""The model directory that a rehearsal ends with, in its run directory."""


@dataclass(frozen=True)
class Rehearsal:
    """A run's rehearsal: its configuration, what it can make for itself, what to tell of it, and the warnings."""

    config: DictConfig
    makers: Makers
    account: list[str]
    warnings: list[str]


def rehearse(config: DictConfig) -> None:
    """Rehearse the run that ``config`` describes.

    Raises:
        UserError: the run would be refused, or the rehearsal can't work here.
        RunFault: rollout and trainer differ.
        RuntimeError: a model that was exported doesn't load.
    """
    rehearsal = rehearsal_and_account(config)
    print("\n".join(rehearsal.account), flush=True)
    run_dir = Path(rehearsal.config.run_dir).absolute()
    for name in ("checkpoints", EXPORTED):  # of an earlier rehearsal
        shutil.rmtree(run_dir / name, ignore_errors=True)

    from recipe.flowrl.run.launch import launch  # after the checks: it imports more than they need

    launch(rehearsal.config, rehearsal.warnings, rehearsal.makers)

    from recipe.flowrl.rehearsal.aftermath import check_agreement, exercised, export_and_load

    parameters = export_and_load(run_dir, run_dir / EXPORTED)
    print("\n".join(exercised(rehearsal.config, run_dir, parameters)), flush=True)
    check_agreement(rehearsal.config, run_dir)


def rehearsal_and_account(config: DictConfig) -> Rehearsal:
    """The checked rehearsal of the run that ``config`` describes; writes no file.

    Raises:
        UserError: the run would be refused, or the rehearsal can't work here.
    """
    real = preflight.resolved(config)
    # Not whether data and model are there, nor the machine: those are the rehearsal's own.
    warnings = [*check_options(real), *check_registered_names(real)]
    check_batches(real)
    check_reward_source(real)
    inputs = inputs_of(real)
    makers = {**MAKERS, **inputs.makers}
    set_here = settings(real, inputs)
    rehearsal = rehearsal_of(config, set_here)
    warnings = list(dict.fromkeys([*warnings, *preflight.check(rehearsal, makers=makers)]))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    title = f"rehearsal of {real.trainer.project_name}, {real.trainer.experiment_name}:"
    differing = changes(config, rehearsal)
    lines = [title, *inputs.notes, *difference_lines(differing, set_here)]
    lines += switched_off(differing) if real.trainer.device != "cpu" else []
    return Rehearsal(rehearsal, makers, lines, warnings)
