"""What the objective is known to be, checked on policies whose every answer can be enumerated."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.objective import flowrl_loss

VOCABULARY, TOKENS = 3, 3
ANSWERS = torch.tensor(list(itertools.product(range(VOCABULARY), repeat=TOKENS)))  # (27, 3)
PREFIXES = [prefix for n in range(TOKENS) for prefix in itertools.product(range(VOCABULARY), repeat=n)]
CONTEXT = torch.tensor([[PREFIXES.index(tuple(y[:t])) for t in range(TOKENS)] for y in ANSWERS.tolist()])
FULL = torch.ones(ANSWERS.shape, dtype=torch.bool)
RAW = FlowRLConfig(beta=1.5, length_normalization="none", importance_weight="none")
NORMALIZED = replace(RAW, length_normalization="log_probs")


def policy(seed: int) -> Tensor:
    """Logits of an autoregressive policy, one row for each prefix: (13, 3)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(PREFIXES), VOCABULARY, generator=generator, dtype=torch.float64)


def token_log_probs(logits: Tensor, answers: slice | Tensor = slice(None)) -> Tensor:
    """log pi of each token of the chosen answers, (B, 3)."""
    return logits.log_softmax(-1)[CONTEXT[answers], ANSWERS[answers]]


def rewards(seed: int, count: int = len(ANSWERS)) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradient(logits: Tensor, log_prob: Tensor, ref: Tensor, log_z: Tensor, reward: Tensor, config, weights=None):
    """Gradient of the on-policy loss with respect to the policy's logits."""
    inputs = {"log_prob": log_prob, "old_log_prob": log_prob.detach(), "ref_log_prob": ref, "log_z": log_z}
    mask = torch.ones_like(log_prob, dtype=torch.bool)
    loss, _ = flowrl_loss(**inputs, reward=reward, response_mask=mask, config=config, loss_weights=weights)
    return torch.autograd.grad(loss, logits, retain_graph=True)[0]


def target(ref_logits: Tensor, reward: Tensor, config: FlowRLConfig) -> tuple[Tensor, Tensor]:
    """The distribution at which every residual is zero, as log pi*(y) (27,), and its log Z*, a scalar."""
    norm = TOKENS if config.length_normalization == "log_probs" else 1
    unnormalized = token_log_probs(ref_logits).sum(-1) + norm * config.beta * reward
    return unnormalized.log_softmax(0), unnormalized.logsumexp(0) / norm


