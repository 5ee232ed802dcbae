"""How far the policy is away from the one that drew its data."""

import math

import pytest
import torch

from verl_ext.lag import lag_metrics


def test_responses_count_with_their_own_tokens() -> None:
    old = torch.tensor([[-1.0, -2.0, -1.0], [-1.0, math.nan, -0.5], [-9.0, -9.0, -9.0]])
    drew = torch.tensor([[-1.5, -2.5, 0.0], [-0.5, -1.0, -1.0], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 0, 0]])
    metrics = lag_metrics(old, drew, mask)
    first, second = 0.5 + 0.5, -0.5 + 0.5
    assert metrics == pytest.approx(
        {
            "mean": (first + second) / 2,
            "abs_mean": (abs(first) + abs(second)) / 2,
            "abs_max": 1.0,
        }
    )


def test_nothing_to_tell() -> None:
    assert lag_metrics(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 3)) == {}
