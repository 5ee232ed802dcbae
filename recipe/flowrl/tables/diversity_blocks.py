"""The diversity of our systems at equal numbers of answers, on the problems that all of them have enough of."""

from collections.abc import Sequence
from typing import Any

from recipe.flowrl.diversity.evaluations import POPULATIONS
from recipe.flowrl.diversity.measures import MEASURES
from recipe.flowrl.tables.blocks import OURS, PAPER, Block, Row, reference_of
from recipe.flowrl.tables.numbers import MISSING, Cell, column_title, mean_over_columns
from recipe.flowrl.tables.protocols import notes_on
from recipe.flowrl.tables.published import published_diversity
from recipe.flowrl.tables.systems import System

_NOTE = (
    "Each system at {m} answers of each problem in expectation, on the {count} problems, of {most}, where every system "
    "has as many. Intervals: 95%, bootstrap over problems. Higher is more diverse, except for {falling}."
)


def diversity_blocks(systems: Sequence[System], reference: str | None = None) -> list[Block]:
    """For each group, benchmark and population the measures, and their paired differences to the reference's.

    Nothing where ``recipe.flowrl.diversity`` hasn't run. ``reference``: as for :func:`.blocks.paired_blocks`.
    """
    blocks = []
    for group, benchmark, population, m in compared(systems):
        everyone = [system for system in systems if system.group == group]
        members = measured(everyone, benchmark)
        columns = {}
        for name in MEASURES:
            values = shared_values(members, benchmark, population, name, m)
            if values[0]:
                columns[name] = values
        notes = _notes(members, benchmark, m, max(len(values[0]) for values in columns.values()))
        heading = f"{group}, {column_title(benchmark, None)}: diversity of {POPULATIONS[population]}"
        key = diversity_key(group, benchmark, population)
        rows = []
        for name, values in columns.items():
            known = {system.label: mean_over_columns([own]) for system, own in zip(members, values, strict=True)}
            rows.append(Row(MEASURES[name].title, OURS, [known.get(system.label, MISSING) for system in everyone]))
        blocks.append(Block(key, heading, {system.label: 3 for system in everyone}, rows, notes))
        if len(members) > 1:
            base = members.index(reference_of(members, reference))
            others = [index for index in range(len(members)) if index != base]
            titles = {f"{members[base].label} − {members[index].label}": 3 for index in others}
            rows = [
                Row(MEASURES[name].title, OURS, [_paired(values[base], values[index]) for index in others])
                for name, values in columns.items()
            ]
            blocks.append(Block(f"paired_{key}", f"{heading}, paired differences", titles, rows, notes, signed=True))
    return blocks


def diversity_key(group: str, benchmark: str, population: str) -> str:
    """The key of a table of measures."""
    return f"diversity_{group}_{benchmark}_{population}"


def compared(systems: Sequence[System]) -> list[tuple[str, str, str, str]]:
    """Group, benchmark, population and number of answers of each comparison that can be made."""
    found = []
    for group in dict.fromkeys(system.group for system in systems):
        members = [system for system in systems if system.group == group]
        for benchmark in dict.fromkeys(name for system in members for name in _benchmarks(system)):
            for population in POPULATIONS:
                m = shared_draws(measured(members, benchmark), benchmark, population)
                found += [(group, benchmark, population, m)] if m else []
    return found


def measured(systems: Sequence[System], benchmark: str) -> list[System]:
    """Those whose diversity on ``benchmark`` is known."""
    return [system for system in systems if benchmark in _benchmarks(system)]


def judge_block(systems: Sequence[System]) -> Block | None:
    """Our judges' mean scores over AIME beside the paper's figure; None if no system is of a group that it is about."""
    published = published_diversity()
    ours = [system for system in systems if system.group in published.groups]
    if not ours:
        return None
    rows = [Row(name, PAPER, [MISSING, Cell(score)]) for name, score in published.systems.values()]
    models = set()
    for system in ours:
        cells = []
        for population in POPULATIONS:
            columns = []
            for benchmark in ("aime2024", "aime2025"):
                judge = _benchmarks(system).get(benchmark, {}).get("judge")
                if judge:
                    models.add(f"{judge['model']}, {judge['responses']} responses, {judge['repeats']} repeats")
                    scores = judge["populations"][population]["scores"]
                    columns.append([sum(given) / len(given) for given in scores.values()])
            values = [value for column in columns for value in column]
            cells.append(mean_over_columns([values]) if values else MISSING)
        rows.append(Row(f"{system.label} ({system.group})", OURS, cells))
    notes = [
        f"Paper: {published.reference}; GPT-4o-mini over all 16 responses, published without intervals; its script "
        "cuts each response to 300 characters. Ours: whole responses, a prompt of our own on the paper's scale. The "
        "size of the paper's models isn't recorded here.",
        f"Our judge: {'; '.join(sorted(models))}." if models else "No judge has been asked here: ours are missing.",
    ]
    columns = {f"judge, {title}": 2 for title in POPULATIONS.values()}
    return Block("figure4", published.title, columns, rows, notes)


def shared_values(
    systems: Sequence[System], benchmark: str, population: str, measure: str, m: str
) -> list[list[float]]:
    """A list of values for each system, on the problems for which all have the measure at ``m``."""
    found = [_benchmarks(s)[benchmark]["values"][population].get(measure, {}).get(m, {}) for s in systems]
    problems = sorted(set.intersection(*map(set, found)))
    return [[values[problem] for problem in problems] for values in found]


def shared_draws(systems: Sequence[System], benchmark: str, population: str) -> str | None:
    """The largest m at which at least half as many problems are shared as at two draws; None if none is."""
    counts = {}
    for m in (str(2**power) for power in range(1, 11)):
        counts[m] = len(shared_values(systems, benchmark, population, "distinct_forms", m)[0])
    fitting = [m for m, count in counts.items() if count and count >= counts["2"] / 2]
    return fitting[-1] if fitting else None


def _notes(members: Sequence[System], benchmark: str, m: str, count: int) -> list[str]:
    falling = ", ".join(measure.title for measure in MEASURES.values() if measure.sign < 0)
    most = max(system.benchmarks[benchmark]["problems"] for system in members)
    notes = [_NOTE.format(m=m, count=count, most=most, falling=falling), *notes_on(members)]
    if len(encoders := {system.diversity["embedding"] for system in members}) > 1:
        notes.append(f"Different embedding models, so those measures don't compare: {', '.join(map(str, encoders))}.")
    return notes


def _paired(first: Sequence[float], second: Sequence[float]) -> Cell:
    return mean_over_columns([[a - b for a, b in zip(first, second, strict=True)]])


def _benchmarks(system: System) -> dict[str, Any]:
    return (system.diversity or {}).get("benchmarks", {})
