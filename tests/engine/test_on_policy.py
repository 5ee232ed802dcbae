"""A step of one update doesn't need the log-probs of the policy before it: they are its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

Result = Callable[[str], Any]

LOSSES = {"flowrl", "vanilla", "gspo", "clip_cov", "kl_cov", "geo_mean", "cispo", "sapo"}


def test_every_loss_has_the_gradient_that_computed_log_probs_give(result: Result) -> None:
    results = result("on_policy")
    assert set(results) >= LOSSES
    for loss, told in results.items():
        for part, computed in told["computed"]["gradients"].items():
            for name, gradient in told["own"]["gradients"][part].items():
                torch.testing.assert_close(gradient, computed[name], rtol=1e-4, atol=1e-7, msg=f"{loss}: {part} {name}")
            assert max(gradient.abs().max() for gradient in computed.values()) > 1e-4, loss
        for name, value in told["computed"]["metrics"].items():
            if not name.startswith("actor/perf") and name not in ("actor/mfu",):
                assert told["own"]["metrics"][name] == pytest.approx(value, rel=1e-3, abs=1e-5), f"{loss}: {name}"


def test_the_update_tells_what_verls_pass_would_have(ranks: int, result: Result) -> None:
    told = result("on_policy")["flowrl"]
    assert told["computed"]["of the update"] == {}
    if ranks == 1:  # else verl's metrics here are of one rank's rows
        assert told["own"]["of the update"] == pytest.approx(told["verl's metrics"], rel=1e-4)
    assert told["own"]["of the update"].keys() == told["verl's metrics"].keys()
