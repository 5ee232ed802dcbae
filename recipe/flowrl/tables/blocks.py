"""The tables, before they become Markdown, LaTeX, CSV or HTML."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from recipe.flowrl.tables.numbers import (
    MISSING,
    Cell,
    cell,
    column_title,
    mean_over_columns,
    paired,
    per_problem,
)
from recipe.flowrl.tables.protocols import check, differences, notes_on
from recipe.flowrl.tables.published import PROTOCOL, PublishedTable, published_tables
from recipe.flowrl.tables.systems import System

OURS, PAPER, DIFFERENCE = "ours", "paper", "ours − paper"
AVERAGE = "mean"
_FIGURES_NOTE = (
    "The paper's figures are published without intervals; the intervals (95%, bootstrap over problems) are of ours "
    "alone, and so are those of the differences. Hashes of its benchmark files aren't published, and its own scripts "
    "graded it."
)


@dataclass(frozen=True)
class Row:
    """A system's cells; ``source``: whose figures they are (:data:`OURS`, :data:`PAPER`, :data:`DIFFERENCE`)."""

    name: str
    source: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Block:
    """A table. ``columns``: title -> decimals; ``signed``: values are differences; ``notes`` stand under it."""

    key: str
    title: str
    columns: dict[str, int]
    rows: Sequence[Row]
    notes: Sequence[str] = field(default_factory=list)
    signed: bool = False


def paper_blocks(systems: Sequence[System], allowed: Iterable[str]) -> list[Block]:
    """Each table of the paper that one of ``systems`` belongs to, ours beside the published figures.

    Raises:
        UserError: protocols differ in what isn't ``allowed``.
    """
    blocks = []
    for group in dict.fromkeys(system.group for system in systems):
        members = [system for system in systems if system.group == group]
        tables = [table for table in published_tables() if table.group == group]
        assigned = {table.key: [s for s in members if table in _fitting(s, tables)] for table in tables}
        listed = {name for table in tables for name in table.systems}
        for table in tables:
            main = table.key.startswith(("table1", "table2"))
            ours = [s for s in assigned[table.key] if s.name in table.systems or (main and s.name not in listed)]
            if ours:
                blocks.append(_beside(table, ours, allowed))
        if not tables:
            blocks.append(_alone(group, members, allowed))
    return blocks


def _fitting(system: System, tables: Sequence[PublishedTable]) -> list[PublishedTable]:
    """The tables that were sampled as ``system`` was; if there is none, those sampled in the paper's main way."""
    same = [table for table in tables if all(system.protocol.get(f) == table.protocol[f] for f in PROTOCOL)]
    return same or [table for table in tables if table.protocol == tables[0].protocol]


def _beside(table: PublishedTable, ours: Sequence[System], allowed: Iterable[str]) -> Block:
    notes = check(differences(ours, table), allowed, table.title)
    by_name = {system.name: system for system in ours}
    rows = []
    for name in [*table.systems, *(name for name in by_name if name not in table.systems)]:
        system, published = by_name.get(name), table.systems.get(name)
        title = published.name if published else name
        theirs = [Cell(value) for value in published.values] if published else []
        if published and table.has_average:
            theirs.append(Cell(published.average))
        mine = _cells(system, table.columns, table.has_average) if system else []
        rows += [Row(title, PAPER, theirs)] if theirs else []
        rows += [Row(title, OURS, mine)] if mine else []
        if theirs and mine:
            differences_ = [own.minus(other) for own, other in zip(mine, theirs, strict=True)]
            rows.append(Row(title, DIFFERENCE, differences_))
    if missing := [row.name for name, row in table.systems.items() if name not in by_name]:
        notes.append(f"Not evaluated here: {', '.join(missing)}.")
    columns = _columns(table.columns, int(table.protocol["n"]), table.has_average)
    return Block(table.key, table.title, columns, rows, [*notes, f"Paper: {table.reference}. {_FIGURES_NOTE}"])


