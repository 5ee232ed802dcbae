"""Makes the data of public sets.

``math`` and ``code`` are those of the paper's runs, ``gsm8k`` is for small models.

Leaves in ``out`` ``train.parquet``, one ``test_NAME.parquet`` for each test set, ``report.json`` (what was read, kept
and dropped, and why), ``dropped.jsonl`` (each dropped row) and ``manifest.json`` (rows and SHA-256 of each file).
"""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tabulate import tabulate

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.files import write_json, write_text
from recipe.flowrl.common.jsonl import to_line
from recipe.flowrl.tasks.code.data import code_task, humaneval_task
from recipe.flowrl.tasks.manifest import MANIFEST, write_manifest
from recipe.flowrl.tasks.math.data import math_task
from recipe.flowrl.tasks.parquet import prompt_row, write_rows
from recipe.flowrl.tasks.public import sources
from recipe.flowrl.tasks.public.overlap import TestIndex
from recipe.flowrl.tasks.public.sources import Source
from recipe.flowrl.tasks.rows import read_rows, shown
from recipe.flowrl.tasks.task import Malformed, Task

DOMAINS = {"math": sources.MATH, "code": sources.CODE, "gsm8k": sources.GSM8K}
"""Name -> where its rows come from."""
_BRIEF = 120
"""Characters of a dropped row's text that are kept."""


@dataclass
class Dropped:
    """Rows that were left out, and why."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, source: str, where: str, reason: str, text: str) -> None:
        """``where``: file and row."""
        self.rows.append({"source": source, "row": where, "reason": shown(reason[:_BRIEF]), "text": text[:_BRIEF]})

    def counts(self, source: str) -> dict[str, int]:
        """Number by reason."""
        return dict(Counter(row["reason"] for row in self.rows if row["source"] == source))


@dataclass(frozen=True)
class Located:
    """A task, and where it was found."""

    source: Source
    where: str
    task: Task


def read_source(
    source: Source, files: Iterable[Path], read: Callable[[Mapping], Task], dropped: Dropped
) -> tuple[list[Located], int]:
    """The tasks of a source and the number of its rows; those that are no task go to ``dropped``."""
    tasks, count = [], 0
    for path in files:
        for index, row in read_rows(path):
            count += 1
            where = f"{path.name}:{index}"
            try:
                if isinstance(row, Malformed):
                    raise row
                tasks.append(Located(source, where, read(row)))
            except Malformed as error:
                text = "" if isinstance(row, Malformed) else json.dumps(row, default=str)
                dropped.add(source.name, where, f"malformed: {error}", text)
    if not tasks:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.counts(source.name).items())
        raise UserError(
            f"{source.name}: not one row of {', '.join(path.name for path in files)} can be used "
            f"({reasons or 'there is none'}): are these the files of {source.repository}?"
        )
    return tasks, count


def distinct(tasks: Iterable[Located], dropped: Dropped) -> list[Located]:
    """The first of each group of tasks with the same text up to spaces; none, if they disagree about the answer."""
    groups: dict[str, list[Located]] = defaultdict(list)
    for located in tasks:
        groups[" ".join(located.task.text.split())].append(located)
    kept = []
    for first, *others in groups.values():
        agree = all(other.task.ground_truth == first.task.ground_truth for other in others)
        if agree:
            kept.append(first)
        else:
            dropped.add(first.source.name, first.where, "repeated with another answer", first.task.text)
        for other in others:
            reason = "repeated" if agree else "repeated with another answer"
            dropped.add(other.source.name, other.where, reason, other.task.text)
    return kept


def without_overlap(
    train: list[Located], tests: Mapping[str, list[Located]], keep: bool, dropped: Dropped
) -> tuple[list[Located], dict[str, int]]:
    """The training tasks that stand in no test set, and how many do, by test set and kind.

    Args:
        train, tests: tasks.
        keep: measure, but leave them in.
        dropped: gets those that are left out.
    """
    texts = {name: [located.task.text for located in tasks] for name, tasks in tests.items()}
    index = TestIndex(texts, [located.task.text for located in train])
    kept, counts = [], Counter[str]()
    for located in train:
        found = index.find(located.task.text)
        if found:
            kind, name = found
            counts[f"{name}: {kind}"] += 1
            if not keep:
                dropped.add(located.source.name, located.where, f"overlap with {name}: {kind}", located.task.text)
                continue
        kept.append(located)
    return kept, dict(sorted(counts.items()))


def prepare(
    domain: str, out: Path, source_dir: Path | None, skip: Iterable[str], collection: str, keep_overlap: bool
) -> dict[str, Any]:
    """Make the data of ``domain`` in ``out``; see the module's text.

    Args:
        domain: ``math``, ``code`` or ``gsm8k``.
        out: directory; files in it are replaced.
        source_dir: where the sources' files are; None: they are downloaded into ``out / "downloads"``.
        skip: names of sources to leave out.
        collection: ``original`` or ``authors``.
        keep_overlap: leave training rows in that stand in a test set.

    Returns:
        The report.

    Raises:
        UserError: a source is missing or can't be read, or nothing is left to train on.
    """
    wanted = _wanted(domain, collection, set(skip))
    dropped, read, train = Dropped(), Counter[str](), []
    tests: dict[str, list[Located]] = defaultdict(list)
    for source in wanted:
        files = sources.locate(source, source_dir) if source_dir else sources.download(source, out / "downloads")
        tasks, count = read_source(source, files, _reader(domain, source), dropped)
        read[source.name] += count  # of both splits, where one name stands for both
        print(f"{source.name}, {source.split}: {count} rows read, {len(tasks)} of them tasks", flush=True)
        if source.split == "train":
            train += tasks
        else:
            tests[source.data_source] += tasks
    tests = {name: distinct(tasks, dropped) for name, tasks in tests.items()}
    if empty := [name for name, tasks in tests.items() if not tasks]:
        raise UserError(f"{empty[0]}: no problem is left: each is repeated with another answer; is this the test set?")
    train, overlap = without_overlap(distinct(train, dropped), tests, keep_overlap, dropped)
    if not train:
        raise UserError("nothing is left to train on: all training rows stand in the test sets (keep_overlap=true)")

    splits = {"train": train} | {f"test_{name}": tasks for name, tasks in tests.items()}
    return _write_set(
        out,
        domain,
        splits,
        dropped,
        report={
            "read": dict(read),
            "dropped": {source.name: dropped.counts(source.name) for source in wanted},
            "overlap": overlap,
            "overlapping_rows_removed": not keep_overlap,
            "skipped": sorted(skip),
        },
    )


def _write_set(
    out: Path, domain: str, splits: Mapping[str, list[Located]], dropped: Dropped, report: dict[str, Any]
) -> dict[str, Any]:
    """Write all files beside ``out``'s, then put them in place, the manifest last; returns the report."""
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".new-", dir=out) as folder:
        new = Path(folder)
        rows = {f"{name}.parquet": _write(new, domain, name, tasks) for name, tasks in splits.items()}
        report["rows"] = rows
        write_text(new / "dropped.jsonl", "".join(map(to_line, dropped.rows)))
        write_json(new / "report.json", report, indent=2)
        write_manifest(new, rows, read=report["read"], dropped=report["dropped"])
        (out / MANIFEST).unlink(missing_ok=True)  # what a kill leaves half replaced is not what it was written for
        for name in (*rows, "dropped.jsonl", "report.json", MANIFEST):
            os.replace(new / name, out / name)
    return report


