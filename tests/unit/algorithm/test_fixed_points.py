"""Where the loss is stationary, on policies whose every answer can be counted: each statement of docs/choosing_beta.md.

A policy is a softmax over 40 answers of 2 to 11 tokens, a fifth of them right. The expectation over its samples is a
sum over the answers, so there is no sampling error. Where the loss leads is found by following its own gradient.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

from recipe.flowrl.advantages import group_log_z
from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.objective import divisors, flowrl_loss
from recipe.flowrl.preflight import target

ANSWERS, LONGEST = 40, 11
LENGTH = torch.arange(ANSWERS) % (LONGEST - 1) + 2
RIGHT = torch.arange(ANSWERS) % 5 == 0
UNEQUAL, EQUAL = LENGTH, torch.full_like(LENGTH, 6)
REF = torch.randn(ANSWERS, generator=torch.Generator().manual_seed(0), dtype=torch.float64).log_softmax(0)
GRADED = torch.rand(ANSWERS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
WHOLE = ("residual", "residual_root", "none")
EXACT = 2e-5
"""Nats: the loss is computed in float32."""


def tokens(log_prob: Tensor) -> Tensor:
    """(N, T): all of an answer's log-prob on its first token, since the loss takes their sum."""
    return torch.nn.functional.pad(log_prob.unsqueeze(-1), (0, LONGEST - 1))


def force(log_pi: Tensor, log_z: Tensor, reward: Tensor, length: Tensor, config: FlowRLConfig) -> Tensor:
    """(N,) the derivative of each answer's loss by its log-prob."""
    log_prob = log_pi.clone().requires_grad_()
    loss, _ = flowrl_loss(
        log_prob=tokens(log_prob),
        old_log_prob=tokens(log_pi),
        ref_log_prob=tokens(REF),
        log_z=log_z.expand(ANSWERS),
        reward=reward,
        response_mask=torch.arange(LONGEST) < length.unsqueeze(-1),
        config=config,
        loss_weights=torch.ones(ANSWERS),
    )
    return torch.autograd.grad(loss, log_prob)[0]


def best_log_z(log_pi: Tensor, reward: Tensor, length: Tensor, config: FlowRLConfig, plain: bool = False) -> Tensor:
    """Log Z of a head that has converged, or of an infinite group: where the expected loss is least."""
    per_log_prob, per_residual = divisors(config, length)
    weight = log_pi.exp() * (1 if plain else per_residual**-2)
    return (weight * (config.beta * reward - (log_pi - REF) / per_log_prob)).sum() / weight.sum()


def train(
    reward: Tensor, length: Tensor, config: FlowRLConfig, constant: float | None = None, plain: bool = False
) -> Tensor:
    """(N,) log pi where following the gradient ends; the natural one, which has the same fixed points and is faster."""
    log_pi = REF.clone()
    per_log_prob, per_residual = divisors(config, length)
    rate = 0.2 * per_log_prob.min() * per_residual.min() ** 2
    for _ in range(20_000):
        free = best_log_z(log_pi, reward, length, config, plain)
        log_z = free if constant is None else torch.tensor(constant, dtype=torch.float64)
        update = force(log_pi, log_z, reward, length, config)
        update = rate * (update - (log_pi.exp() * update).sum())
        log_pi = (log_pi - update).log_softmax(0)
        if update.abs().max() < 5e-7:
            return log_pi
    raise AssertionError(f"still moving: {update.abs().max():.1e}")


def kl(first: Tensor, second: Tensor) -> float:
    return (first.exp() * (first - second)).sum().item()


def tilted(reward: Tensor, length: Tensor, beta: float) -> Tensor:
    """pi_ref exp(|y| (beta r - log Z)), log Z by bisection: the probabilities add up to one."""
    low, high = -10.0, beta * reward.max().item() + 10.0
    for _ in range(200):
        log_z = (low + high) / 2
        total = (REF + length * (beta * reward - log_z)).logsumexp(0)
        low, high = (log_z, high) if total > 0 else (low, log_z)
    return (REF + length * (beta * reward - log_z)).log_softmax(0)


@pytest.mark.parametrize("reward", [GRADED, RIGHT.double()], ids=["graded", "0 or 1"])
@pytest.mark.parametrize("beta", [0.5, 3.0])
@pytest.mark.parametrize("normalization", WHOLE)
def test_dividing_the_whole_residual_aims_at_pi_ref_exp_beta_r(normalization: str, beta: float, reward: Tensor) -> None:
    log_pi = train(reward, UNEQUAL, FlowRLConfig(beta=beta, length_normalization=normalization))
    assert kl(log_pi, (REF + beta * reward).log_softmax(0)) < EXACT


