"""The paper's tables from evaluations, in every format. Results of different protocols are refused."""

from collections.abc import Sequence
from pathlib import Path

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.files import write_text
from recipe.flowrl.tables.blocks import health_blocks, paired_blocks, paper_blocks
from recipe.flowrl.tables.diversity_blocks import diversity_blocks, judge_block
from recipe.flowrl.tables.protocols import FIELDS
from recipe.flowrl.tables.published import published_tables
from recipe.flowrl.tables.render import csv_text, latex, markdown
from recipe.flowrl.tables.systems import System
from recipe.flowrl.tables.tables_page import write_tables_page


def write_tables(systems: list[System], out: Path, allow: Sequence[str], reference: str | None) -> None:
    """Write ``out/tables.md``, ``.tex``, ``.csv`` and ``.html``, and print the first.

    Args:
        systems: ours, in any order.
        out: a directory.
        allow: fields of the protocol that may differ; ``all``.
        reference: name of the system that the others are compared with; None: none.

    Raises:
        UserError: protocols differ in what isn't allowed, or a name isn't known or stands for two.
    """
    order = list(dict.fromkeys(table.group for table in published_tables()))
    systems = sorted(systems, key=lambda one: order.index(one.group) if one.group in order else len(order))
    _check_names(systems, reference)
    main_blocks = paper_blocks(systems, FIELDS if "all" in allow else allow)
    paired = paired_blocks(systems, reference)
    judged = judge_block(systems)
    diversity = [*([judged] if judged else []), *diversity_blocks(systems, reference)]
    blocks = [*main_blocks, *paired, *diversity, *health_blocks(systems)]
    for name, text in (("md", markdown(blocks)), ("tex", latex(blocks)), ("csv", csv_text(blocks))):
        write_text(out / f"tables.{name}", text)
    write_tables_page(out / "tables.html", systems, blocks)
    print(markdown(blocks))
    print("\n".join(f"written: {out / f'tables.{name}'}" for name in ("md", "tex", "csv", "html")))


def _check_names(systems: Sequence[System], reference: str | None) -> None:
    """Raises UserError: two evaluations of one name and protocol, or an unknown reference."""
    seen: dict[tuple[str, ...], System] = {}
    for system in systems:
        sampling = (str(system.protocol.get(field)) for field in ("n", "temperature", "top_p", "max_tokens"))
        other = seen.setdefault((system.group, system.name, *sampling), system)
        if other is not system:
            raise UserError(
                f"{other.directory} and {system.directory} are both {system.group}/{system.name}: "
                "name them, as NAME=EVAL_DIR"
            )
    if reference and reference not in [system.name for system in systems]:
        raise UserError(f"reference={reference}: no such system; there are {', '.join(s.name for s in systems)}")
