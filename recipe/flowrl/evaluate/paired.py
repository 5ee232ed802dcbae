"""Two evaluations on the same problems."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.foreign import read_text
from recipe.flowrl.evaluate.metrics import paired_difference
from recipe.flowrl.evaluate.protocol import DECISIVE


def load_summary(out: Path) -> dict[str, Any]:
    """The summary of the evaluation in ``out``.

    Raises:
        UserError: there is none.
    """
    path = out / "summary.json"
    try:
        summary = json.loads(read_text(path))
        if not isinstance(summary["benchmarks"], dict) or not isinstance(summary["protocol"], dict):
            raise ValueError("not a summary")
        return summary
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"against={out}: {path} can't be read ({error}): finish that evaluation first") from error


def compare(mine: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The difference in avg@n between two evaluations, benchmark by benchmark.

    Args:
        mine, other: their summaries.

    Returns:
        ``model``, the other's; ``protocol_differs``, what is not the same, as text; ``benchmarks``: for each that both
        have, ``problems`` in common and mine minus the other's ``value``, ``interval`` and ``p_value``.

    Raises:
        UserError: they have no problem in common.
    """
    theirs = other["benchmarks"]
    result = {}
    for name, found in mine["benchmarks"].items():
        both = [problem for problem in found["per_problem_correct"] if _count(theirs, name, problem) is not None]
        if both:
            rates = [found["per_problem_correct"][problem] / found["n"] for problem in both]
            others = [_count(theirs, name, problem) / theirs[name]["n"] for problem in both]
            difference = asdict(paired_difference(np.array(rates), np.array(others)))
            interval = [difference.pop("low"), difference.pop("high")]
            result[name] = {"problems": len(both), "interval": interval, **difference}
    if not result:
        raise UserError(
            "against: the two evaluations have no problem in common; the samples and grades of this one stay"
        )
    return {
        "model": other["protocol"]["model"],
        "protocol_differs": _differences(mine["protocol"], other["protocol"], result),
        "benchmarks": result,
    }


def _count(benchmarks: Mapping[str, Any], name: str, problem: str) -> int | None:
    return benchmarks.get(name, {}).get("per_problem_correct", {}).get(problem)


def _differences(mine: Mapping[str, Any], other: Mapping[str, Any], names: Mapping[str, Any]) -> list[str]:
    pairs = [(key, mine[key], other.get(key)) for key in (*DECISIVE, "grader")]
    files = [(f"file of {name}", *(p["benchmarks"][name]["sha256"][:12] for p in (mine, other))) for name in names]
    return [f"{key}: {a} here, {b} there" for key, a, b in [*pairs, *files] if a != b]