@pytest.mark.parametrize("importance_weight", ["clip", "clamp_max", "none"])
@pytest.mark.parametrize("log_z", [0.0, 2.5])
def test_on_policy_gradient_of_the_raw_loss_is_twice_that_of_the_reverse_kl(importance_weight, log_z):
    logits, ref_logits, reward = policy(0).requires_grad_(), policy(1), rewards(2)
    log_prob = token_log_probs(logits)
    probability = log_prob.sum(-1).exp()
    config = replace(RAW, importance_weight=importance_weight)
    ours = gradient(
        logits, log_prob, token_log_probs(ref_logits), torch.full((27,), log_z), reward, config, probability.detach()
    )
    log_target, _ = target(ref_logits, reward, RAW)
    kl = (probability * (probability.log() - log_target)).sum()
    torch.testing.assert_close(ours, 2 * torch.autograd.grad(kl, logits)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("log_z", ["constant", "group mean", "group mean in the graph"])
def test_on_policy_gradient_is_reinforce_with_the_kl_in_the_reward(log_z):
    """log Z is a baseline: at the group mean, GRPO without the division by std and a KL coefficient of 1 / beta."""
    prompts, group, beta = 3, 5, NORMALIZED.beta
    drawn = torch.randint(27, (prompts * group,), generator=torch.Generator().manual_seed(4))
    logits, reward = policy(0).requires_grad_(), rewards(2, prompts * group)
    log_prob, ref = token_log_probs(logits, drawn), token_log_probs(policy(1), drawn)
    score, ref_score = log_prob.mean(-1), ref.mean(-1)

    shaped = reward - (score - ref_score) / beta
    group_mean = shaped.view(prompts, group).mean(-1).repeat_interleave(group)
    baseline = {"constant": torch.full_like(shaped, 0.7), "group mean": group_mean.detach()}.get(log_z, group_mean)
    ours = gradient(logits, log_prob, ref, beta * baseline, reward, NORMALIZED)

    advantage = (shaped - baseline).detach()
    reinforce = -2 * beta * (advantage * score).mean()
    torch.testing.assert_close(ours, torch.autograd.grad(reinforce, logits)[0], rtol=1e-4, atol=1e-5)


def test_a_group_of_equal_rewards_pulls_the_policy_to_the_reference():
    logits, ref_logits = policy(0).requires_grad_(), policy(1)
    log_prob = token_log_probs(logits)
    probability = log_prob.sum(-1).exp()
    ours = gradient(
        logits, log_prob, token_log_probs(ref_logits), torch.zeros(27), torch.zeros(27), RAW, probability.detach()
    )
    kl_to_ref = (probability * (log_prob - token_log_probs(ref_logits)).sum(-1)).sum()
    torch.testing.assert_close(ours, 2 * torch.autograd.grad(kl_to_ref, logits)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [RAW, NORMALIZED], ids=["raw", "length-normalized"])
def test_loss_and_gradient_vanish_at_the_target(config):
    ref_logits, reward = policy(1), rewards(2)
    log_target, log_z = target(ref_logits, reward, config)
    # The target as an autoregressive policy: the logit of a token is the log-mass of the answers that go on with it.
    logits = torch.full((len(PREFIXES), VOCABULARY), -math.inf, dtype=torch.float64)
    for answer, mass in zip(ANSWERS, log_target, strict=True):
        for token, prefix in enumerate(PREFIXES.index(tuple(answer[:n].tolist())) for n in range(TOKENS)):
            logits[prefix, answer[token]] = torch.logaddexp(logits[prefix, answer[token]], mass)
    logits.requires_grad_()
    log_prob, log_z = token_log_probs(logits), log_z.expand(27).clone().requires_grad_()
    torch.testing.assert_close(log_prob.sum(-1), log_target)

    inputs = {"log_prob": log_prob, "old_log_prob": log_prob.detach(), "ref_log_prob": token_log_probs(ref_logits)}
    loss, metrics = flowrl_loss(**inputs, log_z=log_z, reward=reward, response_mask=FULL, config=config)
    gradients = torch.autograd.grad(loss, [logits, log_z])
    assert loss < 1e-10 and metrics["residual_abs_max"] < 1e-5
    assert all(g.abs().max() < 1e-5 for g in gradients)

    off_target, _ = flowrl_loss(**inputs, log_z=log_z + 0.1, reward=reward, response_mask=FULL, config=config)
    assert off_target.item() == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize("config", [RAW, NORMALIZED], ids=["raw", "length-normalized"])
def test_training_reaches_the_target_and_its_partition_function(config):
    ref_logits, reward = policy(1), rewards(2) / 2
    log_target, log_z_target = target(ref_logits, reward, config)
    logits, log_z = policy(0).requires_grad_(), torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits, log_z], lr=0.05)
    for _ in range(800):
        log_prob = token_log_probs(logits)
        loss, _ = flowrl_loss(
            log_prob=log_prob,
            old_log_prob=log_prob,
            ref_log_prob=token_log_probs(ref_logits),
            log_z=log_z.expand(27),
            reward=reward,
            response_mask=FULL,
            config=config,
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    log_pi = token_log_probs(logits).sum(-1)
    assert (log_pi.exp() * (log_pi - log_target)).sum() < 1e-4
    assert log_z.item() == pytest.approx(log_z_target.item(), abs=1e-2)
