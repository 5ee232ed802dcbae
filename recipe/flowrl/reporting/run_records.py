"""Reads a run directory: ``metrics.jsonl``, verl's validation dumps, the resolved config and the run's own record.

Only ``metrics.jsonl`` is required. Everything else is optional, and a part that cannot be read becomes a line in
``Run.notes`` instead of ending the report: a run that crashed is the one whose report is needed most.
"""

import io
import json
import math
import re
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from recipe.flowrl.common.foreign import opened, read_text, without_aliases
from recipe.flowrl.common.secrets import mask, masked
from recipe.flowrl.reporting import names

_MOST_STEPS, _LARGEST = 2**53, 1e100
_KINDS = {
    "experiment": str,
    "algo": str,
    "host": str,
    "ended": str,
    "exit_status": int,
    "attempts": int | list,
    "started": int | float | str,
    "finished": int | float | str,
}
"""What ``run.json`` holds under these names where it holds anything."""


@dataclass(frozen=True)
class Series:
    """One metric over training: ``steps`` (int, ascending) and ``values`` (float64, finite), both of shape ``(N,)``."""

    steps: np.ndarray
    values: np.ndarray

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def width(self) -> int:
        """How many points stand for "the start" and "the end": a tenth of the run, 1 to 5. One step alone is noise."""
        return min(5, max(1, len(self) // 10))

    @property
    def start(self) -> float:
        """Mean of the first ``width`` points."""
        return float(self.values[: self.width].mean())

    @property
    def end(self) -> float:
        """Mean of the last ``width`` points."""
        return float(self.values[-self.width :].mean())


class Metrics:
    """All metrics of a run, by step. Built from ``{step: {name: value}}``; a value that is not finite is kept apart."""

    def __init__(self, rows: dict[int, dict[str, float]]):
        self.steps = sorted(rows)
        by_name: dict[str, tuple[list[int], list[float]]] = {}
        self.not_finite: dict[str, list[int]] = {}
        for step in self.steps:
            for name, value in rows[step].items():
                if not math.isfinite(value):
                    self.not_finite.setdefault(name, []).append(step)
                    continue
                steps, values = by_name.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
        self._series = {name: Series(np.array(s), np.array(v, dtype=np.float64)) for name, (s, v) in by_name.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._series

    @property
    def names(self) -> list[str]:
        return sorted(self._series)

    def __getitem__(self, name: str) -> Series:
        return self._series[name]

    def match(self, pattern: str) -> dict[str, tuple[str, ...]]:
        """Names that fit ``pattern`` (see `names.match`), sorted."""
        return names.match(pattern, self.names)


@dataclass(frozen=True)
class Sample:
    """One generation of a validation dump.

    ``solution`` is the canonical form of a correct answer, empty for a wrong one, None where the reward function does
    not tell.
    """

    output: str
    score: float
    correct: bool
    solution: str | None


@dataclass
class Puzzle:
    """One prompt of a validation dump with all its samples. ``exist``: how many distinct solutions it has, if known."""

    prompt: str
    ground_truth: str
    exist: int | None
    samples: list[Sample] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str]:
        """What identifies the puzzle across validations (verl draws a new uid each time)."""
        return self.prompt, self.ground_truth

    @property
    def facts(self) -> dict[str, Any]:
        """The ground truth as a mapping, empty where it is not a JSON object."""
        return _facts(self.ground_truth)

    @property
    def found(self) -> int:
        """How many distinct solutions the samples hold."""
        return len({sample.solution for sample in self.samples if sample.correct and sample.solution})

    @property
    def solved(self) -> int:
        """How many samples are correct."""
        return sum(sample.correct for sample in self.samples)


@dataclass(frozen=True)
class Validation:
    """The generations of one validation: ``puzzles`` in the order of the dump."""

    step: int
    puzzles: list[Puzzle]

    @property
    def names_solutions(self) -> bool:
        """Whether the reward function tells solutions apart, so that distinct ones can be counted."""
        return any(s.solution is not None for p in self.puzzles for s in p.samples)


@dataclass(frozen=True)
class Run:
    """A run directory in memory. ``first`` and ``last`` are the first and the last validation, maybe the same one."""

    path: Path
    metrics: Metrics
    config_text: str
    config: dict[str, Any]
    record: dict[str, Any]
    base_policy: dict[str, Any]
    first: Validation | None
    last: Validation | None
    notes: list[str]

    @property
    def algo(self) -> str:
        """The algorithm by its name in ``configs/algo``."""
        if name := self.record.get("algo"):
            return str(name)
        if self.metrics.match("actor/flowrl/*"):
            return "flowrl"
        return str(self.setting("algorithm.adv_estimator") or "unknown")

    @property
    def asynchronous(self) -> bool:
        """Whether data may be of an earlier step's policy."""
        return self.setting("trainer.v1.trainer_mode") not in (None, "sync")

    def setting(self, dotted: str) -> Any:
        """A value of the resolved config, or None where the config does not have it."""
        node: Any = self.config
        for part in dotted.split("."):
            if not isinstance(node, dict) or part not in node:
                return None
            node = node[part]
        return node

    def when(self, key: str) -> datetime | None:
        """A time of ``run.json`` (ISO 8601 or seconds since the epoch), or None."""
        value = self.record.get(key)
        try:
            moment = datetime.fromtimestamp(value) if isinstance(value, int | float) else datetime.fromisoformat(value)
        except (TypeError, ValueError, OverflowError, OSError):
            return None
        return moment.astimezone()

    @property
    def duration(self) -> float | None:
        """Seconds from start to finish; without both times, the sum of the steps and validations."""
        started, finished = self.when("started"), self.when("finished")
        if started and finished:
            return (finished - started).total_seconds()
        timed = [name for name in (names.STEP_TIME, "timing_s/testing") if name in self.metrics]
        return sum(float(self.metrics[name].values.sum()) for name in timed) if timed else None


def load_run(run_dir: str | Path) -> Run:
    """Read ``run_dir``.

    Raises:
        ValueError: the directory does not exist, or its ``metrics.jsonl`` is missing or holds no step.
    """
    path = Path(run_dir)
    if not path.is_dir():
        raise ValueError(f"{path}: no such run directory; give the run_dir of a training run")
    notes: list[str] = []
    metrics = _read_metrics(path / "metrics.jsonl", notes)
    config_text, config = _read_config(path / "config.yaml", notes)
    dumps = sorted(
        (p for p in (path / "validation").glob("*.jsonl") if re.fullmatch(r"[0-9]{1,15}", p.stem)),
        key=lambda p: int(p.stem),
    )
    first = _read_validation(dumps[0], notes) if dumps else None
    last = _read_validation(dumps[-1], notes) if len(dumps) > 1 else first
    if not dumps:
        notes.append("No validation dump (validation/STEP.jsonl): no sample generations, no figures per puzzle.")
    for name, steps in metrics.not_finite.items():
        notes.append(f"{name} is not finite at step {_listed(steps)}; those points are left out.")
    if names.SKIPPED in metrics and (skipped := metrics[names.SKIPPED]).values.any():
        steps = skipped.steps[skipped.values > 0].tolist()
        notes.append(f"Updates were skipped at step {_listed(steps)}: their loss or gradient was not finite.")
    record, base_policy = (_read_object(path / name, notes) for name in ("run.json", "base_policy.json"))
    return Run(path, metrics, config_text, config, record, base_policy, first, last, notes)


def _listed(steps: list[int]) -> str:
    return ", ".join(map(str, steps[:8])) + (", …" if len(steps) > 8 else "")


def _json_lines(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The JSON objects of a file, one a line. A line that is none (a writer killed half-way) becomes a note."""
    rows, bad = [], []
    with io.TextIOWrapper(opened(path), encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            rows.append(row) if isinstance(row, dict) else bad.append(number)
    if bad:
        listed = ", ".join(map(str, bad[:8])) + (", …" if len(bad) > 8 else "")
        notes.append(f"{path.name}: line {listed} is not a JSON object and is left out.")
    return rows


def _read_metrics(path: Path, notes: list[str]) -> Metrics:
    """Merge the lines of each step, later ones winning.

    Merged, not replaced: a resumed run repeats steps in full, but also logs its initial validation under the step of
    the checkpoint, and that line must not erase the training metrics of the step.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a run writes it with its first step, so is {path.parent} a run_dir?")
    rows: dict[int, dict[str, float]] = {}
    unnamed = 0
    for row in _json_lines(path, notes):
        step = row.pop("step", None)
        row.pop("time", None)
        if type(step) is not int or not 0 <= step < _MOST_STEPS:
            unnamed += 1
            continue
        values = {k: math.nan if v is None else _float(v) for k, v in row.items() if v is None or _is_number(v)}
        rows.setdefault(step, {}).update(values)
    if unnamed:
        notes.append(f"{path.name}: {unnamed} lines without a step are left out.")
    if not any(rows.values()):
        raise ValueError(f'{path}: holds no step; expected lines such as {{"step": 1, "critic/score/mean": 0.3, …}}')
    return Metrics(rows)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _float(value: int | float) -> float:
    """NaN where it is too large to be drawn."""
    return float(value) if abs(value) < _LARGEST else math.nan


def _read_config(path: Path, notes: list[str]) -> tuple[str, dict[str, Any]]:
    if not path.is_file():
        notes.append("No config.yaml: model, data and settings are not shown.")
        return "", {}
    try:
        config = masked(yaml.safe_load(without_aliases(read_text(path, "replace"))))
        shown = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=1000)
    except (OSError, yaml.YAMLError, ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        notes.append(f"config.yaml cannot be parsed ({mask(reason)}): it isn't shown, since it may hold secrets.")
        return "", {}
    return shown, config if isinstance(config, dict) else {}


def _read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    """An optional JSON file that holds one object."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(read_text(path, "replace"))
    except (ValueError, RecursionError, OSError):
        value = None
    if not isinstance(value, dict):
        notes.append(f"{path.name} is not a JSON object and is left out.")
        return {}
    wrong = [name for name, kinds in _KINDS.items() if not isinstance(value.get(name), kinds | None)]
    if wrong:
        notes.append(f"{path.name}: {', '.join(wrong)} is not what a run writes, and is left out.")
    return masked({name: inner for name, inner in value.items() if name not in wrong})


def _read_validation(path: Path, notes: list[str]) -> Validation | None:
    """Group one of verl's dumps by puzzle. Of a multi-turn session only the last turn counts, as in verl's metrics."""
    final: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(_json_lines(path, notes)):
        if not isinstance(row.get("input"), str) or not isinstance(row.get("output"), str):
            notes.append(f"{path.name}: a row has no text under input and output; the dump is left out.")
            return None
        session = str(row.get("uid", number)).rpartition("_")[0] or str(number)
        final[session] = row
    puzzles: dict[tuple[str, str], Puzzle] = {}
    for row in final.values():
        truth = row.get("gts")
        truth = truth if isinstance(truth, str) else json.dumps(truth, ensure_ascii=False)
        puzzle = Puzzle(row["input"], truth, exist=_existing(row.get("n_solutions"), _facts(truth).get("n_solutions")))
        puzzles.setdefault(puzzle.key, puzzle).samples.append(_sample(row))
    return Validation(int(path.stem), list(puzzles.values())) if puzzles else None


def _facts(ground_truth: str) -> dict[str, Any]:
    try:
        value = json.loads(ground_truth)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(value, dict) or not isinstance(value.get("numbers", []), list):
        return {}
    return value


def _existing(*counts: Any) -> int | None:
    """The first of ``counts`` that is one: what the reward function says, else what the ground truth says."""
    return next((int(count) for count in counts if _is_number(count) and 0 < count < _MOST_STEPS), None)


def _sample(row: dict[str, Any]) -> Sample:
    score = _float(row["score"]) if _is_number(row.get("score")) else math.nan
    accuracy = row.get("acc")
    # Without an accuracy from the reward function, only full marks count as correct.
    correct = accuracy > 0 if _is_number(accuracy) else score >= 1
    solution = row.get("solution")
    return Sample(row["output"], score, bool(correct), None if solution is None else str(solution))
