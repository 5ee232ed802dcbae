"""The problems of each benchmark, from the files that ``prepare`` writes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recipe.flowrl.common import rules
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.tasks import fields
from recipe.flowrl.tasks.manifest import check_file, sha256
from recipe.flowrl.tasks.rows import read_rows, shown
from recipe.flowrl.tasks.task import Malformed, is_unicode

_COMMANDS = {
    "math": "python -m recipe.flowrl prepare math out={data}",
    "code": "python -m recipe.flowrl prepare code out={data}",
    "gsm8k": "python -m recipe.flowrl prepare gsm8k out={data}",
    "countdown": "python -m recipe.flowrl prepare countdown",
}


@dataclass(frozen=True)
class Problem:
    """One problem: ``id`` as ``benchmark/index``, the user's turn, and what the grader needs."""

    id: str
    prompt: str
    ground_truth: str
    extra_info: dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """``problems`` of the file with this ``sha256``, in its order, without its ``repeated`` rows.

    A problem that counts several times would make the intervals over problems too narrow.
    """

    name: str
    sha256: str
    problems: tuple[Problem, ...]
    repeated: int = 0


def place(problem: str) -> int:
    """The index in the id of a problem: where it stands in its file."""
    return int(problem.rpartition("/")[2])


def load(suite: str, names: Sequence[str], data: Path, limit: int | None = None) -> list[Benchmark]:
    """The benchmarks ``names`` of ``suite``, from the directory ``data``; ``limit`` problems of each, from the first.

    Raises:
        UserError: a file is missing, damaged or not in verl's schema.
    """
    paths = {name: data / ("test.parquet" if suite == "countdown" else f"test_{name}.parquet") for name in names}
    if missing := [name for name, path in paths.items() if not path.is_file()]:
        there = ",".join(name for name in names if name not in missing)
        raise UserError(
            f"{paths[missing[0]]} is not there: make it with {_COMMANDS[suite].format(data=data)}, name its directory "
            f"with data=" + (f", or leave it out with benchmarks={there}" if there else "")
        )
    return [_read(name, path, limit) for name, path in paths.items()]


def _read(name: str, path: Path, limit: int | None) -> Benchmark:
    check_file(path)
    first: dict[str, tuple[int, Problem]] = {}
    ids: dict[str, int] = {}
    repeated = 0
    try:
        for index, row in read_rows(path):
            problem = _problem(name, row, f"{path}, row {index}")
            if problem.id in ids:
                raise UserError(f"{path}, row {index}: the same index as row {ids[problem.id]}: prepare it again")
            ids[problem.id] = index
            before, same = first.setdefault(" ".join(problem.prompt.split()), (index, problem))
            if same.ground_truth != problem.ground_truth:
                raise UserError(
                    f"{path}, row {index}: the problem of row {before} with another reference: prepare it again, which "
                    "leaves both out"
                )
            repeated += before != index
    except Malformed as error:
        raise UserError(f"{error}: prepare it again") from error
    if not first:
        raise UserError(f"{path}: it is empty: prepare it again")
    return Benchmark(name, sha256(path), tuple(problem for _, problem in first.values())[:limit], repeated)


def _problem(name: str, row: Any, where: str) -> Problem:
    """The problem of a row in verl's schema. Raises Malformed, with ``where`` and the field, if it is in another."""
    try:
        if isinstance(row, Malformed):
            raise row
        extra = row.get("extra_info")
        if not isinstance(extra, dict):
            raise Malformed(f"extra_info: {shown(repr(extra)[:60])}, not an object with the row's index")
        index, tolerance = extra.get("index"), extra.get("tolerance")
        if isinstance(index, bool) or not re.fullmatch(r"\d+", str(index)):
            raise Malformed(f"extra_info.index: {shown(repr(index)[:60])}, not a number from 0")
        if tolerance is not None and not rules.NOT_NEGATIVE.accepts(tolerance):
            raise Malformed(f"extra_info.tolerance: {shown(repr(tolerance)[:60])}, not a number from 0")
        prompt = row.get("prompt")
        if not isinstance(prompt, list) or not (asked := fields.user_turn(prompt, "prompt")):
            raise Malformed(f"prompt: {shown(repr(prompt)[:60])}, not a turn of the user with text")
        truth = fields.ground_truth(row)
        if not isinstance(truth, str) or not truth.strip():
            raise Malformed(f"reward_model.ground_truth: {shown(repr(truth)[:60])}, not text")
        if not is_unicode(asked) or not is_unicode(truth):
            raise Malformed("a lone surrogate, which is no Unicode")
    except Malformed as error:
        raise Malformed(f"{where}: not in verl's schema: {error}") from error
    # Whatever the file says: all tests are run, and mathematics is compared as such.
    return Problem(f"{name}/{int(str(index))}", asked, truth, extra | {"split": "test"})
