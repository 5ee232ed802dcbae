"""Which earlier groups come again."""

from collections import Counter
from math import exp

import pytest

from verl_ext.replay_memory import ReplayConfig, ReplayMemory


def memory(groups: int, **config: object) -> ReplayMemory[str]:
    """Groups a, b, c, ... of steps 1, 2, 3, ... with rewards 0, 0.1, 0.2, ..."""
    options = {"share": 0.5, "size": 8, "reward_temperature": None, "half_life": None, **config}
    made = ReplayMemory[str](ReplayConfig(**options))
    for number in range(groups):
        made.add("abcdefghij"[number], number / 10, number + 1)
    return made


def test_the_newest_are_kept() -> None:
    assert [rows for rows, _, _ in memory(10, size=3).state()] == ["h", "i", "j"]


def test_a_step_draws_different_groups_or_none() -> None:
    made = memory(5)
    for step in range(20):
        assert len({group.rows for group in made.draw(5, step)}) == 5
    assert made.draw(6, 1) == [] == made.draw(0, 1)


def test_a_resumed_run_draws_the_same() -> None:
    made, again = memory(8), memory(0)
    again.load(made.state())
    draws = [made.draw(3, step) for step in range(10)]
    assert draws == [again.draw(3, step) for step in range(10)]
    assert len({tuple(group.rows for group in draw) for draw in draws}) > 5, "another draw each step"
    assert draws != [memory(8, seed=1).draw(3, step) for step in range(10)]


@pytest.mark.parametrize(
    ("config", "weight"),
    [
        ({}, lambda reward, age: 1.0),
        ({"reward_temperature": 0.2}, lambda reward, age: exp(reward / 0.2)),
        ({"half_life": 2.0}, lambda reward, age: 0.5 ** (age / 2)),
        ({"reward_temperature": 0.5, "half_life": 1.5}, lambda reward, age: exp(reward / 0.5) * 0.5 ** (age / 1.5)),
    ],
    ids=["alike", "by reward", "by recency", "by both"],
)
def test_in_proportion_to_reward_and_recency(config: dict, weight: object) -> None:
    """One at a time: the share of each is its weight's. Two: the second is drawn in proportion among the others."""
    draws, now = 20_000, 5
    single, pairs = Counter(), Counter()
    for seed in range(draws):
        made = memory(4, seed=seed, **config)
        first, second = made.draw(2, now)
        single[first.rows] += 1
        pairs[first.rows, second.rows] += 1
    weights = {group: weight(number / 10, now - number - 1) for number, group in enumerate("abcd")}
    total = sum(weights.values())
    for group, share in weights.items():
        assert single[group] / draws == pytest.approx(share / total, abs=0.012)
    for (first, second), count in pairs.items():
        expected = weights[first] / total * weights[second] / (total - weights[first])
        assert count / draws == pytest.approx(expected, abs=0.012)
