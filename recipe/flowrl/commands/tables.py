"""Sets evaluations beside the paper's figures."""

from dataclasses import dataclass
from pathlib import Path

from recipe.flowrl.common import rules
from recipe.flowrl.common.command_line import Command, option
from recipe.flowrl.tables.protocols import FIELDS


@dataclass(frozen=True)
class Options:
    """What stands in the tables."""

    evaluations: tuple[str, ...] = option(
        "Directories that evaluate has written, each as DIR, NAME=DIR or GROUP/NAME=DIR.",
        place="EVALUATION",
        labels=True,
    )
    out: Path = option("Directory for tables.md, .tex, .csv and .html.", value=Path("outputs/tables"))
    allow: tuple[str, ...] = option(
        "In what the protocols of results side by side may differ; every table then says so.",
        value=(),
        rule=rules.one_of(("all", *FIELDS)),
    )
    reference: str | None = option("NAME of the system that the others are compared with, in pairs.", value=None)


def run(options: Options) -> None:
    """Write the tables."""
    from recipe.flowrl.tables.paper_tables import write_tables
    from recipe.flowrl.tables.systems import read_systems

    write_tables(read_systems(options.evaluations), options.out, options.allow, options.reference)


COMMAND = Command(
    Options,
    run,
    examples=("outputs/evaluation/math_7b/*", "math_7b/flowrl=EVALUATION math_7b/grpo=EVALUATION reference=grpo"),
    notes=(
        "GROUP says which of the paper's tables an evaluation belongs to (math_7b, math_32b, code_7b; any other has a "
        "table of its own), NAME which row. Without them they are the checkpoint's experiment and algorithm, or the "
        "last two parts of DIR.",
    ),
)
