"""Each preset's loss and advantage against the paper's formula, however its micro-batches are cut."""

from __future__ import annotations

from dataclasses import replace
from math import comb
from typing import Any

import numpy as np
import paper_losses
import pytest
import torch
from omegaconf import OmegaConf
from paper_losses import PAPER_LOSSES, Batch, random_batch
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss, get_adv_estimator_fn, get_policy_loss_fn, kl_penalty
from verl.utils.config import omega_conf_to_dataclass

from recipe.flowrl import advantages
from recipe.flowrl.common.project import CONFIG_DIR
from recipe.flowrl.preflight.compose import compose_run
from verl_ext.patches import patch_geometric_mean_loss

ALGORITHMS = sorted(path.stem for path in (CONFIG_DIR / "algo").glob("*.yaml"))
VERLS = [name for name in ALGORITHMS if not name.startswith(("flowrl", "gflowrl", "tb_"))]
CHOOSING = ("clip_cov", "kl_cov")


@pytest.fixture(scope="module", autouse=True)
def as_in_a_worker() -> None:
    patch_geometric_mean_loss()


def actor_of(algo: str, *overrides: str) -> Any:
    config = compose_run(["experiment=countdown_cpu", f"algo={algo}", *overrides])
    assert config.data.max_response_length == paper_losses.LONGEST
    return omega_conf_to_dataclass(config.actor_rollout_ref.actor)


def loss_of(actor: Any, batch: Batch, whole: Batch) -> Tensor:
    """What verl's worker computes of a micro-batch ``batch`` of the mini-batch ``whole``, on one rank."""
    actor.global_batch_info.update(
        dp_size=1,
        batch_num_tokens=int(whole.mask.sum()),
        global_batch_size=len(whole.mask),
        loss_scale_factor=actor.loss_scale_factor,
    )
    loss, _ = get_policy_loss_fn(actor.policy_loss.loss_mode)(
        old_log_prob=batch.old,
        log_prob=batch.log_prob,
        advantages=batch.advantage.unsqueeze(-1) * batch.mask,
        response_mask=batch.mask,
        loss_agg_mode=actor.loss_agg_mode,
        config=actor,
    )
    if actor.use_kl_loss:
        divergence = kl_penalty(batch.log_prob, batch.ref, actor.kl_loss_type)
        loss = loss + actor.kl_loss_coef * agg_loss(
            divergence, batch.mask, actor.loss_agg_mode, **actor.global_batch_info
        )
    return loss


def with_gradient(batch: Batch) -> Batch:
    return replace(batch, log_prob=batch.log_prob.clone().requires_grad_())


def test_every_preset_of_verls_losses_has_its_reference() -> None:
    assert set(VERLS) == set(PAPER_LOSSES) | set(CHOOSING)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("algo", PAPER_LOSSES)
def test_the_loss_is_the_papers(algo: str, seed: int) -> None:
    batch = with_gradient(random_batch(seed=seed))
    ours, theirs = loss_of(actor_of(algo), batch, batch), PAPER_LOSSES[algo](batch)
    gradients = [torch.autograd.grad(loss, batch.log_prob)[0] for loss in (ours, theirs)]
    if algo != "gspo":  # its loss is stated with the tokens' gradients, not in its value
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
    assert gradients[1].abs().max() > 1e-3
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("algo", PAPER_LOSSES)
def test_the_gradient_does_not_depend_on_how_micro_batches_are_cut(algo: str) -> None:
    batch, actor = with_gradient(random_batch()), actor_of(algo)
    whole = torch.autograd.grad(loss_of(actor, batch, batch), batch.log_prob)[0]
    total = torch.zeros_like(whole)
    for rows in ([0, 3], [1], [2, 4, 5, 6], [7, 8]):
        width = int(batch.mask[rows].sum(-1).max())  # a micro-batch is padded to its longest
        columns = {name: getattr(batch, name)[rows, :width] for name in ("log_prob", "old", "ref", "mask")}
        piece = Batch(**columns, advantage=batch.advantage[rows])
        total += torch.autograd.grad(loss_of(actor, piece, batch), batch.log_prob)[0]
    torch.testing.assert_close(total, whole)


