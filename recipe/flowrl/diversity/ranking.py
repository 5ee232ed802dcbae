"""How the measures rank systems and problems, against the judge and one another.

Kendall's tau-b, with the sign turned for measures that fall with diversity: over the systems, of their means on a
benchmark; and over problems, within each system, then averaged over the systems, with a bootstrap interval over
problems.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.files import write_json
from recipe.flowrl.diversity.evaluations import read_json
from recipe.flowrl.diversity.measures import JUDGE, MEASURES
from recipe.flowrl.diversity.texts import MISSING

RESAMPLES = 400
FEWEST_PROBLEMS = 3
Scores = dict[str, dict[str, float]]
"""Measure -> problem -> value, more being more diverse."""


def rank_all(evaluations: Sequence[Path], population: str, out: Path | None) -> None:
    """Print how the measures rank ``evaluations``, and write it into ``out`` as JSON if there is one.

    Raises:
        UserError: an evaluation hasn't been measured, or they have no benchmark in common.
    """
    hint = "python -m recipe.flowrl diversity makes it"
    found = rank({str(path): read_json(path / "diversity.json", hint) for path in evaluations}, population)
    if not found:
        raise UserError("the evaluations have no benchmark in common")
    if out is not None:
        write_json(out, found, indent=1)
    print("\n".join(_lines(found)))


def rank(results: Mapping[str, Mapping[str, Any]], population: str) -> dict[str, list[dict[str, Any]]]:
    """For each benchmark that all systems have, an entry for each pair of measures.

    Args:
        results: system -> what ``diversity.json`` holds.
        population: whose answers.

    Returns:
        Benchmark -> entries ``{"a", "b", "systems": {"tau", "count"}, "problems": {"tau", "interval", "count"}}``; a
        tau is None where it isn't defined: fewer than two systems or three problems, or a measure that never changes.
    """
    shared = set.intersection(*(set(result["benchmarks"]) for result in results.values()))
    found = {}
    for benchmark in sorted(shared):
        systems = [_scores(result["benchmarks"][benchmark], population) for result in results.values()]
        names = [name for name in (JUDGE, *MEASURES) if all(name in scores for scores in systems)]
        found[benchmark] = [
            {"a": a, "b": b, "systems": over_systems(systems, a, b), "problems": over_problems(systems, a, b)}
            for a, b in combinations(names, 2)
        ]
    return found


def over_systems(systems: Sequence[Scores], a: str, b: str) -> dict[str, Any]:
    """tau-b of two measures' means over the systems, each mean on the problems that every system has both for."""
    common = sorted(set.intersection(*(scores[a].keys() & scores[b].keys() for scores in systems)))
    if not common:
        return {"tau": None, "count": len(systems)}
    means = [[float(np.mean([scores[name][p] for p in common])) for scores in systems] for name in (a, b)]
    return {"tau": kendall_tau(*means), "count": len(systems)}


def over_problems(systems: Sequence[Scores], a: str, b: str, seed: int = 0) -> dict[str, Any]:
    """Mean over systems of tau-b over a system's problems, and its 95% interval, resampling the problems."""
    columns = []
    for scores in systems:
        problems = sorted(scores[a].keys() & scores[b].keys())
        columns.append(np.array([[scores[name][p] for p in problems] for name in (a, b)]))
    count = min(column.shape[-1] for column in columns)
    taus = [kendall_tau(*column) for column in columns] if count >= FEWEST_PROBLEMS else []
    defined = [tau for tau in taus if tau is not None]
    if not defined:
        return {"tau": None, "interval": None, "count": count}
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        again = [kendall_tau(*column[:, rng.integers(column.shape[1], size=column.shape[1])]) for column in columns]
        if some := [tau for tau in again if tau is not None]:
            drawn.append(np.mean(some))
    return {"tau": float(np.mean(defined)), "interval": np.quantile(drawn, [0.025, 0.975]).tolist(), "count": count}


def kendall_tau(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Kendall's tau-b; None where it isn't defined."""
    try:
        from scipy.stats import kendalltau
    except ImportError:
        raise UserError(MISSING.format("scipy")) from None
    if len(x) < 2 or not np.isfinite([x, y]).all():
        return None
    tau = float(kendalltau(x, y).statistic)
    return tau if np.isfinite(tau) else None


def _scores(benchmark: Mapping[str, Any], population: str) -> Scores:
    """Each measure's value of each problem at two draws: where most problems have one; the judge's mean score."""
    at_two = {name: by_draws.get("2", {}) for name, by_draws in benchmark["values"][population].items()}
    scores = {
        name: {problem: MEASURES[name].sign * value for problem, value in values.items()}
        for name, values in at_two.items()
    }
    judged = benchmark.get("judge", {}).get("populations", {}).get(population, {}).get("scores", {})
    if judged:
        scores[JUDGE] = {problem: float(np.mean(given)) for problem, given in judged.items()}
    return scores


def _lines(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    rows = []
    for benchmark, entries in found.items():
        rows.append(f"{benchmark}: Kendall's tau-b over systems, and over problems")
        for entry in entries:
            problems = entry["problems"]
            interval = "" if problems["tau"] is None else " [{:+.2f}, {:+.2f}]".format(*problems["interval"])
            rows.append(
                f"  {entry['a']:<16} {entry['b']:<16} {_tau(entry['systems']['tau'])} ({entry['systems']['count']})"
                f"   {_tau(problems['tau'])}{interval} ({problems['count']})"
            )
        if not any(entry["a"] == JUDGE for entry in entries):
            rows.append("  no judge's scores here")
    return rows


def _tau(value: float | None) -> str:
    return "    –" if value is None else f"{value:+.2f}"
