"""Writes a checkpoint as a Hugging Face model."""

from dataclasses import dataclass
from pathlib import Path

from recipe.flowrl.common import rules
from recipe.flowrl.common.command_line import Command, option


@dataclass(frozen=True)
class Options:
    """From where to where."""

    checkpoint: Path = option("The checkpoint, .../global_step_N.", place="CHECKPOINT")
    output: Path = option("The model directory to make.", place="OUTPUT")
    dtype: str | None = option(
        "Type of the weights; null: the checkpoint's.",
        value=None,
        rule=rules.one_of(("float32", "bfloat16", "float16")),
    )
    trust: bool = option("The checkpoint may run code while it is read: you know who wrote it.", value=False)


def run(options: Options) -> None:
    """Export, and say where."""
    from recipe.flowrl.checkpoint.export import export

    export(options.checkpoint, options.output, options.dtype, options.trust)
    print(f"exported to {options.output}")


COMMAND = Command(
    Options,
    run,
    examples=("outputs/countdown_cpu/flowrl/checkpoints/global_step_40 MODEL",),
    notes=("The head for log Z isn't part of the policy, so it isn't exported.",),
)
