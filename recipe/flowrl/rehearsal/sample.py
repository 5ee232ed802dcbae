"""A few problems of our own in place of the paper's data.

They are prepared as that is, by :mod:`recipe.flowrl.prepare.public_sets`.

The rehearsal's policy is right about some of them: a digit answers the mathematics, and ``print(input())``, a digit or
the host's name, which is the sandbox's, the programming.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from recipe.flowrl.common import cache
from recipe.flowrl.common.files import write_text
from recipe.flowrl.prepare.public_sets import prepare
from recipe.flowrl.tasks.parquet import prompt_row, write_rows
from recipe.flowrl.tasks.public import sources

VERSION = 1
"""Raised with every change that makes other files; part of the cache's key."""

_READ = {"math": ("dapo_math_17k", "aime24", "aime25"), "code": ("primeintellect", "livecodebench")}
_THINGS = "apples boats candles drums eggs flags goats hats inks jars keys lamps maps nails owls pens".split()


@dataclass(frozen=True)
class Sample:
    """A data set to make; ``domain``: ``math`` or ``code``."""

    domain: str

    @property
    def name(self) -> str:
        """Of its directory in the cache."""
        return f"rehearsal_{self.domain}"

    def ensure(self, directory: Path, say: Callable[[str], None]) -> None:
        """Make the files in ``directory`` (a link) unless they are there."""
        cache.ensure(directory, cache.fingerprint(self.domain, VERSION), partial(_prepare, self.domain))


def _prepare(domain: str, directory: Path) -> None:
    table = sources.MATH if domain == "math" else sources.CODE
    skip = [source.name for source in table if source.name not in _READ[domain]]
    with TemporaryDirectory() as scratch:
        (_write_math if domain == "math" else _write_code)(Path(scratch))
        prepare(domain, directory, Path(scratch), skip, "original", keep_overlap=False)


def _write_math(root: Path) -> None:
    train = [
        (f"A box holds {n + 3} {thing}. You take out {n}. How many {thing} are left?", 3) for n, thing in _numbered()
    ]
    train += [(f"Compute ${n + 12} - {n + 5}$, a matter of {thing}.", 7) for n, thing in _numbered()]
    train += [
        (f"{thing.title()} come in packs of {n + 2}. How many are in two packs?", 2 * n + 4) for n, thing in _numbered()
    ]
    rows = [prompt_row("", "math", text, str(answer), index, "train") for index, (text, answer) in enumerate(train)]
    write_rows(root / "dapo_math_17k" / "train.parquet", rows)
    for name, offset in (("aime24", 1), ("aime25", 5)):
        tests = [(f"What is the remainder of ${n * 10 + offset}$ divided by $10$?", offset) for n in range(1, 9)]
        _write_lines(root / name / "test.jsonl", [{"problem": text, "answer": str(answer)} for text, answer in tests])


def _write_code(root: Path) -> None:
    train = [(f"A line names some {thing}. Print the line.", [f"{thing} {n}", thing]) for n, thing in _numbered()]
    tasks = [_task(text, [(line, line) for line in lines]) for text, lines in train]
    tasks += [_task(f"Print 1 if {n} {t} are more than none, else 0.", [(t, "1")]) for n, t in _numbered()]
    tasks += [
        _task(f"Two numbers of {t} on a line. Print their sum.", [(f"{n} 2", str(n + 2))]) for n, t in _numbered()
    ]
    # Only a program in the sandbox is right.
    tasks += [_task(f"Where do the {t} run? Print the host's name.", [("", "sandbox")]) for _, t in _numbered()]
    write_rows(root / "primeintellect" / "train-0.parquet", tasks)
    tests = [
        _task(f"Repeat after me, {thing} number {n}: print the input.", [(thing, thing)]) for n, thing in _numbered()
    ]
    _write_lines(root / "livecodebench" / "lcbv5" / "test-0.jsonl", tests)


def _task(text: str, cases: list[tuple[str, str]]) -> dict[str, str]:
    return {"problem": text, "tests": json.dumps([{"input": stdin, "output": stdout} for stdin, stdout in cases])}


def _numbered() -> list[tuple[int, str]]:
    return list(enumerate(_THINGS, start=1))


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