def _wanted(domain: str, collection: str, skip: set[str]) -> list[Source]:
    table = DOMAINS
    if collection == "authors":
        table = table | sources.AUTHORS
    known = {source.name for source in table[domain]}
    if unknown := sorted(skip - known):
        raise UserError(f"skip={unknown[0]}: no such source; {domain} has {', '.join(sorted(known))}")
    wanted = [source for source in table[domain] if source.name not in skip]
    if not any(source.split == "train" for source in wanted):
        raise UserError("skip= leaves no training data: leave one of the training sources in")
    return wanted


def _reader(domain: str, source: Source) -> Callable[[Mapping], Task]:
    if domain != "code":
        return math_task
    if source.data_source == "humanevalplus":
        from recipe.flowrl.sandbox.choose import gate

        with gate("bubblewrap", None, 1).slot() as runner:
            return partial(humaneval_task, runner=runner)
    return code_task


def _write(directory: Path, domain: str, name: str, tasks: Iterable[Located]) -> int:
    rows = [
        prompt_row(
            found.source.data_source,
            "code" if domain == "code" else "math",
            found.task.prompt,
            found.task.ground_truth,
            index,
            found.source.split,
            tolerance=found.task.tolerance,
        )
        for index, found in enumerate(tasks)
    ]
    write_rows(directory / f"{name}.parquet", rows)
    return len(rows)


def say(report: Mapping[str, Any], out: Path) -> None:
    """Print what was dropped and why, and what was written."""
    counts = [
        (source, report["read"][source], number, reason)
        for source, reasons in report["dropped"].items()
        for reason, number in sorted(reasons.items())
    ]
    if counts:
        print(tabulate(counts, headers=("source", "read", "dropped", "because"), disable_numparse=True))
    removed = "removed from" if report["overlapping_rows_removed"] else "left in"
    print(f"overlap with the test sets: {sum(report['overlap'].values())} rows, {removed} the training data")
    for name, count in report["rows"].items():
        print(f"{out / name}: {count} rows")
    print(f"what was dropped, row by row: {out / 'dropped.jsonl'}")
