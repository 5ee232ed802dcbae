"""Whether results may stand side by side: how they were sampled, on what, and by what they were graded."""

from collections.abc import Iterable, Sequence

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.tables.published import PROTOCOL, PublishedTable
from recipe.flowrl.tables.systems import System

FIELDS = (*PROTOCOL, "grader", "benchmarks")
Differences = dict[str, str]
"""Field -> what differs, in words."""
Owned = list[tuple[object, str]]
"""Values, each with the name of the system that has it."""


def notes_on(systems: Sequence[System]) -> list[str]:
    """The notes that a comparison of ``systems`` has to carry for what differs."""
    return check(differences(systems), FIELDS, "")


def differences(systems: Sequence[System], published: PublishedTable | None = None) -> Differences:
    """In what the protocols of ``systems``, and the published one beside them, differ."""
    found: Differences = {}
    for field in (*PROTOCOL, "grader"):
        values: Owned = [(system.protocol.get(field), system.label) for system in systems]
        if published and field in PROTOCOL:
            values.append((published.protocol[field], "the paper"))
        if _differ(values):
            found[field] = _in_words(values)
    for benchmark in sorted({name for system in systems for name in system.benchmarks}):
        having = [system for system in systems if benchmark in system.benchmarks]
        hashes: Owned = [(system.benchmark_hash(benchmark), system.label) for system in having]
        problems: Owned = [(system.benchmarks[benchmark]["problems"], system.label) for system in having]
        if _differ(hashes):
            found["benchmarks"] = f"the files of {benchmark} ({_in_words(hashes)})"
        elif _differ(problems):
            found["benchmarks"] = f"the number of problems of {benchmark} ({_in_words(problems)})"
    return found


def check(found: Differences, allowed: Iterable[str], where: str) -> list[str]:
    """The notes that a table has to carry for what differs.

    Args:
        found: of :func:`differences`.
        allowed: fields that may differ.
        where: the table.

    Raises:
        UserError: something differs that isn't allowed to.
    """
    if refused := [field for field in found if field not in set(allowed)]:
        what = "; ".join(f"{field}: {found[field]}" for field in refused)
        raise UserError(
            f"{where}: different protocols, not to be put side by side: {what}\n"
            f"evaluate them alike, or say allow={','.join(refused)}: then each table says so"
        )
    return [f"Different protocols, so the rows are not comparable as they stand. {f}: {found[f]}." for f in found]


def _differ(values: Owned) -> bool:
    return any(value != values[0][0] for value, _ in values)


def _in_words(values: Owned) -> str:
    names: dict[str, list[str]] = {}
    for value, owner in values:
        names.setdefault(_short(value), []).append(owner)
    return ", ".join(f"{value} ({', '.join(owners)})" for value, owners in names.items())


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}…"
