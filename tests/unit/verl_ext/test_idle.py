"""The time in which a rollout server has nothing to do."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from verl_ext import idle
from verl_ext.idle import IdleClock, IdleShare


class Time:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_requests_that_overlap_are_one_time_of_work() -> None:
    time = Time()
    clock = IdleClock(time)
    time.now += 2
    with clock.request():
        time.now += 3
        with clock.request():
            time.now += 4
        time.now += 5
        assert clock.read() == (2, 14)
    time.now += 6
    assert clock.read() == (8, 20)
    assert clock.read() == (8, 20), "a question changes nothing"


def test_a_request_that_fails_ends_as_well() -> None:
    time = Time()
    clock = IdleClock(time)
    with pytest.raises(RuntimeError), clock.request():
        time.now += 1
        raise RuntimeError
    time.now += 1
    assert clock.read() == (1, 2)


def test_the_share_is_of_the_time_since_the_last_question(monkeypatch: pytest.MonkeyPatch) -> None:
    time = [Time(), Time()]
    clocks = [IdleClock(one) for one in time]
    monkeypatch.setattr(idle.ray, "get", lambda answers: answers)
    share = IdleShare([SimpleNamespace(idle_time=SimpleNamespace(remote=clock.read)) for clock in clocks])
    with clocks[0].request():
        time[0].now += 10
        time[1].now += 10
    assert share.read() == pytest.approx(0.5)
    time[0].now += 1
    time[1].now += 1
    assert share.read() == pytest.approx(1.0)
