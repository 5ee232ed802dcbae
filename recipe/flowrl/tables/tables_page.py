"""The tables as one self-contained page, with plots."""

from collections.abc import Sequence
from pathlib import Path

from recipe.flowrl.reporting.study_page import Section, Table, svg, write_page
from recipe.flowrl.tables import figures
from recipe.flowrl.tables.blocks import Block
from recipe.flowrl.tables.diversity_blocks import compared, diversity_key, measured
from recipe.flowrl.tables.published import PROTOCOL
from recipe.flowrl.tables.render import header, texts
from recipe.flowrl.tables.systems import System

_INTRO = (
    "Accuracies in percent with 95% intervals, bootstrap over problems; the paper's figures have none. – is missing."
)
_FACTS = ("suite", *PROTOCOL, "seed", "grader", "date")


def write_tables_page(path: Path, systems: Sequence[System], blocks: Sequence[Block]) -> Path:
    """Write the page; returns ``path``."""
    sections = [*_sections(systems, blocks), _evaluations(systems)]
    return write_page(path, "The paper's tables, ours beside them", _INTRO, sections)


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
