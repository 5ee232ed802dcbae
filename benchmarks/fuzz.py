"""Feed what reads foreign text with text that nobody wrote: ``python -m benchmarks.fuzz [--seconds 20] [--out FILE]``.

Hypothesis makes responses, programs, run directories and texts with secrets, out of pieces that the readers know and
of any others, and keeps those that take new ways. A finding is an exception that a reader doesn't announce, or an input
that takes longer than :data:`SLOW_S`. Each reader gets the same time. Exit status 1 if there is a finding.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks.machine import describe
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.files import write_json
from recipe.flowrl.common.secrets import mask
from recipe.flowrl.evaluate.records import Records
from recipe.flowrl.reporting.run_report import write_report
from recipe.flowrl.run.status import status
from recipe.flowrl.tasks.code import reward as code_reward
from recipe.flowrl.tasks.math.answers import final_answer

SLOW_S = 2.0
"""Seconds that no input of these sizes may take."""

_PIECES = [
    "\\boxed{",
    "}",
    "{",
    "answer",
    "Answer:",
    "the answer is ",
    "**",
    "$",
    "\\[",
    "\\]",
    "```python\n",
    "```",
    "\n",
]
_PIECES += [
    "    ",
    "\t",
    "```py",
    "~~~",
    "<answer>",
    "</answer>",
    "\u2028",
    "\x00",
    "\ud800",
    "api_key",
    "=",
    ": ",
    "://",
    "@",
]
_REPEATED = st.tuples(st.sampled_from(_PIECES), st.integers(1, 4000)).map(lambda both: both[0] * both[1])
TEXT = st.lists(st.one_of(_REPEATED, st.sampled_from(_PIECES), st.text(max_size=30)), max_size=20).map("".join)

_NAMES = [
    "step",
    "time",
    "event",
    "name",
    "total",
    "metrics",
    "text",
    "started",
    "finished",
    "launched",
    "attempts",
    "pid",
]
_NAMES += [
    "exit_status",
    "host",
    "algo",
    "experiment",
    "ended",
    "previous_end",
    "slurm_job",
    "critic/score/mean",
    "input",
]
_NAMES += [
    "timing_s/step",
    "output",
    "gts",
    "score",
    "acc",
    "uid",
    "n_solutions",
    "solution",
    "numbers",
    "target",
    "problem",
]
_NAMES += [
    "trainer",
    "run_dir",
    "default_local_dir",
    "data",
    "train_files",
    "val-core/x/acc/mean@2",
    "train_batch_size",
]
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["phase", "step", "message", "2026-01-01", "3", '{"numbers": 3, "target": 1}', "\x1b[2J"]),
)
JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=8),
    max_leaves=12,
)
OBJECT = st.dictionaries(st.sampled_from(_NAMES), JSON, max_size=14)
_METRIC = st.fixed_dictionaries(
    {"step": st.integers(0, 5), "critic/score/mean": _SCALARS}, optional={"timing_s/step": _SCALARS}
)
_ROW = st.fixed_dictionaries(
    {"input": st.text(max_size=5), "output": st.text(max_size=5)},
    optional={name: JSON for name in ("gts", "score", "acc", "uid", "n_solutions", "solution")},
)


def _file(lines: st.SearchStrategy[list[Any]]) -> st.SearchStrategy[str]:
    """Lines of JSON, maybe cut somewhere."""
    text = lines.map(lambda values: "".join(json.dumps(value) + "\n" for value in values))
    return st.tuples(text, st.integers(0, 30)).map(lambda both: both[0][: len(both[0]) - both[1]])


RUN = st.fixed_dictionaries(
    {},
    optional={
        "run.json": _file(st.lists(OBJECT | JSON, min_size=1, max_size=1)),
        "metrics.jsonl": _file(st.lists(_METRIC | OBJECT | JSON, min_size=1, max_size=5)),
        "events.jsonl": _file(st.lists(OBJECT | JSON, max_size=5)),
        "validation/1.jsonl": _file(st.lists(_ROW | OBJECT, min_size=1, max_size=4)),
        "base_policy.json": _file(st.lists(OBJECT | JSON, min_size=1, max_size=1)),
        "config.yaml": _file(st.lists(OBJECT | JSON, min_size=1, max_size=1)) | TEXT,
        "checkpoints/latest_checkpointed_iteration.txt": st.text(max_size=8),
    },
)


@dataclass
class Outcome:
    """What a reader made of its inputs. ``findings``: kind of failure -> how often, and the shortest input."""

    inputs: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def take(self, read: Callable[[Any], None], value: Any, announced: tuple[type[Exception], ...]) -> None:
        """Read one input."""
        started, kind = time.perf_counter(), None
        try:
            read(value)
        except announced:
            pass
        except Exception as error:
            frame = error.__traceback__
            while frame.tb_next:
                frame = frame.tb_next
            kind = f"{type(error).__name__} at {Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}"
        took = time.perf_counter() - started
        self.inputs, self.slowest = self.inputs + 1, max(self.slowest, took)
        if kind is None and took > SLOW_S:
            kind = "slow"
        if kind:
            found = self.findings.setdefault(kind, {"times": 0, "input": repr(value)})
            found["times"] += 1
            found["input"] = min(found["input"], repr(value), key=len)[:2000]


def _in_directory(files: dict[str, str], read: Callable[[Path], Any]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in files.items():
            path = Path(scratch, name)
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8", errors="surrogatepass")
        read(Path(scratch))


def _records(text: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "records")
        path.write_bytes(text.encode(errors="replace"))
        Records(path)


READERS: dict[str, tuple[Callable[[Any], Any], st.SearchStrategy, tuple[type[Exception], ...]]] = {
    "answer extraction": (final_answer, TEXT, ()),
    "program extraction": (code_reward.last_program, TEXT, ()),
    "masking of secrets": (mask, TEXT, ()),
    "status": (lambda files: _in_directory(files, lambda run: status(run, 1e9)), RUN, (UserError,)),
    "report": (lambda files: _in_directory(files, write_report), RUN, (ValueError,)),
    "kept samples": (_records, TEXT, (UserError,)),
}
"""Reader -> what it is called with, its inputs, and the errors by which it refuses one."""


def fuzz(name: str, seconds: float) -> Outcome:
    """Give ``READERS[name]`` inputs for so many seconds, and one at least."""
    read, inputs, announced = READERS[name]
    outcome, started = Outcome(), time.perf_counter()
    seed = 0
    while (elapsed := time.perf_counter() - started) < seconds or not outcome.inputs:
        seed += 1

        @settings(
            max_examples=50,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(value=inputs)
        def one(value: Any) -> None:
            if time.perf_counter() - started < seconds or not outcome.inputs:
                outcome.take(read, value, announced)

        one()
    outcome.seconds = round(elapsed, 1)
    return outcome


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="for each reader")
    parser.add_argument("--out", type=Path, help="a JSON file with the figures")
    options = parser.parse_args(arguments)
    results = {}
    for name in READERS:
        outcome = fuzz(name, options.seconds)
        results[name] = {**vars(outcome), "slowest": math.ceil(outcome.slowest * 1000) / 1000}
        print(f"{name:<20} {outcome.inputs:>7} inputs, {outcome.seconds:.0f} s, {len(outcome.findings)} findings")
        for kind, found in outcome.findings.items():
            print(f"    {kind}, {found['times']} times: {found['input'][:200]}")
    if options.out:
        write_json(options.out, {"machine": describe(), "readers": results}, indent=1)
    return int(any(result["findings"] for result in results.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
