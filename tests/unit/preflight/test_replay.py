"""Earlier rollouts: where they would bias the gradient, or nothing would be replayed, a run is refused."""

from __future__ import annotations

import pytest

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.preflight.batches import check_batches
from recipe.flowrl.preflight.compose import compose_run
from recipe.flowrl.preflight.loss_options import check_loss_options
from recipe.flowrl.preflight.options import check_options

SHARE = "algorithm.replay.share=0.5"


def check(algo: str, *overrides: str) -> list[str]:
    config = compose_run(["experiment=countdown_cpu", f"algo={algo}", *overrides])
    warnings = [*check_options(config), *check_loss_options(config)]
    check_batches(config)
    return [warning for warning in warnings if "replay" in warning]


@pytest.mark.parametrize("algo", ["tb_replay", "flowrl", "flowrl_plus", "flowrl_vargrad", "gflowrl", "tb_raw"])
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_trajectory_balance_may(algo: str, mode: str) -> None:
    assert check(algo, SHARE, f"mode={mode}", "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=32") == []


REFUSED = {
    "grpo": ["algorithm.replay.share=0.5: this algorithm is a policy gradient", "algo=tb_replay"],
    "ppo": ["algorithm.replay.share=0.5: this algorithm is a policy gradient"],
    "grpo_kl_matched": ["this algorithm is a policy gradient"],
    "flowrl_with_ppo": ["flowrl.ppo_coef=1: PPO's loss is a policy gradient"],
    "flowrl_no_log_z": ["flowrl.partition=constant", "set flowrl.partition=group_mean or learned"],
    "tb_replay algorithm.rollout_correction.bypass_mode=true": ["bypass_mode=true: log Z, the group's mean"],
    "tb_replay algorithm.replay.share=1": ["algorithm.replay.share: got 1 (int); allowed: a finite number in (0, 1)"],
    "tb_replay algorithm.replay.share=0.01": ["of a mini-batch of .*ppo_mini_batch_size=16 prompts that is 0"],
    "tb_replay algorithm.replay.share=0.99": ["ppo_mini_batch_size=16 prompts that is 16"],
    "tb_replay algorithm.replay.size=15": ["a step replays 16 groups", "set it to 16 or more"],
    "tb_replay algorithm.replay.half_life=0": ["algorithm.replay.half_life: got 0 (int); allowed: a finite number > 0"],
    "tb_replay algorithm.replay.reward_temperature=hot": ["algorithm.replay.reward_temperature: got 'hot'"],
    "tb_replay algorithm.replay.share=0.3": [
        "ref.log_prob_micro_batch_size_per_gpu=64 doesn't divide the 176 sequences of a rank"
    ],
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_refused(arguments: str) -> None:
    algo, *overrides = arguments.split()
    with pytest.raises(UserError) as refusal:
        check(algo, *(overrides if any("share" in one for one in overrides) else [SHARE, *overrides]))
    for words in REFUSED[arguments]:
        for part in words.split(".*"):
            assert part in str(refusal.value)


def test_options_without_effect_are_named() -> None:
    (warning,) = check("flowrl", "algorithm.replay.size=10")
    assert warning == "algorithm.replay.size=10 has no effect without algorithm.replay.share"
