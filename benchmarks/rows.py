"""Lines of the printed table."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One figure. ``value`` is compared with ``target``, a largest value, if there is one."""

    name: str
    value: float
    unit: str = ""
    spread: str = ""
    target: float | None = None

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.value <= self.target


def ratio_row(name: str, ratio: dict[str, Any], target: float | None = None) -> Row:
    """A row of a :class:`benchmarks.stats.Ratio`, given as a dictionary."""
    interval = f"{ratio['confidence']:.0%} CI {ratio['low']:.3f} to {ratio['high']:.3f}, {ratio['pairs']} pairs"
    return Row(name, ratio["median"], "", interval, target)


def summary_row(name: str, summary: dict[str, Any], unit: str, scale: float = 1.0, target: float | None = None) -> Row:
    """A row of a :class:`benchmarks.stats.Summary`, given as a dictionary, divided by ``scale``."""
    low, high = summary["lower_quartile"] / scale, summary["upper_quartile"] / scale
    spread = f"quartiles {low:.3g} to {high:.3g}, n={summary['count']}"
    return Row(name, summary["median"] / scale, unit, spread, target)
