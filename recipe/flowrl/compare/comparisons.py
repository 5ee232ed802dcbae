"""From the counts of an evaluation to measures with intervals: of a system, and of one against another."""

from typing import Any

import numpy as np

from recipe.flowrl.common.statistics import bootstrap, pass_at_k


def summary(runs: list[dict[str, Any]], temperature: float, samples: int) -> dict[str, tuple[float, float, float]]:
    """Each measure of a system with its interval.

    Args:
        runs: what :func:`evaluate` returned, one for each seed.
        temperature: of the samples.
        samples: of each puzzle.
    """
    return {name: bootstrap(values) for name, values in _measures(runs, temperature, samples).items()}


def means(runs: list[dict[str, Any]], temperature: float, samples: int) -> dict[str, float]:
    """The values of :func:`summary` without their intervals, which cost a bootstrap."""
    return {name: float(values.mean()) for name, values in _measures(runs, temperature, samples).items()}


def differences(
    runs: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]], temperature: float, samples: int
) -> dict[str, tuple[float, float, float]]:
    """``runs`` minus ``other`` in each measure, with its interval, paired by puzzle and by run.

    Args:
        runs, other: seed -> a run of the study. Those with the same seed from the same base policy make a pair; no
            pair gives nothing.
        temperature: of the samples.
        samples: of each puzzle.
    """
    seeds = pairs(runs, other)
    if not seeds:
        return {}
    mine, theirs = (
        _measures([system[seed]["evaluation"] for seed in seeds], temperature, samples) for system in (runs, other)
    )
    return {name: bootstrap(mine[name] - theirs[name]) for name in mine}


def pairs(runs: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> list[str]:
    """The seeds that both systems have a run of from the same base policy."""
    return [seed for seed, run in runs.items() if seed in other and run["base_policy"] == other[seed]["base_policy"]]


def run_to_run(runs: dict[str, dict[str, dict[str, Any]]], temperature: float, samples: int) -> dict[str, float]:
    """Standard deviation of a run's mean over puzzles between seeds, in each measure, pooled over all systems.

    What a difference between two systems has to be set against: intervals from few seeds hold too little of it.

    Args:
        runs: system -> seed -> a run of the study. Compared are a system's runs from the same base policy; empty if
            there are nowhere two.
        temperature: of the samples.
        samples: of each puzzle.
    """
    alike: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for system, seeds in runs.items():
        for run in seeds.values():
            alike.setdefault((system, run["base_policy"]), []).append(run["evaluation"])
    squares: dict[str, float] = {}
    degrees = 0
    for evaluations in alike.values():
        if len(evaluations) > 1:
            degrees += len(evaluations) - 1
            for name, values in _measures(evaluations, temperature, samples).items():
                means = values.mean(-1)
                squares[name] = squares.get(name, 0.0) + float(((means - means.mean()) ** 2).sum())
    return {name: (sum_of_squares / degrees) ** 0.5 for name, sum_of_squares in squares.items()}


def _measures(runs: list[dict[str, Any]], temperature: float, samples: int) -> dict[str, np.ndarray]:
    """(seeds, puzzles) of each measure."""
    exist = np.array(runs[0]["exist"], dtype=float)
    columns = {
        name: np.array([run[str(temperature)][name] for run in runs], dtype=float) for name in runs[0][str(temperature)]
    }
    measures = {
        f"avg@{samples}": columns["correct"] / samples,
        f"pass@{samples}": pass_at_k(columns["correct"], samples, samples),
        "distinct": columns["distinct"],
        "coverage": columns["distinct"] / exist,
    }
    return measures | {name: columns[name] for name in ("entropy", "kl_to_base") if name in columns}
