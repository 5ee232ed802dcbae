"""verl's rollout correction and FlowRL's own weight, against loops in float64: what multiplies what."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask
from verl.utils import tensordict_utils as tu

from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.objective import flowrl_loss
from recipe.flowrl.rollout_weights import weigh_gradients
from recipe.flowrl.worker import flowrl_worker_loss

CONFIGS = {
    "paper": FlowRLConfig(beta=2.0),
    "geometric mean": FlowRLConfig(beta=2.0, importance_ratio="geometric_mean"),
    "clamp": FlowRLConfig(beta=2.0, importance_weight="clamp_max", clamp_max=1.1),
    "none": FlowRLConfig(beta=2.0, importance_weight="none"),
}
ROWS, TOKENS = 6, 7


def lag(batch: reference.Batch, seed: int) -> np.ndarray:
    """Log-probs of the policy that drew the responses, some steps behind pi_old, (B, T)."""
    return batch.old_log_prob - np.random.default_rng(seed).normal(0.0, 0.3, batch.old_log_prob.shape)


def weights_in_words(batch: reference.Batch, rollout: np.ndarray, level: str, threshold: float | str) -> np.ndarray:
    """rho, (B, T): the ratio pi_old / pi_rollout of a token or of its response, cut down, or 0 outside an interval."""
    low, high = (float(bound) for bound in f"0_{threshold}".split("_")[-2:])
    rho = np.zeros_like(rollout)
    for row, mask in enumerate(batch.response_mask):
        tokens = np.flatnonzero(mask)
        for token in tokens:
            ratio = 1.0
            for t in tokens if level == "sequence" else [token]:
                ratio *= np.exp(batch.old_log_prob[row, t]) / np.exp(rollout[row, t])
            if isinstance(threshold, str):
                rho[row, token] = ratio if low <= ratio <= high else 0.0
            else:
                rho[row, token] = min(ratio, high)
    return rho


def gradients(
    batch: reference.Batch, config: FlowRLConfig, weights: torch.Tensor | None, mask: torch.Tensor | None = None
) -> tuple[np.ndarray, np.ndarray, dict[str, float], float]:
    """Of log_prob and log_z by what is in use; the metrics, and the loss; each row weighs 1/B."""
    tensors = {name: torch.tensor(value) for name, value in vars(batch).items()}
    leaves = [tensors[name].requires_grad_() for name in ("log_prob", "log_z")]
    if mask is not None:
        tensors["response_mask"] = mask
    if weights is not None:
        tensors["log_prob"], tensors["log_z"], _ = weigh_gradients(*leaves, weights, tensors["response_mask"])
    row_weights = torch.full((ROWS,), 1 / ROWS)
    loss, metrics = flowrl_loss(**tensors, config=config, loss_weights=row_weights)
    loss.backward()
    return *(leaf.grad.numpy() for leaf in leaves), {name: value.item() for name, value in metrics.items()}, loss.item()


def verls(batch: reference.Batch, rollout: np.ndarray, **options: object) -> tuple[torch.Tensor | None, torch.Tensor]:
    """Its weights and its mask, from the same numbers."""
    old, drew, mask = (torch.tensor(value) for value in (batch.old_log_prob, rollout, batch.response_mask))
    weights, mask, _ = compute_rollout_correction_and_rejection_mask(old, drew, mask.long(), **options)
    return weights and weights.batch["rollout_is_weights"], mask


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("threshold", [1.2, "0.8_1.3"])
def test_weights_multiply_each_tokens_gradient(level: str, threshold: float | str, config: FlowRLConfig) -> None:
    batch = reference.random_batch(ROWS, TOKENS, seed=3)
    rollout = lag(batch, seed=4)
    rho = weights_in_words(batch, rollout, level, threshold)
    assert rho.min() == 0 and np.ptp(rho[batch.response_mask]) > 0.1
    wanted = reference.gradients(batch, config, np.full(ROWS, 1 / ROWS))
    mean = rho.sum(-1) / batch.response_mask.sum(-1)

    weights, _ = verls(batch, rollout, rollout_is=level, rollout_is_threshold=threshold)
    by_log_prob, by_log_z, metrics, loss = gradients(batch, config, weights)
    np.testing.assert_allclose(by_log_prob, wanted["log_prob"] * rho, rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(by_log_z, wanted["log_z"] * mean, rtol=2e-5, atol=2e-6)

    _, _, unweighted, plain_loss = gradients(batch, config, None)
    assert metrics == pytest.approx(unweighted) and loss == pytest.approx(plain_loss)


def test_a_weight_of_the_response_multiplies_its_loss() -> None:
    """The gradient is that of v w delta^2, v held where it is: taken from the numbers, not from the formula."""
    config = CONFIGS["paper"]
    batch = reference.random_batch(ROWS, TOKENS, seed=5)
    rollout = lag(batch, seed=6)
    v = weights_in_words(batch, rollout, "sequence", 2.0).max(-1)
    wanted = reference.gradients(batch, config, v / ROWS)
    weights, _ = verls(batch, rollout, rollout_is="sequence", rollout_is_threshold=2.0)
    by_log_prob, by_log_z, _, _ = gradients(batch, config, weights)
    np.testing.assert_allclose(by_log_prob, wanted["log_prob"], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(by_log_z, wanted["log_z"], rtol=2e-5, atol=2e-6)


def test_rejected_responses_leave_and_the_others_stay_as_they_are() -> None:
    config = CONFIGS["paper"]
    batch = reference.random_batch(ROWS, TOKENS, seed=7)
    rollout = lag(batch, seed=8)
    log_ratio = np.where(batch.response_mask, batch.old_log_prob - rollout, 0.0)
    k3 = (np.exp(log_ratio) - 1 - log_ratio).sum(-1) / batch.response_mask.sum(-1)
    keep = k3 <= np.median(k3)
    assert 0 < keep.sum() < ROWS
    _, mask = verls(batch, rollout, rollout_rs="seq_mean_k3", rollout_rs_threshold=float(np.median(k3)))
    by_log_prob, by_log_z, metrics, loss = gradients(batch, config, None, mask)
    row_weights = np.where(keep, 1 / ROWS, 0.0)
    assert loss == pytest.approx(reference.loss(batch, config, row_weights), rel=1e-5)
    wanted = reference.gradients(batch, config, row_weights)
    np.testing.assert_allclose(by_log_prob, wanted["log_prob"], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(by_log_z, wanted["log_z"], rtol=2e-5, atol=2e-6)
    assert metrics["residual"] == pytest.approx(np.dot(row_weights, reference.residuals(batch, config)), rel=1e-5)


def test_what_lies_outside_of_the_mask_does_not_count() -> None:
    log_prob, log_z = torch.zeros(2, 3, requires_grad=True), torch.zeros(2, requires_grad=True)
    mask = torch.tensor([[1, 0, 1], [0, 0, 0]])
    weights = torch.tensor([[2.0, torch.nan, 4.0], [torch.inf, 1.0, 1.0]])
    weighed, weighed_z, mean = weigh_gradients(log_prob, log_z, weights, mask)
    (weighed.sum() + weighed_z.sum()).backward()
    assert log_prob.grad.tolist() == [[2.0, 0.0, 4.0], [0.0, 0.0, 0.0]]
    assert log_z.grad.tolist() == mean.tolist() == [3.0, 0.0]


def test_the_worker_takes_the_column_that_verl_adds() -> None:
    """Each token's gradient is multiplied by its weight, and the mean weight is told; without the column nothing is."""
    responses = (3, 5)
    weights = [torch.tensor([0.5, 1.0, 2.0]), torch.tensor([0.0, 1.5, 1.0, 0.25, 2.0])]

    def jagged(values: list[torch.Tensor]) -> torch.Tensor:
        return torch.nested.as_nested_tensor(values, layout=torch.jagged)

    def gradient(extra: dict[str, torch.Tensor]) -> tuple[list[torch.Tensor], dict[str, object]]:
        fields = {
            "advantages": jagged([torch.full((n,), 0.7) for n in responses]),
            "old_log_probs": jagged([torch.full((n,), -1.0) for n in responses]),
            "ref_log_prob": jagged([torch.full((n,), -1.1) for n in responses]),
            "response_mask": jagged([torch.ones(n, dtype=torch.int64) for n in responses]),
            "prompts": jagged([torch.arange(2) for _ in responses]),
            "responses": jagged([torch.arange(n) for n in responses]),
            "input_ids": jagged([torch.arange(2 + n) for n in responses]),
        }
        data = tu.get_tensordict({**fields, **extra}, {"dp_size": 1, "global_batch_size": 2})
        log_probs = jagged([torch.full((2 + n,), -0.9) for n in responses]).requires_grad_()
        output = {"log_probs": log_probs, "log_z": torch.tensor([0.1, 0.2])}
        loss, metrics = flowrl_worker_loss(CONFIGS["paper"], model_output=output, data=data)
        loss.backward()
        # verl's engine puts a response token's log-prob where the token before it is.
        return [row[1 : 1 + n] for row, n in zip(log_probs.grad.unbind(), responses, strict=True)], metrics

    plain, without = gradient({})
    weighed, metrics = gradient({"rollout_is_weights": jagged(weights)})
    for before, after, rho in zip(plain, weighed, weights, strict=True):
        assert before.abs().min() > 0
        torch.testing.assert_close(after, before * rho)
    told = metrics["flowrl/rollout_weight"].aggregate()
    assert told == pytest.approx(sum(rho.mean().item() for rho in weights) / 2)
    assert "flowrl/rollout_weight" not in without