def test_clip_cov_clips_as_wide_as_the_script_and_leaves_tokens_out_by_covariance() -> None:
    batch = with_gradient(random_batch())
    policy_loss = "actor_rollout_ref.actor.policy_loss"
    none = actor_of("clip_cov", f"{policy_loss}.clip_cov_lb=100.0", f"{policy_loss}.clip_cov_ub=101.0")
    ours = torch.autograd.grad(loss_of(none, batch, batch), batch.log_prob)[0]
    theirs = torch.autograd.grad(paper_losses.clip_cov_without_selection(batch), batch.log_prob)[0]
    torch.testing.assert_close(ours, theirs)

    every = actor_of("clip_cov", f"{policy_loss}.clip_cov_ratio=1.0", f"{policy_loss}.clip_cov_lb=0.0")
    gradient = torch.autograd.grad(loss_of(every, batch, batch), batch.log_prob)[0]
    flat, advantage = (
        batch.log_prob[batch.mask].detach(),
        batch.advantage.unsqueeze(-1).expand_as(batch.mask)[batch.mask],
    )
    covariance = (flat - flat.mean()) * (advantage - advantage.mean())
    left_out = (gradient == 0)[batch.mask]
    high = (covariance > 0) & (covariance < 5)
    assert (high & left_out).sum() == high.sum() > 0 and left_out.sum() < left_out.numel()


def test_kl_cov_penalises_the_tokens_of_the_highest_covariance_and_clips_none() -> None:
    batch = with_gradient(random_batch())
    actor = actor_of("kl_cov", "actor_rollout_ref.actor.policy_loss.kl_cov_ratio=0.2")
    ours = loss_of(actor, batch, batch)
    flat, old = batch.log_prob[batch.mask], batch.old[batch.mask]
    advantage = batch.advantage.unsqueeze(-1).expand_as(batch.mask)[batch.mask]
    covariance = ((flat - flat.mean()) * (advantage - advantage.mean())).detach()
    chosen = covariance >= covariance.sort(descending=True).values[int(0.2 * len(covariance)) - 1]
    theirs = (-(flat - old).exp() * advantage + 1.0 * (flat - old).abs() * chosen).mean()
    torch.testing.assert_close(ours, theirs)


def estimate(algo: str, scores: list[float], index: list[str], mask: Tensor | None = None) -> Tensor:
    """(B,) the advantage of a preset on the first token."""
    config = compose_run([f"algo={algo}"])
    mask = torch.ones(len(scores), 2) if mask is None else mask
    rewards = torch.zeros_like(mask)
    rewards[:, -1] = torch.tensor(scores)
    values, _ = get_adv_estimator_fn(config.algorithm.adv_estimator)(
        token_level_rewards=rewards,
        response_mask=mask,
        index=np.array(index, dtype=object),
        config=config.algorithm,
    )
    assert torch.equal(values[:, 0], values[:, -1])
    return values[:, 0]


SCORES, INDEX = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], ["a"] * 4 + ["b"] * 4


def test_maxrl_divides_by_the_success_rate() -> None:
    np.testing.assert_allclose(estimate("maxrl", SCORES, INDEX), [1, -1, -1, 1, -1, -1, -1, 3])
    assert not estimate("maxrl", [0.0] * 4, ["a"] * 4).any() and not estimate("maxrl", [1.0] * 4, ["a"] * 4).any()


def test_maxrl_is_the_gradient_of_the_log_of_the_success_rate() -> None:
    """d log p / dp = sum of (1 - p)^(k - 1); as many terms as rollouts, less one for the groups of wrong answers."""
    p, n = 0.4, 6
    expected = 0.0
    for right in range(n + 1):
        probability = p**right * (1 - p) ** (n - right) * comb(n, right)
        values = estimate("maxrl", [1.0] * right + [0.0] * (n - right), ["a"] * n)
        score = [1 / p] * right + [-1 / (1 - p)] * (n - right)  # d log P(outcome) / dp
        expected += probability * float(np.dot(values, score)) / n
    assert expected == pytest.approx(sum((1 - p) ** (k - 1) for k in range(1, n)), rel=1e-5)


