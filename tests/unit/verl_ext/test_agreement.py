"""How far log-probs may be apart, and in which precision."""

import math

import pytest
import torch

from verl_ext.agreement import TOLERANCES, Difference, difference, precision_of, tolerance


@pytest.mark.parametrize(
    ("dtypes", "precision"),
    [
        (["float32", "float32"], "float32"),
        ([torch.float32, "bfloat16"], "bfloat16"),
        (["bfloat16", "half"], "bfloat16"),
        (["fp32", "half"], "float16"),
        (["float32", "auto"], "bfloat16"),
        (["bfloat16", "fp8 (fp8)"], "fp8"),
        (["float8_e4m3fn"], "fp8"),
    ],
)
def test_the_coarsest_precision_counts(dtypes: list, precision: str) -> None:
    assert precision_of(dtypes) == precision


def test_a_coarser_precision_allows_more() -> None:
    for coarse, fine in zip(list(TOLERANCES.values()), list(TOLERANCES.values())[1:], strict=False):
        assert coarse.mean > fine.mean and coarse.high > fine.high


def test_a_low_temperature_magnifies_what_logits_are_off() -> None:
    assert tolerance("bfloat16", 0.5).mean == 2 * tolerance("bfloat16", 1.0).mean
    assert tolerance("bfloat16", 2.0) == tolerance("bfloat16", 1.0)


def test_a_few_outliers_say_nothing_and_many_do() -> None:
    """In bfloat16 single tokens are off by half a nat where all is well; so many aren't."""
    allowed, quiet = TOLERANCES["bfloat16"], [[0.01] * 100]
    zeros = [[0.0] * 100]
    assert difference(quiet, zeros).within(allowed)
    assert difference([[0.01] * 98 + [0.9, 1.5]], zeros).within(allowed)
    assert not difference([[0.01] * 90 + [0.9] * 10], zeros).within(allowed)
    assert not difference([[0.2] * 100], zeros).within(allowed)


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_what_is_no_number_does_not_agree(bad: float) -> None:
    for rows in ([[0.0, bad]], [[bad, bad]]):
        assert not difference(rows, [[0.0, 0.0]]).within(TOLERANCES["fp8"])


def test_lists_of_other_tokens_are_refused() -> None:
    assert difference([[1.0], [2.0, 3.0]], [[1.0], [2.0, 4.0]]).tokens == 3
    assert difference([[1.0], [], [2.0]], [[1.5], [], [2.5]]) == Difference(0.5, 0.5, 2)
    for some, others in (([[1.0]], [[1.0, 2.0]]), ([[]], [[]]), ([], [])):
        with pytest.raises(ValueError, match="aren't of the same tokens"):
            difference(some, others)
