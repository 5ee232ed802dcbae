"""The rollout correction: what can't work or would have no effect is refused, all else is let through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.preflight.compose import compose_run
from recipe.flowrl.preflight.rollout_correction import check_rollout_correction

Composed = Callable[..., DictConfig]


@pytest.fixture(scope="module")
def composed() -> Composed:
    made = {
        algo: OmegaConf.to_yaml(compose_run(["experiment=countdown_cpu", f"algo={algo}"]))
        for algo in ("flowrl", "grpo")
    }

    def compose(algo: str, **changes: Any) -> DictConfig:
        config = OmegaConf.create(made[algo])
        config.algorithm.rollout_correction.update(changes)
        return config

    return compose


GOOD = [
    {"rollout_is": "token"},
    {"rollout_is": "sequence", "rollout_is_threshold": "0.5_2.0"},
    {"rollout_is": "sequence", "rollout_is_threshold": 5, "rollout_is_batch_normalize": True},
    {"bypass_mode": True},
]
BAD = [
    ({"rollout_is": "token", "rollout_is_threshold": 0}, "rollout_is_threshold: got 0"),
    ({"rollout_is": "token", "rollout_is_threshold": "2_0.5"}, "rollout_is_threshold: got '2_0.5'"),
    ({"rollout_is": "token", "rollout_is_threshold": "two"}, "allowed: a number > 0"),
    ({"rollout_is": "token", "rollout_is_threshold": None}, "rollout_is_threshold: got None"),
    ({"rollout_rs": "seq_mean_k3"}, "rollout_rs_threshold: got None"),
    ({"rollout_rs": "seq_mean_k3", "rollout_rs_threshold": "0.5_2"}, "got '0.5_2' .*for seq_mean_k3; .*a number > 0"),
    ({"rollout_rs": "seq_sum_k1,seq_mean_k3", "rollout_rs_threshold": "1,2,3"}, "allowed: one bound, or 2"),
    ({"rollout_rs": "seq_sum_k1", "rollout_rs_threshold": "2_1"}, "'low_high'"),
    ({"bypass_mode": True, "rollout_is": "token"}, "rollout_is=token has no effect with .*bypass_mode=true"),
    ({"bypass_mode": True, "rollout_rs": "seq_mean_k3", "rollout_rs_threshold": 1}, "rollout_rs=seq_mean_k3 has no"),
    ({"bypass_mode": True, "loss_type": "reinforce"}, "loss_type=reinforce has no effect"),
    ({"bypass_mode": "yes"}, "bypass_mode: got 'yes'"),
]


@pytest.mark.parametrize("algo", ["flowrl", "grpo"])
@pytest.mark.parametrize("changes", GOOD)
def test_what_works(composed: Composed, algo: str, changes: dict[str, Any]) -> None:
    assert check_rollout_correction(composed(algo, **changes)) == []


@pytest.mark.parametrize("algo", ["flowrl", "grpo"])
@pytest.mark.parametrize(("changes", "message"), BAD)
def test_what_does_not(composed: Composed, algo: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^algorithm\.rollout_correction\..*{message}"):
        check_rollout_correction(composed(algo, **changes))


@pytest.mark.parametrize("changes", [*GOOD, {"rollout_rs": "seq_max_k2", "rollout_rs_threshold": 1.0}])
def test_the_log_probs_of_the_rollout_are_needed(composed: Composed, changes: dict[str, Any]) -> None:
    """verl would leave out weights and rejections without a word, and end in the first step in bypass mode."""
    config = composed("flowrl", **changes)
    config.actor_rollout_ref.rollout.calculate_log_probs = False
    with pytest.raises(UserError, match="needs the log-probs of the rollout: set .*calculate_log_probs=true"):
        check_rollout_correction(config)


def test_flowrl_takes_or_leaves_whole_responses(composed: Composed) -> None:
    changes = {"rollout_rs": "token_k1", "rollout_rs_threshold": "0.5_2.0"}
    with pytest.raises(UserError, match="masks single tokens"):
        check_rollout_correction(composed("flowrl", **changes))
    assert check_rollout_correction(composed("grpo", **changes)) == []
    (warning,) = check_rollout_correction(composed("flowrl", rollout_rs="seq_mean_k3", rollout_rs_threshold=0.1))
    assert "rejected responses take no part" in warning


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout_is": "token", "rollout_is_threshold": "0.5_2.0"},
        {"rollout_is": "sequence", "rollout_is_threshold": "3"},
        {"rollout_rs": "seq_sum_k1, seq_mean_k3", "rollout_rs_threshold": "0.5_2.0, 0.1"},
        {"rollout_rs": "seq_sum_k1", "rollout_rs_threshold": 2},
    ],
)
def test_what_is_let_through_verl_takes_as_well(composed: Composed, changes: dict[str, Any]) -> None:
    import torch
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask

    check_rollout_correction(composed("grpo", **changes))
    log_probs = torch.zeros(2, 3)
    compute_rollout_correction_and_rejection_mask(log_probs, log_probs, torch.ones(2, 3), **changes)
