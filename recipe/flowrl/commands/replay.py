"""Computes the loss of a kept batch again."""

from dataclasses import dataclass
from pathlib import Path

from recipe.flowrl.common.command_line import Command, option


@dataclass(frozen=True)
class Options:
    """The batch, and the run it is of."""

    file: Path = option("A file in RUN_DIR/nonfinite.", place="FILE")
    config: Path = option(
        "The run's resolved configuration.",
        fill=lambda given: given.file.parent.parent / "config.yaml",
        default="RUN_DIR/config.yaml",
    )
    trust: bool = option("What the configuration names may be run: you know who wrote it.", value=False)


def run(options: Options) -> None:
    """Print what is found."""
    from recipe.flowrl.run.replay import replay_file

    replay_file(options.file, options.config, options.trust)


COMMAND = Command(
    Options,
    run,
    examples=("RUN_DIR/nonfinite/step_12_rank_0.pt",),
    notes=(
        "A run that ends because loss or gradient wasn't finite leaves the batch of its last update. Neither the model "
        "nor a GPU is needed.",
    ),
)