def test_maxrl_refuses_negative_rewards() -> None:
    with pytest.raises(ValueError, match="adv_estimator=maxrl: a reward of -1.*reward=math_verify"):
        estimate("maxrl", [1.0, -1.0], ["a", "a"])


def test_reinforce_plus_plus_baseline_takes_the_groups_mean_and_the_batchs_deviation() -> None:
    centred = np.array([0.5, -0.5, -0.5, 0.5, -0.25, -0.25, -0.25, 0.75])
    whitened = (centred - centred.mean()) / np.repeat(centred, 2).std(ddof=1)
    np.testing.assert_allclose(estimate("reinforce_plus_plus_baseline", SCORES, INDEX), whitened, rtol=1e-4)


def test_dmpo_adds_the_gradient_of_the_distance_between_the_two_distributions() -> None:
    """GRPO's loss plus the mean over prompts of mean_i (softmax(s)_i - softmax(r / tau)_i)^2, at pi = pi_old."""
    generator = torch.Generator().manual_seed(0)
    score = torch.randn(8, generator=generator, dtype=torch.float64).requires_grad_()
    reward, grpo = torch.tensor(SCORES).double(), torch.randn(8, generator=generator, dtype=torch.float64)
    distance = torch.stack(
        [
            (score[rows].softmax(0) - (reward[rows] / 0.5).softmax(0)).square().mean()
            for rows in ([0, 1, 2, 3], [4, 5, 6, 7])
        ]
    ).mean()
    theirs = torch.autograd.grad(-(grpo * score).mean() + 3.0 * distance, score)[0]
    shaped = advantages.dmpo(grpo, reward, score.detach(), INDEX, weight=3.0, temperature=0.5)
    torch.testing.assert_close(torch.autograd.grad(-(shaped * score).mean(), score)[0], theirs)


def test_dapo_shapes_the_reward_of_responses_in_the_last_fifth() -> None:
    reward = compose_run(["experiment=math_7b", "algo=dapo"]).reward
    OmegaConf.resolve(reward)
    assert reward.reward_manager.name == "dapo" and reward.reward_kwargs.max_resp_len == 8192
    assert reward.reward_kwargs.overlong_buffer_cfg == {
        "enable": True,
        "len": 1638,
        "penalty_factor": 1.0,
        "log": False,
    }


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_a_preset_names_its_source_its_departures_and_the_scale_of_its_constants(algo: str) -> None:
    lines = (CONFIG_DIR / "algo" / f"{algo}.yaml").read_text().splitlines()
    header = " ".join(line.lstrip("# ") for line in lines if line.startswith("#"))
    for name in ("Source", "Departures", "Scale"):
        said = header.partition(f"{name}: ")[2].partition(": ")[0]
        assert len(said) > 8, f"{algo}: no {name}"
    assert "arXiv 2" in header or "arXiv 1" in header


def test_the_critics_rate_is_verls_on_gpus_and_the_policys_on_countdown() -> None:
    gpu = compose_run(["experiment=math_7b", "algo=ppo", "cluster=1x8"])
    assert (gpu.critic.optim.lr, gpu.actor_rollout_ref.actor.optim.lr) == (1e-5, 1e-6)
    assert gpu.critic.strategy == gpu.critic.fsdp.strategy == "fsdp2"
    assert gpu.critic.ppo_max_token_len_per_gpu == gpu.actor_rollout_ref.actor.ppo_max_token_len_per_gpu
    sweep = compose_run(["experiment=countdown_cpu", "algo=ppo", "actor_rollout_ref.actor.optim.lr=3e-4"])
    assert sweep.critic.optim.lr == 3e-4
