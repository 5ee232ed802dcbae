"""What a policy's answers to puzzles are worth, from the probabilities of all their solutions: no sampling error."""

from collections.abc import Sequence
from typing import Any

import numpy as np

ATTEMPTS = (1, 4, 16, 64, 256)
"""k of pass@k."""
DISTINCT_IN = 64
"""Answers among which different solutions are counted."""


def measures(
    log_probs: np.ndarray, reference: np.ndarray, puzzle: np.ndarray, lengths: np.ndarray
) -> dict[str, np.ndarray]:
    """Each measure of each of P puzzles.

    Args:
        log_probs: (N,) log-probability of each listed solution, in nats.
        reference: (N,) under the reference.
        puzzle: (N,) whose solution it is, 0..P-1; each puzzle has at least one.
        lengths: (N,) of the solutions, in tokens.

    Returns:
        (P,) of each: ``right``, the probability of a listed solution; ``pass@k``, of one among k answers;
        ``effective``, exp of the entropy over the solutions of a right answer; ``distinct@64``, the expected number of
        different solutions among 64 answers; ``kl_right``, KL(pi(.|right) || pi_ref(.|right)) in nats; ``length``, the
        mean length of a right answer.
    """
    puzzles = int(puzzle.max()) + 1
    probability = np.exp(log_probs)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(puzzle, values, puzzles)

    def among_right(values: np.ndarray) -> np.ndarray:
        """Log-probabilities given that the answer is right; safe where all of a puzzle's underflow."""
        highest = np.full(puzzles, -np.inf)
        np.maximum.at(highest, puzzle, values)
        return values - (highest + np.log(total(np.exp(values - highest[puzzle]))))[puzzle]

    conditional, reference_conditional = among_right(log_probs), among_right(reference)
    share = np.exp(conditional)
    right = np.minimum(total(probability), 1.0)
    found = {"right": right}
    found |= {f"pass@{k}": -np.expm1(k * np.log1p(-np.minimum(right, 1 - 1e-12))) for k in ATTEMPTS[1:]}
    found["effective"] = np.exp(-total(share * conditional))
    found[f"distinct@{DISTINCT_IN}"] = total(-np.expm1(DISTINCT_IN * np.log1p(-np.minimum(probability, 1 - 1e-12))))
    found["kl_right"] = total(share * (conditional - reference_conditional))
    found["length"] = total(share * lengths)
    return found


def means(
    log_probs: np.ndarray,
    reference: np.ndarray,
    puzzle: np.ndarray,
    lengths: np.ndarray,
    temperatures: Sequence[float],
) -> dict[str, dict[str, float]]:
    """The means over puzzles of :func:`measures`, for each sampling temperature, as text.

    Args:
        log_probs: (len(temperatures), N).
        reference: (N,), at temperature 1.
        puzzle, lengths: (N,).
        temperatures: of ``log_probs``.
    """
    found = {
        f"{temperature:g}": measures(row, reference, puzzle, lengths)
        for temperature, row in zip(temperatures, log_probs, strict=True)
    }
    return {temperature: {name: rounded(of.mean()) for name, of in row.items()} for temperature, row in found.items()}


def rounded(value: Any) -> float:
    """To five significant digits, which no difference here is smaller than."""
    return float(f"{float(value):.5g}")
