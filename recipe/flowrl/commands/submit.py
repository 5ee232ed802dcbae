"""Hands a run to SLURM."""

from dataclasses import dataclass

from recipe.flowrl.commands.configuration import note
from recipe.flowrl.common.command_line import PROGRAM, Command, option, overrides


@dataclass(frozen=True)
class Options:
    """The run, and whether the script is only shown."""

    show: bool = option("Show the job's script, and submit nothing.", value=False)
    overrides: tuple[str, ...] = overrides()


def run(options: Options) -> None:
    """Submit, or show what would be submitted."""
    from recipe.flowrl.common.project import PROJECT
    from recipe.flowrl.run import submit

    config = submit.composed(options.overrides)
    script = submit.render(config, options.overrides, submit.read_site(submit.SITE))
    if options.show:
        print(script, end="")
    else:
        job = submit.submit(script, PROJECT / config.run_dir)
        print(f"job {job}; {PROGRAM} status {config.run_dir}")


COMMAND = Command(
    Options,
    run,
    examples=("show=true experiment=math_32b cluster=4x8", "experiment=math_32b cluster=4x8"),
    notes=(
        "Nodes, GPUs and time are the configuration's, the site's settings those of slurm/site.env. What the run would "
        "refuse is refused here.",
        note(),
    ),
)