def test_a_plain_mean_for_log_z_leads_there_too() -> None:
    config = FlowRLConfig(beta=3.0, length_normalization="residual")
    assert kl(train(GRADED, UNEQUAL, config, plain=True), (REF + 3 * GRADED).log_softmax(0)) < EXACT


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_dividing_the_log_probs_aims_at_another_target_where_lengths_differ(beta: float) -> None:
    log_pi = train(GRADED, UNEQUAL, FlowRLConfig(beta=beta))
    assert kl(log_pi, tilted(GRADED, UNEQUAL, beta)) < EXACT
    naive = (REF + UNEQUAL * beta * GRADED).log_softmax(0)
    assert kl(log_pi, naive) > 100 * EXACT, "pi_ref exp(|y| beta r) normalised holds for one length only"


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_with_one_length_dividing_the_log_probs_aims_at_pi_ref_exp_t_beta_r(beta: float) -> None:
    log_pi = train(GRADED, EQUAL, FlowRLConfig(beta=beta))
    assert kl(log_pi, (REF + 6 * beta * GRADED).log_softmax(0)) < EXACT


def test_the_two_forms_are_the_same_objective_where_all_answers_have_one_length() -> None:
    paper = FlowRLConfig(beta=0.5)
    whole = FlowRLConfig(beta=3.0, length_normalization="residual")
    log_z = torch.tensor(0.2, dtype=torch.float64)
    ours = force(REF + 0.1 * GRADED, 6 * log_z, GRADED, EQUAL, whole)
    torch.testing.assert_close(force(REF + 0.1 * GRADED, log_z, GRADED, EQUAL, paper), ours, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("beta", [2.0, 15.0])
def test_a_large_beta_conditions_on_being_right_and_tilts_to_long_answers(beta: float) -> None:
    """Reward 0 or 1: within the right answers pi_ref exp(lambda |y|), lambda > 0, and no wrong ones are left."""
    target = tilted(RIGHT.double(), UNEQUAL, beta)
    assert target[~RIGHT].exp().sum() < 5e-2 / beta
    slope = (target - REF)[RIGHT] / UNEQUAL[RIGHT]
    torch.testing.assert_close(slope, slope[0].expand_as(slope))
    assert slope[0] > 0
    conditioned = REF[RIGHT].log_softmax(0)
    mean_length = (conditioned.exp() * UNEQUAL[RIGHT]).sum()
    assert (target[RIGHT].log_softmax(0).exp() * UNEQUAL[RIGHT]).sum() > mean_length + 0.5
    ours = (REF + beta * RIGHT).log_softmax(0)[RIGHT].log_softmax(0)
    torch.testing.assert_close(ours, conditioned)


@pytest.mark.parametrize(("before", "ratio"), [(0.1, 4.0), (0.2, 2.7)])
def test_ten_against_twenty_tokens(before: float, ratio: float) -> None:
    """Two right answers of equal reference mass, beta large: how much the longer one is favoured."""
    low, high = 0.0, 10.0
    for _ in range(200):
        tilt = (low + high) / 2
        low, high = (tilt, high) if before / 2 * (torch.tensor([10.0, 20.0]) * tilt).exp().sum() < 1 else (low, tilt)
    assert 2.718281828 ** (10 * tilt) == pytest.approx(ratio, abs=0.1)


@pytest.mark.parametrize(
    ("normalization", "power"), [("log_probs", 2), ("residual", 2), ("residual_root", 1), ("none", 0)]
)
def test_a_constant_log_z_shifts_the_target_by_powers_of_the_length(normalization: str, power: int) -> None:
    """delta / divisor is then one number, not zero: a factor exp(c |y|^power) stays."""
    config = FlowRLConfig(beta=0.3, length_normalization=normalization)
    log_pi = train(GRADED, UNEQUAL, config, constant=0.05)
    ideal = UNEQUAL * config.beta * GRADED - 0.05 * UNEQUAL if normalization == "log_probs" else config.beta * GRADED
    left = (log_pi - REF - ideal).unsqueeze(-1)
    design = torch.stack([UNEQUAL.double() ** power, torch.ones(ANSWERS)], dim=1)
    fit = torch.linalg.lstsq(design, left).solution
    assert (design @ fit - left).abs().max() < 1e-3
    assert power == 0 or abs(fit[0].item()) > 1e-4


@pytest.mark.parametrize("normalization", ["log_probs", *WHOLE])
def test_at_the_target_any_group_knows_log_z(normalization: str) -> None:
    """Whatever is drawn: so a small group biases nothing, with the raw reward."""
    config = FlowRLConfig(beta=1.0, length_normalization=normalization)
    plain = (REF + GRADED).log_softmax(0)
    log_pi = tilted(GRADED, UNEQUAL, 1.0) if normalization == "log_probs" else plain
    log_z = best_log_z(log_pi, GRADED, UNEQUAL, config)
    drawn = torch.randint(ANSWERS, (5, 3), generator=torch.Generator().manual_seed(2))
    for rows in drawn:
        group = group_log_z(GRADED[rows], (log_pi - REF)[rows], UNEQUAL[rows], [0, 0, 0], config)
        torch.testing.assert_close(group, log_z.expand(3), atol=1e-6, rtol=1e-6, check_dtype=False)


def normalised_force(p: float, before: float, right: bool, config: FlowRLConfig, group: int) -> float:
    """Derivative of the loss by log pi of a right or a wrong answer, over what the rest of its group may be.

    One length; the policy has the success rate ``p``, the reference ``before``, and all else in their proportion.
    """
    length = torch.full((group,), 6)
    total = 0.0
    for others in range(group):
        correct = torch.tensor([right] + [True] * others + [False] * (group - 1 - others))
        rewards = correct.float().unsqueeze(-1)
        reward = compute_grpo_outcome_advantage(rewards, torch.ones_like(rewards), np.zeros(group))[0][:, 0]
        log_ratio = torch.where(correct, math.log(p / before), math.log((1 - p) / (1 - before))).double()
        log_z = torch.zeros(group)
        if config.partition == "group_mean":
            log_z = group_log_z(reward, log_ratio, length, [0] * group, config)
        log_prob = log_ratio.clone().requires_grad_()
        loss, _ = flowrl_loss(
            log_prob=tokens(log_prob),
            old_log_prob=tokens(log_ratio),
            ref_log_prob=torch.zeros(group, LONGEST),
            log_z=log_z,
            reward=reward,
            response_mask=torch.arange(LONGEST) < length.unsqueeze(-1),
            config=config,
            loss_weights=torch.ones(group),
        )
        probability = math.comb(group - 1, others) * p**others * (1 - p) ** (group - 1 - others)
        total += probability * torch.autograd.grad(loss, log_prob)[0][0].item()
    return total


@pytest.mark.parametrize("partition", ["learned", "group_mean"])
@pytest.mark.parametrize("normalization", ["log_probs", *WHOLE])
@pytest.mark.parametrize("beta", [0.05, 0.2])
def test_with_normalised_rewards_beta_is_a_temperature_too(normalization: str, beta: float, partition: str) -> None:
    """logit p = logit p0 + gain(p): there right and wrong answers are pushed alike, beside it they aren't."""
    config = FlowRLConfig(beta=beta, length_normalization=normalization, partition=partition)
    p = target.success_rate(0.2, config, normalised=True, rollouts=8, length=6)

    def push(rate: float) -> float:
        return normalised_force(rate, 0.2, True, config, 8) - normalised_force(rate, 0.2, False, config, 8)

    assert 0.2 < p < 0.95
    assert abs(push(p)) < 1e-5
    assert push(p - 0.02) < -1e-4 and push(p + 0.02) > 1e-4, "and it is stable"


def test_the_mean_difference_of_normalised_rewards() -> None:
    """By simulation, and its range for eight rollouts."""
    gaps = [target.advantage_gap(p / 100, 8) for p in range(1, 100)]
    assert min(gaps) == pytest.approx(1.74, abs=0.01) and max(gaps) == pytest.approx(2.475, abs=0.1)
    right = (torch.rand(200_000, 8, generator=torch.Generator().manual_seed(0)) < 0.3).float()
    normalised = (right - right.mean(-1, keepdim=True)) / (right.std(-1, keepdim=True) + 1e-6)
    simulated = normalised[right == 1].mean() - normalised[right == 0].mean()
    assert target.advantage_gap(0.3, 8) == pytest.approx(simulated.item(), abs=0.01)


@pytest.mark.parametrize(("beta", "p"), [(3.0, 0.83), (5.0, 0.97)])
def test_beta_of_the_undivided_target_is_the_log_of_the_odds(beta: float, p: float) -> None:
    config = FlowRLConfig(beta=beta, length_normalization="residual")
    assert target.success_rate(0.2, config, normalised=False, rollouts=8, length=100) == pytest.approx(p, abs=0.005)
    reward = RIGHT.double()
    before = REF[RIGHT].exp().sum().item()
    log_pi = train(reward, UNEQUAL, config)
    expected = target.success_rate(before, config, normalised=False, rollouts=8, length=1)
    assert log_pi[RIGHT].exp().sum().item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(("t_beta", "p"), [(1.0, 0.59), (2.0, 0.97)])
def test_the_published_form_at_small_beta(t_beta: float, p: float) -> None:
    config = FlowRLConfig(beta=t_beta / 10)
    assert target.success_rate(0.2, config, normalised=True, rollouts=8, length=10) == pytest.approx(p, abs=0.01)


def test_a_saturated_target_is_named_with_a_beta_that_would_not_be() -> None:
    line = target.saturation(FlowRLConfig(), normalised=True, rollouts=8, longest=32)
    assert line.startswith("flowrl.beta=15: the target is saturated for answers of more than 0.") and "\n" not in line
    advised = float(line.partition("beta=")[2].partition("; beta=")[2].split()[0])
    assert target.saturation(FlowRLConfig(beta=advised), normalised=True, rollouts=8, longest=32) is None
    plus = FlowRLConfig(beta=3.0, length_normalization="residual", partition="group_mean")
    assert target.saturation(plus, normalised=False, rollouts=8, longest=8192) is None
    assert "beta=5" in target.saturation(replace(plus, beta=15.0), normalised=False, rollouts=8, longest=8192)
