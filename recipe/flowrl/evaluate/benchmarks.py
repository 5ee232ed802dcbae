"""The problems of each benchmark, from the files that ``prepare_data`` and ``prepare`` write."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recipe.flowrl.data.manifest import check_file, sha256
from recipe.flowrl.errors import UserError

_COMMANDS = {
    "math": "python -m recipe.flowrl.prepare_data math --out {data}",
    "code": "python -m recipe.flowrl.prepare_data code --out {data}",
    "gsm8k": "python -m recipe.flowrl.prepare_data gsm8k --out {data}",
    "countdown": "python -m recipe.flowrl.prepare countdown",
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
    """``problems`` of the file with this ``sha256``, in its order."""

    name: str
    sha256: str
    problems: tuple[Problem, ...]


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
    try:
        rows = pq.read_table(path).to_pylist()
        problems = tuple(
            Problem(
                f"{name}/{int(row['extra_info']['index'])}",
                next(turn["content"] for turn in row["prompt"] if turn["role"] == "user"),
                row["reward_model"]["ground_truth"],
                # Whatever the file says: all tests are run, and mathematics is compared as such.
                row["extra_info"] | {"split": "test"},
            )
            for row in rows[:limit]
        )
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, StopIteration) as error:
        raise UserError(
            f"{path} is not in verl's schema ({type(error).__name__}: {error}): prepare it again"
        ) from error
    if not problems or len({problem.id for problem in problems}) < len(problems):
        raise UserError(f"{path}: {'two rows have the same index' if problems else 'it is empty'}: prepare it again")
    return Benchmark(name, sha256(path), problems)
