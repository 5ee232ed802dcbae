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

from recipe.flowrl.diversity.measures import POPULATIONS
from recipe.flowrl.errors import UserError, exit_status_of
from recipe.flowrl.files import write_text
from recipe.flowrl.reporting.page import Section, Table, svg, write_page
from recipe.flowrl.tables import figures
from recipe.flowrl.tables.blocks import Block, health_blocks, paired_blocks, paper_blocks
from recipe.flowrl.tables.diversity_blocks import compared, diversity_blocks, judge_block, measured
from recipe.flowrl.tables.numbers import column_title
from recipe.flowrl.tables.protocols import parse_allowed
from recipe.flowrl.tables.render import csv_text, header, latex, markdown, texts
from recipe.flowrl.tables.systems import System, parse

_KEYS = ("out", "allow", "reference")
_INTRO = (
    "Evaluations: {systems}. Accuracies in percent with 95% intervals, bootstrap over problems; – is missing. The "
    "paper's figures have no intervals."
)


def main(arguments: list[str]) -> int:
    """Returns the exit status: 0, 1 after a failure, 2 for bad input or protocols that differ."""
    try:
        systems, options = parse(arguments, _KEYS)
        _check_names(systems, options.get("reference"))
        out = Path(options.get("out", "outputs/tables"))
        main_blocks = paper_blocks(systems, parse_allowed(options.get("allow")))
        paired = paired_blocks(systems, options.get("reference"))
        judged = judge_block(systems)
        diversity = [*([judged] if judged else []), *diversity_blocks(systems, options.get("reference"))]
        blocks = [*main_blocks, *paired, *diversity, *health_blocks(systems)]
        for name, text in (("md", markdown(blocks)), ("tex", latex(blocks)), ("csv", csv_text(blocks))):
            write_text(out / f"tables.{name}", text)
        intro = _INTRO.format(systems=", ".join(f"{s.group}/{s.name} ({s.directory})" for s in systems))
        write_page(out / "tables.html", "The paper's tables, ours beside them", intro, _sections(systems, blocks))
        print(markdown(blocks))
        print("\n".join(f"written: {out / f'tables.{name}'}" for name in ("md", "tex", "csv", "html")))
    except BaseException as error:
        return exit_status_of(error)
    return 0


def _sections(systems: Sequence[System], blocks: Sequence[Block]) -> list[Section]:
    sections = []
    for block in blocks:
        figure = None
        if block.key.startswith(("table", "group_", "log_z", "figure4")):
            figure = figures.beside_figure(block)
        elif block.signed:
            figure = figures.forest_figure(block)
        table = Table(header(block), texts(block))
        sections.append(Section(block.title, " ".join(block.notes), table, svg(figure) if figure else None))
    for group in dict.fromkeys(system.group for system in systems):
        members = [system for system in systems if system.group == group]
        figure = figures.pass_at_k_figure(members)
        sections.append(Section(f"{group}: pass@k", "Unbiased; bands are 95% intervals.", figure=svg(figure)))
    for group, benchmark, population, m in compared(systems):
        members = measured([system for system in systems if system.group == group], benchmark)
        title = f"{group}, {column_title(benchmark, None)}: diversity of {POPULATIONS[population]}, drawn"
        text = f"Left: distinct solution forms in expectation. Right: all measures at {m} answers of each problem."
        figure = figures.diversity_figure(members, benchmark, population, m)
        sections.append(Section(title, text, figure=svg(figure)))
    return sections


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
