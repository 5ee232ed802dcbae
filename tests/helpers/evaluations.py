"""Writes evaluation directories as ``recipe.flowrl.evaluate`` leaves them, for tests of what reads them."""

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recipe.flowrl.common.files import write_json
from recipe.flowrl.common.statistics import bootstrap, pass_at_k, powers_of_two

Answer = tuple[str, bool, str | None]
"""Response, whether it is right, the answer found in it."""

PROTOCOL = {
    "model": "model",
    "suite": "math",
    "n": 16,
    "temperature": 0.6,
    "top_p": 0.95,
    "max_tokens": 8192,
    "seed": 0,
    "grader": "grader 1",
    "engine": "none",
    "date": "2026-01-01",
}


def write_evaluation(
    directory: Path, benchmarks: Mapping[str, Mapping[str, Sequence[Answer]]], **protocol: Any
) -> Path:
    """``benchmarks``: name -> problem -> its samples, equally many each; ``protocol`` overrides :data:`PROTOCOL`."""
    summaries = {}
    for name, problems in benchmarks.items():
        samples, grades = [], []
        for problem, answers in problems.items():
            for number, (text, correct, answer) in enumerate(answers):
                key = {"problem": problem, "sample": number}
                samples.append(
                    {
                        **key,
                        "prompt": f"Solve {problem}.",
                        "response": text,
                        "finish_reason": "stop",
                        "tokens": len(text),
                    }
                )
                grades.append(
                    {**key, "correct": correct, "answer": answer, "extracted": answer is not None, "timed_out": False}
                )
        _write_lines(directory / name / "samples.jsonl.gz", samples)
        _write_lines(directory / name / "grades.jsonl.gz", grades)
        correct = {problem: sum(right for _, right, _ in answers) for problem, answers in problems.items()}
        summaries[name] = benchmark_summary(correct, len(next(iter(problems.values()))))
    n = next(iter(summaries.values()))["n"]
    facts = PROTOCOL | {"n": n, "benchmarks": {name: f"sha256 of {name}" for name in benchmarks}} | protocol
    write_json(directory / "protocol.json", facts)
    write_json(directory / "summary.json", {"protocol": facts, "benchmarks": summaries})
    return directory


def benchmark_summary(correct: Mapping[str, int], n: int, **more: Any) -> dict[str, Any]:
    """The summary of a benchmark with these right answers of ``n``."""
    counts = np.array(list(correct.values()))
    value, low, high = bootstrap(counts[None] / n)
    passed = {str(k): bootstrap(pass_at_k(counts, n, k)[None]) for k in powers_of_two(n)}
    return {
        "problems": len(correct),
        "n": n,
        "avg_at_n": {"value": value, "stderr": 0.0, "interval": [low, high]},
        "pass_at_k": {k: {"value": at[0], "interval": list(at[1:])} for k, at in passed.items()},
        "maj_at_n": {"value": value, "interval": [low, high]},
        "extraction_failed": 0.02,
        "truncated": 0.1,
        "mean_tokens": 1000.0,
        "per_problem_correct": dict(correct),
    } | more


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
