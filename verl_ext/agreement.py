"""Whether log-probs of the same tokens, computed in two ways, agree within what the precision allows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

HIGH = 0.95
"""The quantile of the differences that is looked at beside their mean. In bfloat16 the largest of them says nothing."""


@dataclass(frozen=True)
class Tolerance:
    """Nats a token by which log-probs may differ: on average, and at the quantile :data:`HIGH`."""

    mean: float
    high: float


TOLERANCES = {
    "fp8": Tolerance(0.3, 1.5),
    "bfloat16": Tolerance(0.1, 0.5),
    "float16": Tolerance(0.02, 0.1),
    "float32": Tolerance(1e-3, 5e-3),
}
"""Precision, the coarsest first -> what it allows at a temperature of 1.

A logit of some tens in bfloat16, of eight bits, is off by up to 0.06; engines that agree are 0.01 to 0.04 nats apart on
average (docs/faults.md has the reports). Each is several times what was seen of healthy runs, and less than the faults.
"""

_NAMES = {"half": "float16", "fp16": "float16", "bf16": "bfloat16", "float": "float32", "fp32": "float32"}


def precision_of(dtypes: Iterable[str]) -> str:
    """The coarsest of some dtypes, as a key of :data:`TOLERANCES`. One that isn't known counts as bfloat16 ("auto")."""
    names = [_NAMES.get(dtype, dtype) for dtype in (str(dtype).removeprefix("torch.") for dtype in dtypes)]
    found = {"fp8" if "fp8" in name or "float8" in name else name for name in names}
    return next(name for name in TOLERANCES if name in {n if n in TOLERANCES else "bfloat16" for n in found})


@dataclass(frozen=True)
class Difference:
    """Absolute differences of two series of log-probs, in nats a token.

    Args:
        mean: over the tokens.
        high: their quantile :data:`HIGH`.
        tokens: how many there were.
    """

    mean: float
    high: float
    tokens: int

    def within(self, tolerance: Tolerance) -> bool:
        """False as well where a log-prob is no number."""
        return self.mean <= tolerance.mean and self.high <= tolerance.high


def difference(some: Sequence[Sequence[float]], others: Sequence[Sequence[float]]) -> Difference:
    """Of two lists of sequences, of the same tokens.

    Raises:
        ValueError: they aren't of the same lengths, or there is no token.
    """
    if [len(row) for row in some] != [len(row) for row in others] or not any(map(len, some)):
        raise ValueError("two series of log-probs to compare aren't of the same tokens")
    pairs = [(a, b) for rows in zip(some, others, strict=True) for a, b in zip(*rows, strict=True)]
    apart = torch.tensor(pairs, dtype=torch.float64).diff(dim=1).abs()
    return Difference(apart.mean().item(), apart.quantile(HIGH).item(), len(pairs))


def tolerance(precision: str, temperature: float) -> Tolerance:
    """What ``precision`` allows at this sampling temperature, by which logits, and what they are off, are divided."""
    allowed, factor = TOLERANCES[precision], max(1.0, 1.0 / temperature)
    return Tolerance(allowed.mean * factor, allowed.high * factor)
