"""Advantages against brute force, and the identities that tie FlowRL to GRPO (VarGrad, the KL-matched control)."""

from itertools import combinations

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from recipe.flowrl.advantages import group_log_z, kl_matched, pass_at_k, raw_reward, target_log_odds
from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.objective import flowrl_loss

MASK = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 0, 0], [1, 1, 1], [1, 1, 0]])


def rewards_of(scores: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(len(scores), 2)
    rewards = torch.zeros_like(mask)
    rewards[:, -1] = torch.tensor(scores)
    return rewards, mask


def test_raw_reward_is_on_every_response_token() -> None:
    rewards = torch.zeros(5, 3)
    rewards[:, 0] = torch.arange(5.0)
    advantages, returns = raw_reward(token_level_rewards=rewards, response_mask=MASK)
    assert torch.equal(advantages, torch.arange(5.0).unsqueeze(1) * MASK)
    assert torch.equal(advantages, returns)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("right", [[1, 0, 0, 0, 0], [1, 1, 0, 1, 0], [1, 1, 1, 1, 0], [0] * 5, [1] * 5])
def test_pass_at_k_is_the_mean_over_all_attempts(right: list[int], k: int) -> None:
    rewards, mask = rewards_of(right + [0, 1, 0, 0, 0])  # a second prompt, to be told apart
    index = np.array(["a"] * 5 + ["b"] * 5, dtype=object)
    advantages, _ = pass_at_k(rewards, mask, index, OmegaConf.create({"pass_k": k}))

    attempts = list(combinations(range(5), k))
    solved = np.array([max(right[i] for i in attempt) for attempt in attempts], dtype=float)
    if solved.std() == 0:
        expected = np.zeros(5)
    else:
        normalised = (solved - solved.mean()) / solved.std()
        expected = [np.mean([a for a, t in zip(normalised, attempts, strict=True) if i in t]) for i in range(5)]
    np.testing.assert_allclose(advantages[:5, 0], expected, atol=1e-6)
    assert torch.equal(advantages[:, 0], advantages[:, 1])


def test_pass_at_k_needs_k_rollouts() -> None:
    rewards, mask = rewards_of([1, 0])
    with pytest.raises(ValueError, match="algorithm.pass_k=3.*only 2 rollouts"):
        pass_at_k(rewards, mask, np.array(["a", "a"]), OmegaConf.create({"pass_k": 3}))


def a_group(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    reward = torch.randn(6, generator=generator)
    return {
        "log_prob": -torch.rand(6, 4, generator=generator),
        "ref_log_prob": -torch.rand(6, 4, generator=generator),
        "reward": reward - reward.mean(),
        "response_mask": torch.ones(6, 4),
    }


def flowrl_gradient(log_z: torch.Tensor, group: dict[str, torch.Tensor], beta: float) -> torch.Tensor:
    log_prob = group["log_prob"].clone().requires_grad_()
    config = FlowRLConfig(beta=beta, importance_weight="none")
    old = group["log_prob"]
    loss, _ = flowrl_loss(**group | {"log_prob": log_prob}, old_log_prob=old, log_z=log_z, config=config)
    return torch.autograd.grad(loss, log_prob)[0]


def paper_log_z(group: dict[str, torch.Tensor], beta: float) -> torch.Tensor:
    log_ratio = (group["log_prob"] - group["ref_log_prob"]).sum(-1)
    return group_log_z(group["reward"], log_ratio, torch.full((6,), 4), [0] * 6, FlowRLConfig(beta=beta))


@pytest.mark.parametrize("normalization", ["log_probs", "residual", "residual_root", "none"])
def test_group_log_z_makes_the_loss_least(normalization: str) -> None:
    """Two groups whose answers have different lengths: the derivative of the loss by either's log Z vanishes."""
    group, config = a_group(3), FlowRLConfig(beta=2.0, length_normalization=normalization)
    mask = torch.arange(4) < torch.tensor([1, 2, 4, 4, 3, 1]).unsqueeze(-1)
    index = ["x", "y", "x", "y", "x", "y"]
    log_ratio = ((group["log_prob"] - group["ref_log_prob"]) * mask).sum(-1)
    log_z = group_log_z(group["reward"], log_ratio, mask.sum(-1), index, config).requires_grad_()
    inputs = group | {"old_log_prob": group["log_prob"], "response_mask": mask, "log_z": log_z}
    by_row = torch.autograd.grad(flowrl_loss(**inputs, config=config)[0], log_z)[0]
    assert by_row.abs().max() > 0.01
    assert by_row[0::2].sum().abs() < 1e-6 and by_row[1::2].sum().abs() < 1e-6
    assert log_z[0] == log_z[2] == log_z[4] != log_z[1] == log_z[3] == log_z[5]


def test_group_log_z_zeroes_the_mean_residual() -> None:
    group, beta = a_group(), 3.0
    log_ratio = (group["log_prob"] - group["ref_log_prob"]).mean(-1)
    log_z = paper_log_z(group, beta)
    assert torch.allclose(log_z, log_z[0])
    assert abs((log_z + log_ratio - beta * group["reward"]).mean()) < 1e-6


def test_the_log_odds_of_the_target_are_those_of_the_groups_whose_rewards_differ() -> None:
    reward, length = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.5, 0.0]), torch.tensor([4, 8, 3, 3, 10, 20])
    index = ["x", "x", "y", "y", "z", "z"]
    paper, whole = FlowRLConfig(beta=2.0), FlowRLConfig(beta=2.0, length_normalization="residual")
    assert target_log_odds(reward, length, index, paper) == pytest.approx(2 * (1.0 * 6 + 0.5 * 15) / 2)
    assert target_log_odds(reward, length, index, whole) == pytest.approx(2 * (1.0 + 0.5) / 2)
    assert target_log_odds(torch.ones(2), torch.ones(2), ["x", "x"], paper) is None


def test_groups_do_not_mix() -> None:
    value = torch.tensor([1.0, 2.0, 3.0, 4.0])
    log_z = group_log_z(value, torch.zeros(4), torch.ones(4), ["x", "y", "x", "y"], FlowRLConfig(beta=1.0))
    assert log_z.tolist() == [2.0, 3.0, 2.0, 3.0]


def test_vargrad_inside_or_outside_the_graph_has_the_same_gradient() -> None:
    """TBA: the gradient through the group's mean vanishes, since the residuals add up to zero."""
    group, beta = a_group(1), 2.0
    log_prob = group["log_prob"].clone().requires_grad_()
    residual = (log_prob - group["ref_log_prob"]).mean(-1) - beta * group["reward"]
    inside = torch.autograd.grad((residual - residual.mean()).square().mean(), log_prob)[0]
    outside = flowrl_gradient(paper_log_z(group, beta), group, beta)
    torch.testing.assert_close(inside, outside)


def test_kl_matched_has_flowrls_gradient_on_policy() -> None:
    """In size as well: sequence-mean of token-means of -A log pi, A = kl_matched."""
    group, beta = a_group(2), 5.0
    log_ratio = (group["log_prob"] - group["ref_log_prob"]).mean(-1)
    advantages = kl_matched(group["reward"], 4 * log_ratio, torch.full((6,), 4), [0] * 6, beta)
    log_prob = group["log_prob"].clone().requires_grad_()
    grpo = torch.autograd.grad(-(advantages * log_prob.mean(-1)).mean(), log_prob)[0]
    flowrl = flowrl_gradient(paper_log_z(group, beta), group, beta)
    torch.testing.assert_close(flowrl, grpo)
