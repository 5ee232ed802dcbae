"""The paper's tables from evaluations: ``python -m recipe.flowrl.tables EVAL_DIR... [out=outputs/tables]``.

An evaluation is ``DIR``, ``NAME=DIR`` or ``GROUP/NAME=DIR`` (``math_7b/flowrl=...``): GROUP says which of the paper's
tables it belongs to (``math_7b``, ``math_32b``, ``code_7b``; any other has a table of its own), NAME which row. Without
them they are the checkpoint's experiment and algorithm, or the last two parts of DIR. Writes ``tables.md``, ``.tex``,
``.csv`` and ``.html``. ``reference=NAME`` is compared with the others in the paired differences. Results of different
protocols are refused; ``allow=n,temperature`` (or ``all``) puts them side by side with a note in every format.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from recipe.flowrl.errors import UserError, exit_status_of
from recipe.flowrl.files import write_text
from recipe.flowrl.reporting.page import Section, Table, svg, write_page
from recipe.flowrl.tables import figures
from recipe.flowrl.tables.blocks import Block, health_blocks, paired_blocks, paper_blocks
from recipe.flowrl.tables.diversity_blocks import (
    compared,
    diversity_blocks,
    diversity_key,
    judge_block,
    measured,
)
from recipe.flowrl.tables.protocols import parse_allowed
from recipe.flowrl.tables.published import PROTOCOL, published_tables
from recipe.flowrl.tables.render import csv_text, header, latex, markdown, texts
from recipe.flowrl.tables.systems import System, parse

_KEYS = ("out", "allow", "reference")
_INTRO = (
    "Accuracies in percent with 95% intervals, bootstrap over problems; the paper's figures have none. – is missing."
)
_FACTS = ("suite", *PROTOCOL, "seed", "grader", "date")


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, 1 after a failure, 2 for bad input or protocols that differ."""
    try:
        systems, options = parse(arguments, _KEYS)
        order = list(dict.fromkeys(table.group for table in published_tables()))
        systems.sort(key=lambda system: order.index(system.group) if system.group in order else len(order))
        _check_names(systems, options.get("reference"))
        out = Path(options.get("out", "outputs/tables"))
        main_blocks = paper_blocks(systems, parse_allowed(options.get("allow")))
        paired = paired_blocks(systems, options.get("reference"))
        judged = judge_block(systems)
        diversity = [*([judged] if judged else []), *diversity_blocks(systems, options.get("reference"))]
        blocks = [*main_blocks, *paired, *diversity, *health_blocks(systems)]
        for name, text in (("md", markdown(blocks)), ("tex", latex(blocks)), ("csv", csv_text(blocks))):
            write_text(out / f"tables.{name}", text)
        sections = [*_sections(systems, blocks), _evaluations(systems)]
        write_page(out / "tables.html", "The paper's tables, ours beside them", _INTRO, sections)
        print(markdown(blocks))
        print("\n".join(f"written: {out / f'tables.{name}'}" for name in ("md", "tex", "csv", "html")))
    except BaseException as error:
        return exit_status_of(error)
    return 0


def _sections(systems: Sequence[System], blocks: Sequence[Block]) -> list[Section]:
    drawn = {diversity_key(*of[:3]): of for of in compared(systems)}
    sections = []
    for block in blocks:
        figure, notes = None, list(block.notes)
        if block.key.startswith(("table", "group_", "log_z", "figure4")):
            figure = figures.beside_figure(block)
        elif block.key in drawn:
            group, benchmark, population, m = drawn[block.key]
            members = measured([system for system in systems if system.group == group], benchmark)
            figure = figures.diversity_figure(members, benchmark, population, m)
            notes.append(f"Left: solution forms against the number of answers. Right: all measures at {m} answers.")
        elif block.key.startswith("paired_") and "diversity" not in block.key:
            figure = figures.forest_figure(block)
        table = Table(header(block), texts(block))
        sections.append(Section(block.title, " ".join(notes), table, svg(figure) if figure else None))
    for group in dict.fromkeys(system.group for system in systems):
        figure = figures.pass_at_k_figure([system for system in systems if system.group == group])
        sections.append(Section(f"{group}: pass@k", "Unbiased; bands are 95% intervals.", figure=svg(figure)))
    return sections


def _evaluations(systems: Sequence[System]) -> Section:
    rows = [
        [f"{system.group}/{system.name}", str(system.directory), *(str(system.protocol.get(f, "–")) for f in _FACTS)]
        for system in systems
    ]
    return Section("Evaluations", "What ours are from.", Table(["", "directory", *_FACTS], rows))


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
