"""Could a run work here?"""

from dataclasses import dataclass

from recipe.flowrl.commands.configuration import note
from recipe.flowrl.common.command_line import Command, overrides
from recipe.flowrl.common.errors import FAILED


@dataclass(frozen=True)
class Options:
    """The run."""

    overrides: tuple[str, ...] = overrides()


def run(options: Options) -> int:
    """Returns 0 if all is well, 1 if not."""
    from recipe.flowrl.common.environment import export_environment
    from recipe.flowrl.preflight.compose import compose_run
    from recipe.flowrl.run.doctor import ENVIRONMENT, RUN, examine

    config = compose_run(options.overrides)
    export_environment(config)
    has_run = any(override.startswith("experiment=") for override in options.overrides)
    lines, well = examine(config, (*ENVIRONMENT, *RUN) if has_run else ENVIRONMENT)
    print("\n".join(lines))
    return 0 if well else FAILED


COMMAND = Command(
    Options,
    run,
    examples=("", "experiment=math_7b cluster=1x8"),
    notes=(
        "A line for each thing that a run needs, and what to do about those that it hasn't got. Without an experiment: "
        "the environment and the machine alone. Exit status 0: all is well; 1: something isn't.",
        note(),
    ),
)
