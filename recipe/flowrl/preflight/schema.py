"""The options that this recipe adds to verl's configuration: name, default, meaning and what is accepted, in one place.

Hydra knows the defaults as ``run_options`` (see ``configs/flowrl.yaml``); :data:`RULES` are what :mod:`.values` checks.
FlowRL's own options are in :mod:`recipe.flowrl.config`.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from recipe.flowrl.common.command_line import Option, option
from recipe.flowrl.common.gpus import GPUS
from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.common.rules import BOOLEAN, COUNT, INSIDE, POSITIVE, Rule, one_of

JOB_END_S = int((PROJECT / "slurm" / "job.sh").read_text().partition(" TEARDOWN_S=")[2].split()[0])
"""Seconds of the notice that are left for a job's end when its step has ended, as slurm/job.sh says."""

SEEDED_ROLLOUTS = "verl_ext.seeded_rollout.SeededAgentLoopManager"


def seconds_of(time_limit: Any) -> int | None:
    """Seconds of ``hours:minutes:seconds``, None if ``time_limit`` isn't that, or is zero."""
    match = re.fullmatch(r"(\d+):([0-5]\d):([0-5]\d)", str(time_limit))
    return (int(match[1]) * 3600 + int(match[2]) * 60 + int(match[3]) or None) if match else None


_TIME_LIMIT = Rule("hours:minutes:seconds, such as '24:00:00'", lambda value: seconds_of(value) is not None)
_NOTICE = Rule(
    f"a number of seconds above the {JOB_END_S} that the end of a job takes (slurm/job.sh)",
    lambda value: COUNT.accepts(value) and value > JOB_END_S,
)


@dataclass(frozen=True)
class PrepareOptions:
    """What the run makes for itself if it isn't there yet (:mod:`recipe.flowrl.prepare.own_tasks`)."""

    data: str | None = option("A data set that the run makes for itself; null: its data is there.", value=None)
    model: str | None = option("A base policy that the run makes for itself; null: it is there.", value=None)


@dataclass(frozen=True)
class SlurmOptions:
    """One job of a run on SLURM (:mod:`recipe.flowrl.run.submit`); the run goes on in the next."""

    time: str = option("The job's limit, as hours:minutes:seconds.", value="24:00:00", rule=_TIME_LIMIT)
    notice_s: int = option(
        "So many seconds before the limit the job begins to end: more than a step, a validation and a save.",
        value=600,
        rule=_NOTICE,
    )
    gpu: str | None = option(
        "The GPU of the nodes, by its name in recipe/flowrl/common/gpus.py; null: submit doesn't ask plan.",
        value=None,
        rule=one_of(GPUS).or_none("submit doesn't ask plan"),
    )


@dataclass(frozen=True)
class ReplayOptions:
    """Earlier rollouts in each batch, for FlowRL's objectives (docs/async.md)."""

    share: float | None = option(
        "So much of each mini-batch's prompts are groups of rollouts that an earlier step trained on; null: none.",
        value=None,
        rule=INSIDE.or_none("none"),
    )
    size: int = option("Groups that are kept for it, the newest.", value=256, rule=COUNT)
    reward_temperature: float | None = option(
        "A group is drawn in proportion to exp(its mean reward / this); null: whatever its reward.",
        value=1.0,
        rule=POSITIVE.or_none("whatever its reward"),
    )
    half_life: float | None = option(
        "Steps after which a group is drawn half as often; null: whatever its age.",
        value=4.0,
        rule=POSITIVE.or_none("whatever its age"),
    )


@dataclass(frozen=True)
class AlgorithmOptions:
    """Options of algorithms that verl lacks (``recipe/flowrl/advantages.py``); null: not in use."""

    pass_k: int | None = option("k of adv_estimator=pass_at_k.", value=None, rule=COUNT.or_none("not set"))
    kl_matched_beta: float | None = option(
        "Makes the advantage FlowRL's at this beta, reference term and size included.",
        value=None,
        rule=POSITIVE.or_none("not set"),
    )
    dmpo_weight: float | None = option(
        "Adds DMPO's distance, so much of it, to the advantage.", value=None, rule=POSITIVE.or_none("not set")
    )
    dmpo_temperature: float = option("Of the rewards, in DMPO's distance.", value=1.0, rule=POSITIVE)
    reference_reset_steps: int | None = option(
        "Every so many steps the reference becomes the policy.", value=None, rule=COUNT.or_none("not set")
    )
    replay: ReplayOptions = option("Earlier rollouts in each batch.", value=ReplayOptions())


