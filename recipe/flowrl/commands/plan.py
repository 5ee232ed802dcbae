"""Does a run fit on its GPUs?"""

from dataclasses import dataclass

from recipe.flowrl.commands.configuration import note
from recipe.flowrl.common import rules
from recipe.flowrl.common.command_line import Command, option, overrides
from recipe.flowrl.common.gpus import GPUS

DOES_NOT_FIT = 1


@dataclass(frozen=True)
class Options:
    """The run, and the GPU."""

    gpu: str = option("The GPU that the run is to fit on.", rule=rules.one_of(GPUS))
    overrides: tuple[str, ...] = overrides()


def run(options: Options) -> int:
    """Returns 0 if the run fits, 1 if not."""
    from recipe.flowrl.plan.text import report
    from recipe.flowrl.preflight.compose import compose_run

    lines, wrong = report(compose_run(options.overrides), options.gpu)
    print("\n".join([*lines, *wrong]))
    return DOES_NOT_FIT if wrong else 0


COMMAND = Command(
    Options,
    run,
    examples=("experiment=math_7b cluster=1x8 gpu=h100_80gb",),
    notes=(
        "Prints bytes for a GPU by phase, tokens, FLOPs and an estimate of time, with what it assumes. Exit status 0: "
        "it fits; 1: it doesn't.",
        note(),
    ),
)
