"""How far a long piece of work is, and when it will be done."""

import time
from collections.abc import Callable

HEARTBEAT_S = 10.0
"""Seconds between two lines about the same piece of work."""


def short_duration(seconds: float) -> str:
    """``7s``, ``2m05s``, ``1h02m``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole // 60 % 60:02d}m"


class Progress:
    """Says how much is done, every :data:`HEARTBEAT_S` seconds at most, every hundredth at most, and at the end.

    Args:
        say: prints a line.
        what: is being done.
        total: units of work.
        done: before this began.
        unit: their name.
        now: the clock, in seconds.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        what: str,
        total: int,
        done: int = 0,
        unit: str = "samples",
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say, self._what, self._total, self._unit, self._now = say, what, total, unit, now
        self._done = self._before = self._said = done
        self._tokens = 0
        self._started = self._spoke = now()

    def add(self, count: int = 1, tokens: int = 0) -> None:
        """So many more are done, with so many tokens generated."""
        self._done += count
        self._tokens += tokens
        now = self._now()
        due = now - self._spoke >= HEARTBEAT_S and self._done - self._said >= self._total / 100
        if due or self._done >= self._total:
            self._spoke, self._said = now, self._done
            self._say(self._line(now - self._started))

    def _line(self, seconds: float) -> str:
        parts = [f"{self._what}  {self._done}/{self._total} {self._unit}"]
        if self._tokens:
            parts.append(f"{self._tokens / max(seconds, 1e-9):.0f} tokens/s")
        if left := self._total - self._done:
            parts.append(f"ETA {short_duration(seconds / (self._done - self._before) * left)}")
        else:
            parts.append(f"in {short_duration(seconds)}")
        return "  ".join(parts)