@dataclass(frozen=True)
class RunOptions:
    """What every run has beside verl's configuration."""

    run_dir: str = option(
        "Everything that a run leaves. The same command continues from the last checkpoint in it.",
        value="outputs/${trainer.project_name}/${trainer.experiment_name}",
    )
    cache_dir: str = option(
        "Prepared data and models, shared by all runs.",
        value="${oc.env:FLOWRL_CACHE,${oc.env:HOME}/.cache/flowrl}",
    )
    prepare: PrepareOptions = option("What the run makes for itself.", value=PrepareOptions())
    deterministic: bool = option(
        "A sampling seed for each request, no prefix cache, and rows in their prompts' order: two runs of one "
        "configuration are the same, and so is one that was killed and resumed (docs/checkpoints.md says to what bit).",
        value=False,
        rule=BOOLEAN,
    )
    dryrun: bool = option(
        "Rehearse the run instead: the same configuration, small, without an accelerator.", value=False, rule=BOOLEAN
    )
    stop_file: str = option(
        "A run for which this file comes to exist finishes its step, saves, removes the file and ends with exit status "
        "75.",
        value="${run_dir}/stop",
    )
    stop_deadline: float | None = option(
        "So does a run that can't finish another step before it (seconds since the epoch; null: none).",
        value=None,
        rule=POSITIVE.or_none("none"),
    )
    self_check: bool = option(
        "Before the first update and after the first weight sync that follows one, compare a few log-probs (packed and "
        "padded, fused and unfused, rollout server and trainer): a run in which they differ ends (docs/faults.md). "
        "Without it such a run trains on wrong probabilities and says nothing; saved are seconds.",
        value=True,
        rule=BOOLEAN,
    )
    max_skipped_updates: int = option(
        "An update whose loss or gradient isn't finite is skipped; so many in a row end the run, and the batch of the "
        "last is kept in run_dir/nonfinite.",
        value=5,
        rule=COUNT,
    )
    max_ungraded_steps: int = option(
        "A response whose grader failed (the sandbox, not the program) is left out of the update; so many steps in a "
        "row in which none could be graded end the run.",
        value=3,
        rule=COUNT,
    )
    watchdog_s: float | None = option(
        "A run that makes no progress (no phase ends) for so many seconds shows where its processes are, and ends; "
        "null: never.",
        value=3600,
        rule=POSITIVE.or_none("no limit"),
    )
    slurm: SlurmOptions = option("A job of the run on SLURM.", value=SlurmOptions())
    algorithm: AlgorithmOptions = option("Beside verl's options of that name.", value=AlgorithmOptions())


def leaves(options: Any = RunOptions(), prefix: str = "") -> Iterator[tuple[str, Any, Option]]:
    """Each option's dotted name, its default, and what is said about it."""
    for item in fields(options):
        value, name = getattr(options, item.name), f"{prefix}{item.name}"
        if is_dataclass(value):
            yield from leaves(value, f"{name}.")
        else:
            yield name, value, item.metadata["option"]


def _defaults(options: Any) -> dict[str, Any]:
    values = {option.name: getattr(options, option.name) for option in fields(options)}
    return {name: _defaults(value) if is_dataclass(value) else value for name, value in values.items()}


RULES: dict[str, Rule] = {name: about.rule for name, _, about in leaves() if about.rule is not None}
"""Option -> what it accepts."""

# Without the types: OmegaConf would refuse in words of its own, and turn a number into the text that is wanted.
ConfigStore.instance().store("run_options", OmegaConf.create(_defaults(RunOptions())))
RESOLVERS: dict[str, Callable[..., Any]] = {
    "when": lambda condition, then, otherwise: then if condition is True else otherwise,
    "equal": lambda one, other: one == other,
    "project": lambda path: str(PROJECT / path),
    "quotient": lambda whole, part: max(1, whole // part),
    "ray_slots": lambda ranks, servers_nodes, servers_ranks: ranks + servers_nodes * servers_ranks,
}
"""Functions that ``configs/`` call."""

for _name, _function in RESOLVERS.items():
    OmegaConf.register_new_resolver(_name, _function, replace=True)
