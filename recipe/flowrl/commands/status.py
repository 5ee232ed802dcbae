"""How a run is doing."""

import time
from dataclasses import dataclass
from pathlib import Path

from recipe.flowrl.common.command_line import Command, option


@dataclass(frozen=True)
class Options:
    """The run."""

    run_dir: Path = option("The run_dir of a training run.", place="RUN_DIR")


def run(options: Options) -> None:
    """Print it."""
    from recipe.flowrl.run.status import status

    print(status(options.run_dir, time.time()))


COMMAND = Command(
    Options,
    run,
    examples=("outputs/countdown_cpu/flowrl",),
    notes=("Looks from outside, from any machine that sees the directory; the run isn't touched.",),
)
