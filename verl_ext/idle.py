"""How long rollout servers have nothing to do."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray


class IdleClock:
    """Adds up the seconds in which a server has no request."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._started = clock, clock()
        self._requests, self._idle, self._since = 0, 0.0, self._started

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request is being answered until the block ends."""
        if self._requests == 0:
            self._idle += self._clock() - self._since
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1
            if self._requests == 0:
                self._since = self._clock()

    def read(self) -> tuple[float, float]:
        """Idle seconds, and all, since the server is there."""
        now = self._clock()
        return self._idle + (now - self._since if self._requests == 0 else 0.0), now - self._started


class IdleShare:
    """The share of the time since the last question in which servers were idle, on average.

    Args:
        servers: Ray handles of :class:`verl_ext.rollout_server.PrivateHttpServer`.
    """

    def __init__(self, servers: Sequence[Any]) -> None:
        self._servers = servers
        self._before = self._read()

    def read(self) -> float:
        before, self._before = self._before, self._read()
        shares = [
            (idle - idle_before) / max(total - total_before, 1e-9)
            for (idle_before, total_before), (idle, total) in zip(before, self._before, strict=True)
        ]
        return sum(shares) / len(shares)

    def _read(self) -> list[tuple[float, float]]:
        return ray.get([server.idle_time.remote() for server in self._servers])
