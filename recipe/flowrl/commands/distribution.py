"""Tests whether the policy matches the target distribution, on a task whose answers can all be enumerated."""

from dataclasses import dataclass
from pathlib import Path

from recipe.flowrl.common import rules
from recipe.flowrl.common.command_line import Command, option, overrides
from recipe.flowrl.common.project import CONFIG_DIR

_ALGORITHMS = sorted(path.stem for path in (CONFIG_DIR / "algo").glob("*.yaml"))


@dataclass(frozen=True)
class Options:
    """What is trained, and how."""

    algo: tuple[str, ...] = option("The algorithms.", rule=rules.one_of(("all", *_ALGORITHMS)))
    run_dir: Path = option(
        "Directory of the results: RUN_DIR itself for one algorithm, else RUN_DIR/ALGO, and of report.html."
    )
    mode: str = option(
        "The loss alone, minutes an algorithm, or the whole training.",
        value="objective",
        rule=rules.one_of(("objective", "stack")),
    )
    task: str = option(
        "Two tokens and five modes, or one to four tokens, a quarter of the answers right.",
        value="modes",
        rule=rules.one_of(("modes", "endings")),
    )
    reward: str = option(
        "The reward as it is, or normalised in each group; FlowRL as published is the latter, without beta=.",
        value="raw",
        rule=rules.one_of(("raw", "group_normalized")),
    )
    beta: float | None = option(
        "FlowRL's, and the inverse of the KL's coefficient in grpo_kl_matched and rloo.",
        value=None,
        rule=rules.POSITIVE.or_none("the task's"),
        default="3",
    )
    staleness: int = option(
        "Steps that a batch of rollouts waits before it is trained on; mode=objective.",
        value=0,
        rule=rules.COUNT_OR_ZERO,
    )
    seeds: tuple[int, ...] = option(
        "Each algorithm is run once with each, in a directory seed_N.",
        value=(),
        rule=rules.COUNT_OR_ZERO,
        default="the configuration's, in no directory of its own",
    )
    overrides: tuple[str, ...] = overrides()


def run(options: Options) -> None:
    """Run what isn't done yet."""
    from recipe.flowrl.distribution.exact_test import run_all, setups_of

    asked = {"reward": options.reward, "task": options.task, "beta": options.beta, "staleness": options.staleness}
    setups = setups_of(options.algo, **asked)
    run_all(setups, options.mode, options.seeds, options.run_dir, list(options.overrides))


COMMAND = Command(
    Options,
    run,
    examples=(
        "algo=all run_dir=outputs/distribution",
        "algo=flowrl,grpo seeds=0,1,2 run_dir=outputs/distribution",
        "algo=flowrl,flowrl_plus,rloo task=endings beta=3 staleness=4 run_dir=outputs/endings",
    ),
    notes=("A result that is there isn't made again.",),
)
