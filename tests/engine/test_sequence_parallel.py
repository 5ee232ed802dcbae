"""Pooling over a prompt whose tokens lie on several ranks, on real gloo ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def test_pooling_slices_equals_pooling_what_verls_gather_rebuilds(result: Callable[[str], Any]) -> None:
    """The forward value, and the gradient with the factor that verl's gather puts on it for FSDP to average away."""
    cases = result("sequence_parallel")
    assert len(cases) == 5
    for name, case in cases.items():
        (mean, gradient), (gathered_mean, gathered_gradient) = case["pooled"], case["gathered"]
        torch.testing.assert_close(mean, gathered_mean, msg=name)
        torch.testing.assert_close(gradient, gathered_gradient, msg=name)
        assert gradient.abs().max() > 0