def _alone(group: str, members: Sequence[System], allowed: Iterable[str]) -> Block:
    """A group that the paper has no table of."""
    notes = check(differences(members), allowed, group)
    n = members[0].protocol["n"]
    names = list(dict.fromkeys(name for system in members for name in system.benchmarks))
    columns = [column for name in names for column in (name, f"{name}:pass@{n}")]
    rows = [Row(system.label, OURS, _cells(system, columns, False)) for system in members]
    note = "Intervals: 95%, bootstrap over problems. The paper has no such table."
    return Block(f"group_{group}", group, _columns(columns, n, False), rows, [*notes, note])


def paired_blocks(systems: Sequence[System], reference: str | None) -> list[Block]:
    """For each group, every other system against the reference on the problems that both have.

    Args:
        systems: ours.
        reference: a name; by default ``flowrl`` where a group has it, else its first system.
    """
    blocks = []
    for group in dict.fromkeys(system.group for system in systems):
        members = [system for system in systems if system.group == group]
        base = reference_of(members, reference)
        others = [system for system in members if system is not base]
        columns = [name for name in base.benchmarks if any(name in other.benchmarks for other in others)]
        if not columns:
            continue
        rows = [Row(f"{base.label} − {other.label}", OURS, _paired_cells(base, other, columns)) for other in others]
        notes = [
            "Differences of avg@n on the same problems, system by system, with 95% intervals, bootstrap over problems: "
            "the difficulty of a problem cancels. No correction for the number of comparisons."
        ]
        notes += notes_on(members)
        titles = _columns(columns, None, len(columns) > 1)
        blocks.append(Block(f"paired_{group}", f"{group}: paired differences", titles, rows, notes, signed=True))
    return blocks


def reference_of(systems: Sequence[System], reference: str | None) -> System:
    """The one called ``reference``, or ``flowrl`` if that is None; the first if none is called so."""
    return next((system for system in systems if system.name == (reference or "flowrl")), systems[0])


def health_blocks(systems: Sequence[System]) -> list[Block]:
    """For each group what accuracy hides: answers not found, answers cut off, length."""
    blocks = []
    for group in dict.fromkeys(system.group for system in systems):
        members = [system for system in systems if system.group == group]
        rows = []
        for system in members:
            for name, summary in system.benchmarks.items():
                rates = [Cell(100 * summary[key]) for key in ("extraction_failed", "truncated")]
                counts = [Cell(summary["problems"]), Cell(summary["n"]), *rates, Cell(summary["mean_tokens"])]
                unrated = len(summary.get("unrated_contests", ()))
                extra = f", {unrated} contests unrated" if unrated else ""
                rows.append(Row(f"{system.label}, {column_title(name, None)}{extra}", OURS, counts))
        columns = {"problems": 0, "samples": 0, "no answer found %": 1, "cut off %": 1, "mean tokens": 0}
        blocks.append(Block(f"answers_{group}", f"{group}: answers", columns, rows))
    return blocks


def _cells(system: System, columns: Sequence[str], average: bool) -> list[Cell]:
    cells = [cell(system.benchmarks, column) for column in columns]
    if average:
        values = [per_problem(system.benchmarks, column) for column in columns]
        cells.append(mean_over_columns([list(v.values()) for v in values]) if all(values) else MISSING)
    return cells


def _paired_cells(base: System, other: System, columns: Sequence[str]) -> list[Cell]:
    found = [paired(per_problem(base.benchmarks, name), per_problem(other.benchmarks, name)) for name in columns]
    cells = [mean_over_columns([column]) if column else MISSING for column in found]
    if len(columns) > 1:
        cells.append(mean_over_columns(found) if all(found) else MISSING)
    return cells


def _columns(columns: Sequence[str], n: int | None, average: bool) -> dict[str, int]:
    titles = {column_title(column, n): 0 if column.endswith("rating") else 1 for column in columns}
    return titles | ({AVERAGE: 1} if average else {})
