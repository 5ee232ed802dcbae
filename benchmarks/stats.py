"""Medians with their spread, ratios of paired measurements with a confidence interval, and the order of runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np

RESAMPLES = 10_000


@dataclass(frozen=True)
class Summary:
    """A sample's median, with the quartiles as its spread."""

    median: float
    lower_quartile: float
    upper_quartile: float
    count: int


@dataclass(frozen=True)
class Ratio:
    """The median ratio of paired measurements, with a bootstrap confidence interval."""

    median: float
    low: float
    high: float
    confidence: float
    pairs: int


def summarize(sample: Sequence[float]) -> Summary:
    """Median and quartiles of ``sample``, in its unit.

    Raises:
        ValueError: the sample is empty.
    """
    if len(sample) == 0:
        raise ValueError("no measurement to summarize")
    lower, median, upper = np.quantile(np.asarray(sample, dtype=float), [0.25, 0.5, 0.75])
    return Summary(float(median), float(lower), float(upper), len(sample))


def paired_ratio(
    numerators: Sequence[float], denominators: Sequence[float], *, confidence: float = 0.95, seed: int = 0
) -> Ratio:
    """Median over pairs of numerator / denominator.

    Each pair was measured at about the same time, so what changes slowly (another load on the machine, its clock)
    divides out. The interval is the percentile bootstrap's over pairs (Efron and Tibshirani 1993, chapter 13).

    Raises:
        ValueError: no pair, a number of numerators other than that of denominators, or a measurement that isn't > 0.
    """
    if len(numerators) != len(denominators) or len(numerators) == 0:
        raise ValueError(f"pairs needed, got {len(numerators)} numerators and {len(denominators)} denominators")
    if min(*numerators, *denominators) <= 0:
        raise ValueError("every measurement of a ratio must be > 0")
    ratios = np.asarray(numerators, dtype=float) / np.asarray(denominators, dtype=float)
    draws = np.random.default_rng(seed).integers(len(ratios), size=(RESAMPLES, len(ratios)))
    medians = np.median(ratios[draws], axis=1)
    low, high = np.quantile(medians, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Ratio(float(np.median(ratios)), float(low), float(high), confidence, len(ratios))


def interleaved(first: str, second: str, blocks: int) -> list[str]:
    """``blocks`` times first, second, second, first: over a block a linear drift weighs on both alike."""
    return list(islice(cycle([first, second, second, first]), 4 * blocks))


def block_sums(order: Sequence[str], values: Sequence[float], name: str) -> list[float]:
    """Sum of ``name``'s two values in each block of four of an :func:`interleaved` order.

    Raises:
        ValueError: the order isn't made of whole blocks with ``name`` twice in each, or doesn't fit the values.
    """
    if len(order) != len(values) or len(order) % 4:
        raise ValueError(f"whole blocks of four needed, got {len(order)} names and {len(values)} values")
    sums = []
    for start in range(0, len(order), 4):
        of_name = [
            value for n, value in zip(order[start : start + 4], values[start : start + 4], strict=True) if n == name
        ]
        if len(of_name) != 2:
            raise ValueError(f"{name} is {len(of_name)} times in the block {order[start : start + 4]}, not twice")
        sums.append(sum(of_name))
    return sums
