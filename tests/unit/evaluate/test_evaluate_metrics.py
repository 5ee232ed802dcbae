"""Numbers of an evaluation against brute force: avg@n, pass@k, majority vote, paired tests."""

from dataclasses import dataclass
from itertools import combinations, product

import numpy as np
import pytest

from recipe.flowrl.evaluate.metrics import (
    avg_at_n,
    majority,
    mean_over_problems,
    paired_difference,
    pass_at_each_k,
    sign_flip_p,
)
from recipe.flowrl.evaluate.votes import answer_groups


def test_avg_at_n_and_its_standard_error() -> None:
    estimate = avg_at_n(np.array([0, 4, 2, 1]), 4)
    rates = [0.0, 1.0, 0.5, 0.25]
    assert estimate.value == pytest.approx(np.mean(rates))
    by_hand = (sum((rate - np.mean(rates)) ** 2 for rate in rates) / 3) ** 0.5 / 2
    assert estimate.stderr == pytest.approx(by_hand)
    assert estimate.low < estimate.value < estimate.high


def test_standard_error_is_the_spread_of_repeated_evaluations() -> None:
    """New problems and new samples each time: the mean of the errors is the spread of the values."""
    rng = np.random.default_rng(1)
    estimates = [avg_at_n(rng.binomial(4, rng.beta(0.5, 1.0, size=50)), 4) for _ in range(300)]
    spread = np.std([estimate.value for estimate in estimates])
    assert np.mean([estimate.stderr for estimate in estimates]) == pytest.approx(spread, rel=0.15)


def test_a_single_problem_has_no_standard_error() -> None:
    assert np.isnan(mean_over_problems(np.array([0.5])).stderr)


def test_pass_at_k_is_the_share_of_k_subsets_with_a_right_answer() -> None:
    answers = np.random.default_rng(0).random((6, 5)) < 0.3
    found = pass_at_each_k(answers.sum(-1), 5)
    assert list(found) == [1, 2, 3, 4, 5]
    for k, estimate in found.items():
        expected = np.mean([[any(chosen) for chosen in combinations(row, k)] for row in answers])
        assert estimate.value == pytest.approx(expected)
    assert found[1].value == pytest.approx(avg_at_n(answers.sum(-1), 5).value)


@pytest.mark.parametrize(
    ("groups", "correct", "expected"),
    [
        ([0, 0, 1], [True, True, False], (1.0, False)),
        ([0, 0, 1], [False, False, True], (0.0, False)),
        ([0, 1], [False, True], (0.5, True)),
        ([0, 1, 2], [False, True, False], (1 / 3, True)),
        ([0, 1], [True, True], (1.0, True)),
        ([None, None, 0], [False, False, True], (1.0, False)),
        ([None, None], [False, False], (0.0, False)),
    ],
)
def test_majority(groups: list[int | None], correct: list[bool], expected: tuple[float, bool]) -> None:
    assert majority(groups, correct) == (pytest.approx(expected[0]), expected[1])


def test_majority_is_the_mean_over_winners_of_every_count() -> None:
    for groups in product([None, 0, 1, 2], repeat=4):
        votes = [group for group in groups if group is not None]
        winners = [group for group in set(votes) if votes.count(group) == max(map(votes.count, votes))]
        expected = np.mean([winner == 1 for winner in winners]) if winners else 0.0
        assert majority(groups, [group == 1 for group in groups])[0] == pytest.approx(expected)


@dataclass(frozen=True)
class Said:
    correct: bool
    answer: str | None


def test_answers_are_grouped_by_what_they_mean() -> None:
    said = [
        Said(False, "1/2"),
        Said(True, "4"),
        Said(False, None),
        Said(False, "0.5"),
        Said(False, "3"),
        Said(True, "4.0"),
    ]
    same = lambda a, b: eval(a.answer) == eval(b.answer)  # noqa: E731
    assert answer_groups(said, same) == [0, 1, None, 0, 2, 1]


def test_right_and_wrong_answers_are_never_one_group() -> None:
    assert answer_groups([Said(True, "4"), Said(False, "4")], lambda a, b: True) == [0, 1]


def test_sign_flips_against_all_of_them() -> None:
    rng = np.random.default_rng(2)
    for size in (1, 3, 8):
        differences = rng.integers(-4, 5, size) / 4
        sums = [abs(np.dot(signs, differences)) for signs in product([1, -1], repeat=size)]
        expected = np.mean(np.array(sums) >= abs(differences.sum()) - 1e-12)
        assert sign_flip_p(differences) == pytest.approx(expected)


def test_many_problems_are_flipped_at_random() -> None:
    """Where 15 differ the flips are drawn; their p-value is near the exact one of the same differences."""
    differences = np.array([0.5] * 11 + [-0.5] * 4)
    sums = [sum(signs) for signs in product([1, -1], repeat=15)]
    exact = np.mean([abs(total) >= 7 for total in sums])
    assert sign_flip_p(differences) == pytest.approx(exact, abs=0.012)


def test_p_value_without_any_difference() -> None:
    assert sign_flip_p(np.zeros(20)) == 1.0


def test_p_values_are_small_by_chance_only_as_often_as_they_should() -> None:
    rng = np.random.default_rng(3)
    p_values = [sign_flip_p(rng.binomial(4, 0.4, 30) / 4 - rng.binomial(4, 0.4, 30) / 4, seed=i) for i in range(200)]
    assert 0.01 <= np.mean(np.array(p_values) <= 0.05) <= 0.09


def test_paired_difference_sees_what_unpaired_intervals_do_not() -> None:
    """Problems differ far more than systems do: only the pairs tell."""
    rng = np.random.default_rng(4)
    hardness = rng.random(60)
    first, second = np.clip(hardness + 0.05, 0, 1), hardness
    difference = paired_difference(first, second)
    assert 0 < difference.low < difference.value < difference.high
    assert difference.p_value < 0.001
    one, other = mean_over_problems(first), mean_over_problems(second)
    assert one.low < other.high


def test_a_system_does_not_differ_from_itself() -> None:
    rates = np.random.default_rng(5).random(10)
    difference = paired_difference(rates, rates)
    assert (difference.value, difference.low, difference.high, difference.p_value) == (0.0, 0.0, 0.0, 1.0)
