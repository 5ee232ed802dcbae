"""Trains, as ``python -m recipe.flowrl.main_flowrl`` does."""

import sys
from dataclasses import dataclass

from recipe.flowrl.commands.configuration import note
from recipe.flowrl.common.command_line import Command, overrides


@dataclass(frozen=True)
class Options:
    """Of Hydra's program, which reads them itself."""

    overrides: tuple[str, ...] = overrides()


def run(options: Options) -> int:
    """Returns the exit status of the training."""
    sys.argv[1:] = options.overrides
    from recipe.flowrl.main_flowrl import main

    return main()


COMMAND = Command(
    Options,
    run,
    examples=("experiment=countdown_cpu", "experiment=math_7b cluster=1x8 dryrun=true"),
    notes=(
        note(),
        "The same command continues a run that was ended. Hydra's own flags are taken too, such as --cfg job.",
    ),
    hydra=True,
)
