"""Make data of public sets: ``python -m recipe.flowrl.prepare_data {math,code,gsm8k} --out DIR [--source DIR]``.

``math`` and ``code`` are those of the paper's runs, ``gsm8k`` is for small models.

Leaves in DIR ``train.parquet``, one ``test_NAME.parquet`` for each test set, ``report.json`` (what was read, kept and
dropped, and why), ``dropped.jsonl`` (each dropped row) and ``manifest.json`` (rows and SHA-256 of each file).
"""

import argparse
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from recipe.flowrl.data import sources
from recipe.flowrl.data.code_tasks import code_task, humaneval_task
from recipe.flowrl.data.manifest import write_manifest
from recipe.flowrl.data.math_tasks import math_task
from recipe.flowrl.data.overlap import TestIndex
from recipe.flowrl.data.parquet import prompt_row, write_rows
from recipe.flowrl.data.sources import Source
from recipe.flowrl.data.task import Malformed, Task
from recipe.flowrl.errors import UserError, exit_status_of
from recipe.flowrl.files import write_json, write_text

_BRIEF = 120
"""Characters of a dropped row's text that are kept."""


@dataclass
class Dropped:
    """Rows that were left out, and why."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, source: str, where: str, reason: str, text: str) -> None:
        """``where``: file and row."""
        self.rows.append({"source": source, "row": where, "reason": reason, "text": text[:_BRIEF]})

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
) -> list[Located]:
    """The tasks of a source; rows that aren't any go to ``dropped``."""
    tasks = []
    for path in files:
        for index, row in sources.read_rows(path):
            where = f"{path.name}:{index}"
            try:
                if row is None:
                    raise Malformed("not a JSON object")
                tasks.append(Located(source, where, read(row)))
            except Malformed as error:
                dropped.add(source.name, where, f"malformed: {error}", json.dumps(row, default=str))
    if not tasks:
        raise UserError(f"{source.name}: not one row can be used: are these the files of {source.repository}?")
    return tasks


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
    kept, counts = [], Counter()
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
    dropped, read, tests, train = Dropped(), {}, defaultdict(list), []
    for source in wanted:
        files = sources.locate(source, source_dir) if source_dir else sources.download(source, out / "downloads")
        tasks = read_source(source, files, _reader(domain, source), dropped)
        read[source.name] = len(tasks) + sum(dropped.counts(source.name).values())
        print(f"{source.name}: {read[source.name]} rows read, {len(tasks)} of them tasks", flush=True)
        if source.split == "train":
            train += tasks
        else:
            tests[source.data_source] += tasks
    train, overlap = without_overlap(distinct(train, dropped), tests, keep_overlap, dropped)
    if not train:
        raise UserError("nothing is left to train on: all training rows stand in the test sets (--keep-overlap)")

    rows = {"train.parquet": _write(out / "train.parquet", domain, "train", train)}
    for name, tasks in tests.items():
        rows[f"test_{name}.parquet"] = _write(out / f"test_{name}.parquet", domain, "test", tasks)
    report = {
        "read": read,
        "dropped": {source.name: dropped.counts(source.name) for source in wanted},
        "overlap": overlap,
        "overlapping_rows_removed": not keep_overlap,
        "skipped": sorted(skip),
        "rows": rows,
    }
    _write_lines(out / "dropped.jsonl", dropped.rows)
    write_json(out / "report.json", report, indent=2)
    write_manifest(out, rows)
    return report


def _wanted(domain: str, collection: str, skip: set[str]) -> list[Source]:
    table = {"math": sources.MATH, "code": sources.CODE, "gsm8k": sources.GSM8K}
    if collection == "authors":
        table |= sources.AUTHORS
    known = {source.name for source in table[domain]}
    if unknown := sorted(skip - known):
        raise UserError(f"--skip {unknown[0]}: no such source; {domain} has {', '.join(sorted(known))}")
    wanted = [source for source in table[domain] if source.name not in skip]
    if not any(source.split == "train" for source in wanted):
        raise UserError("--skip leaves no training data: leave one of the training sources in")
    return wanted


def _reader(domain: str, source: Source) -> Callable[[Mapping], Task]:
    if domain != "code":
        return math_task
    if source.data_source == "humanevalplus":
        from recipe.flowrl.sandbox.choose import gate

        with gate("bubblewrap", None, 1).slot() as runner:
            return partial(humaneval_task, runner=runner)
    return code_task


def _write(path: Path, domain: str, split: str, tasks: Iterable[Located]) -> int:
    rows = [
        prompt_row(
            found.source.data_source,
            "code" if domain == "code" else "math",
            found.task.prompt,
            found.task.ground_truth,
            index,
            split,
            tolerance=found.task.tolerance,
        )
        for index, found in enumerate(tasks)
    ]
    write_rows(path, rows)
    return len(rows)


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _say(report: Mapping[str, Any], out: Path) -> None:
    for source, reasons in report["dropped"].items():
        for reason, count in sorted(reasons.items()):
            print(f"{source}: {count} dropped: {reason}")
    removed = "removed from" if report["overlapping_rows_removed"] else "left in"
    print(f"overlap with the test sets: {sum(report['overlap'].values())} rows, {removed} the training data")
    for name, count in report["rows"].items():
        print(f"{out / name}: {count} rows")
    print(f"what was dropped, row by row: {out / 'dropped.jsonl'}")


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m recipe.flowrl.prepare_data", description=__doc__.splitlines()[0])
    parser.add_argument("domain", choices=("math", "code", "gsm8k"))
    parser.add_argument("--out", type=Path, required=True, help="directory for the prepared files")
    parser.add_argument("--source", type=Path, help="directory with the sources' files; nothing is downloaded then")
    parser.add_argument("--collection", choices=("original", "authors"), default="original", help="whose preparation")
    parser.add_argument("--skip", action="append", default=[], metavar="NAME", help="leave a source out (repeatable)")
    parser.add_argument("--keep-overlap", action="store_true", help="train also on problems that stand in a test set")
    options = parser.parse_args(arguments)
    try:
        if options.source is not None and not options.source.is_dir():
            raise UserError(f"--source {options.source} is no directory: give the one that holds the sources' folders")
        report = prepare(
            options.domain, options.out, options.source, options.skip, options.collection, options.keep_overlap
        )
        _say(report, options.out)
    except BaseException as error:
        return exit_status_of(error)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
