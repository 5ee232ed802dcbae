"""``flowrl_loss`` against the NumPy reference, and its behaviour on splits, empty rows and extreme values."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import reference
import torch

from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.objective import flowrl_loss

PAPER = FlowRLConfig()
EVERY_OPTION = [
    FlowRLConfig(
        beta=7.0,
        length_normalization=normalize,
        importance_weight=weight,
        importance_ratio=ratio,
        clip_low=low,
        clip_high=high,
        clamp_max=1.05,
    )
    for normalize, weight, ratio, (low, high) in itertools.product(
        ("log_probs", "residual", "residual_root", "none"),
        ("clip", "clamp_max", "none"),
        ("sequence", "geometric_mean"),
        ((0.2, 0.2), (0.02, 0.08)),
    )
    if weight == "clip" or low == 0.2
]
PER_ROW, PER_TOKEN = ("log_z", "reward"), ("log_prob", "old_log_prob", "ref_log_prob", "response_mask")
WEIGHTS = np.array([0.3, 0.1, 0.0, 0.2, 0.05, 0.15, 0.1, 0.1])


def evaluate(batch: reference.Batch, config=PAPER, loss_weights=None, dtype=torch.float64):
    """Loss, metrics and the gradients with respect to log_prob and log_z."""
    tensors = {name: torch.tensor(getattr(batch, name)) for name in (*PER_TOKEN, *PER_ROW)}
    tensors = {name: t if t.dtype == torch.bool else t.to(dtype) for name, t in tensors.items()}
    leaves = {name: tensors[name].requires_grad_() for name in ("log_prob", "log_z")}
    weights = None if loss_weights is None else torch.as_tensor(loss_weights, dtype=dtype)
    loss, metrics = flowrl_loss(**tensors, config=config, loss_weights=weights)
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    return loss, metrics, gradients


def describe(config: FlowRLConfig) -> str:
    return f"{config.length_normalization}-{config.importance_weight}{config.clip_low}-{config.importance_ratio}"


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["mean", "weighted"])
@pytest.mark.parametrize("config", EVERY_OPTION, ids=describe)
def test_loss_gradient_and_metrics_equal_the_reference(config, weights):
    batch = reference.random_batch(rows=8, tokens=7, seed=3)
    row_weights = np.full(8, 1 / 8) if weights is None else weights
    counted = row_weights > 0
    kept = reference.Batch(**{name: value[counted] for name, value in vars(batch).items()})

    loss, metrics, gradients = evaluate(batch, config, weights)

    assert loss.item() == pytest.approx(reference.loss(batch, config, row_weights), rel=1e-5)
    for name, expected in reference.gradients(batch, config, row_weights).items():
        np.testing.assert_allclose(gradients[name], expected, rtol=1e-5, atol=1e-5)
    expected = reference.metrics(kept, config, row_weights[counted])
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert all(m.shape == () and m.dtype == torch.float32 and not m.requires_grad for m in metrics.values())


def test_the_reference_batch_visits_both_sides_of_the_clip_and_its_inside():
    metrics = reference.metrics(reference.random_batch(8, 7, seed=3), PAPER, np.full(8, 1 / 8))
    assert metrics["clip_fraction_low"] > 0 and metrics["clip_fraction_high"] > 0 and metrics["clip_fraction"] < 1


def test_no_gradient_flows_through_the_importance_weight():
    batch = reference.random_batch(1, 5, seed=0, drift=0.01)
    _, metrics, gradients = evaluate(batch)
    assert metrics["clip_fraction"] == 0 and metrics["importance_weight"] != 1
    mask = torch.tensor(batch.response_mask, dtype=torch.float64)
    expected = 2 * metrics["importance_weight"] * metrics["residual"] * mask / mask.sum()
    torch.testing.assert_close(gradients["log_prob"], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize(("low", "high"), [(0.2, 0.28), (0.2, None), (None, 0.28)])
def test_gflowrls_flow_gap_is_clipped_at_the_old_policy(low, high):
    """L = w (clip(g) + log(pi/pi_old)/|y|)^2, g = Z + log(pi_old/pi_ref)/|y| - beta r (arXiv 2607.13394)."""
    batch = reference.random_batch(8, 7, seed=4)
    config = FlowRLConfig(beta=1.0, importance_weight="clamp_max", clamp_max=1.2, gap_clip_low=low, gap_clip_high=high)
    _, metrics, gradients = evaluate(batch, config)
    expected, gaps = np.zeros_like(batch.log_prob), []
    for row, mask in enumerate(batch.response_mask):
        moved = (batch.log_prob - batch.old_log_prob)[row, mask]
        gap = batch.log_z[row] + (batch.old_log_prob - batch.ref_log_prob)[row, mask].mean() - batch.reward[row]
        gaps.append(gap)
        clipped = min(max(gap, -np.inf if low is None else -low), np.inf if high is None else high)
        weight = min(np.exp(moved.sum()), 1.2)
        expected[row, mask] = weight * 2 * (clipped + moved.mean()) / mask.sum() / len(batch.log_prob)
    assert min(gaps) < -0.2 and max(gaps) > 0.28
    np.testing.assert_allclose(gradients["log_prob"], expected, rtol=1e-4, atol=1e-6)


def test_old_and_reference_policy_and_reward_receive_no_gradient():
    batch = reference.random_batch(4, 5, seed=0)
    tensors = {name: torch.tensor(value) for name, value in vars(batch).items()}
    for name in ("log_prob", "log_z", "old_log_prob", "ref_log_prob", "reward"):
        tensors[name].requires_grad_()
    flowrl_loss(**tensors, config=PAPER)[0].backward()
    assert {name for name, tensor in tensors.items() if tensor.grad is not None} == {"log_prob", "log_z"}


@pytest.mark.parametrize("seed", range(5))
def test_any_split_gives_the_same_loss_gradient_and_metrics(seed):
    """Over micro-batches the parts add up; over ranks, where the engine averages, weights are multiplied by ranks."""
    batch, count, ranks = reference.random_batch(12, 9, seed), 12, 2
    loss, metrics, gradients = evaluate(batch)

    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.choice(np.arange(1, count), size=rng.integers(1, 6), replace=False))
    pieces = np.split(rng.permutation(count), cuts)
    total, summed = 0.0, dict.fromkeys(metrics, 0.0)
    collected = {name: torch.zeros_like(gradient) for name, gradient in gradients.items()}
    for rows in pieces:
        width = 1 + np.flatnonzero(batch.response_mask[rows].any(0)).max()  # a micro-batch is padded to its longest
        piece = {name: getattr(batch, name)[rows] for name in PER_ROW}
        piece |= {name: getattr(batch, name)[rows, :width] for name in PER_TOKEN}
        part, part_metrics, part_gradients = evaluate(
            reference.Batch(**piece), PAPER, np.full(len(rows), ranks / count)
        )
        total += part.item() / ranks
        for name, value in part_metrics.items():
            summed[name] = max(summed[name], value) if name.endswith("_max") else summed[name] + value / ranks
        collected["log_prob"][rows, :width] += part_gradients["log_prob"] / ranks
        collected["log_z"][rows] += part_gradients["log_z"] / ranks

    assert total == pytest.approx(loss.item(), rel=1e-5)
    for name, value in metrics.items():
        torch.testing.assert_close(summed[name], value, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(collected[name], gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf, 0.0])
@pytest.mark.parametrize("weights", [None, np.array([0.5, 0.2, 0.1, 0.2])], ids=["mean", "weighted"])
@pytest.mark.parametrize("config", [PAPER, replace(PAPER, length_normalization="none", importance_weight="clamp_max")])
def test_an_empty_row_contributes_nothing(poison, weights, config):
    batch = reference.random_batch(4, 6, seed=1)
    widened = {name: np.concatenate([value, np.full_like(value[:1], poison)]) for name, value in vars(batch).items()}
    widened["response_mask"][-1] = False
    widened_weights = None if weights is None else np.append(weights, 0.7)

    loss, metrics, gradients = evaluate(batch, config, weights)
    padded_loss, padded_metrics, padded_gradients = evaluate(reference.Batch(**widened), config, widened_weights)

    assert padded_loss == loss and padded_metrics == metrics
    for name, gradient in padded_gradients.items():
        assert torch.equal(gradient[:-1], gradients[name]) and not gradient[-1].any()


def test_a_row_of_weight_zero_contributes_nothing():
    batch = reference.random_batch(3, 6, seed=1)
    batch.log_prob[1] = np.nan
    loss, metrics, gradients = evaluate(batch, PAPER, np.array([0.5, 0.0, 0.5]))
    kept = reference.Batch(**{name: value[[0, 2]] for name, value in vars(batch).items()})
    expected_loss, expected_metrics, _ = evaluate(kept, PAPER, np.array([0.5, 0.5]))
    assert loss == expected_loss and metrics == expected_metrics and not gradients["log_prob"][1].any()


@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["log_prob", "old_log_prob", "ref_log_prob"])
def test_masked_positions_contribute_nothing(name, poison):
    batch = reference.random_batch(6, 8, seed=2)
    loss, metrics, gradients = evaluate(batch)
    poisoned = replace(batch, **{name: np.where(batch.response_mask, getattr(batch, name), poison)})
    poisoned_loss, poisoned_metrics, poisoned_gradients = evaluate(poisoned)
    assert poisoned_loss == loss and poisoned_metrics == metrics
    assert all(torch.equal(poisoned_gradients[key], gradients[key]) for key in gradients)


@pytest.mark.parametrize("weights", [None, np.full(3, 1 / 3)], ids=["mean", "weighted"])
def test_a_batch_of_empty_rows_gives_a_zero_that_can_be_differentiated(weights):
    batch = reference.random_batch(3, 4, seed=0)
    loss, metrics, gradients = evaluate(replace(batch, response_mask=np.zeros((3, 4), bool)), PAPER, weights)
    assert loss == 0 and all(value == 0 for value in metrics.values())
    assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize(
    ("weight", "ratio", "drift", "expected"),
    [
        ("clip", "sequence", +0.02, 1.2),
        ("clip", "sequence", -0.02, 0.8),
        ("clip", "geometric_mean", +0.02, np.exp(0.02)),
        ("clip", "geometric_mean", -0.02, np.exp(-0.02)),
        ("clamp_max", "sequence", +0.02, 10.0),
        ("clamp_max", "sequence", -0.02, 0.0),
        ("none", "sequence", +0.02, 1.0),
    ],
)
def test_8000_drifting_tokens_do_not_overflow(weight, ratio, drift, expected):
    batch = reference.random_batch(2, 8000, seed=0)
    drifted = replace(batch, log_prob=batch.old_log_prob + drift, response_mask=np.ones((2, 8000), bool))
    config = replace(PAPER, importance_weight=weight, importance_ratio=ratio)
    loss, metrics, gradients = evaluate(drifted, config)
    assert metrics["importance_weight"].item() == pytest.approx(expected, rel=1e-4, abs=1e-30)
    assert loss.isfinite() and all(value.isfinite() for value in metrics.values())
    assert all(gradient.isfinite().all() for gradient in gradients.values())


def test_one_vanished_token_does_not_make_the_kl_metrics_infinite():
    batch = reference.random_batch(2, 8, seed=0)
    batch.log_prob[:, 0] = -200.0
    _, metrics, _ = evaluate(batch)
    assert metrics["ref_kl"].isfinite() and metrics["ref_kl"] > 1e6 and metrics["approx_kl"] > 10
    batch.old_log_prob[:, 0] = -500.0
    assert evaluate(batch)[1]["approx_kl"].isfinite()


def test_bfloat16_inputs_are_computed_in_float32():
    batch = reference.random_batch(4, 64, seed=5)
    rounded = {
        name: torch.tensor(value).bfloat16().double().numpy() if value.dtype == np.float64 else value
        for name, value in vars(batch).items()
    }
    loss, metrics, _ = evaluate(batch, dtype=torch.bfloat16)
    expected_loss, expected_metrics, _ = evaluate(reference.Batch(**rounded))
    assert loss.dtype == torch.float32 and loss == expected_loss and metrics == expected_metrics


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [("log_z", (4, 1), "(4,)"), ("reward", (1,), "(4,)"), ("ref_log_prob", (4, 1), "(4, 5)"), ("log_prob", (4,), "")],
)
def test_shapes_that_would_broadcast_are_refused(name, shape, expected):
    batch = replace(reference.random_batch(4, 5, seed=0), **{name: np.zeros(shape)})
    with pytest.raises(ValueError, match=rf"{name} must have shape .*got") as caught:
        evaluate(batch)
    assert expected in str(caught.value) and str(shape) in str(caught.value)
