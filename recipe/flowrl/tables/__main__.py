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
from recipe.flowrl.tables.blocks import health_blocks, paired_blocks, paper_blocks
from recipe.flowrl.tables.diversity_blocks import diversity_blocks, judge_block
from recipe.flowrl.tables.page import write_tables_page
from recipe.flowrl.tables.protocols import parse_allowed
from recipe.flowrl.tables.published import published_tables
from recipe.flowrl.tables.render import csv_text, latex, markdown
from recipe.flowrl.tables.systems import System, parse

_KEYS = ("out", "allow", "reference")


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
        write_tables_page(out / "tables.html", systems, blocks)
        print(markdown(blocks))
        print("\n".join(f"written: {out / f'tables.{name}'}" for name in ("md", "tex", "csv", "html")))
    except BaseException as error:
        return exit_status_of(error)
    return 0


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
