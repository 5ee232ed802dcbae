"""The FlowRL loss (arXiv 2509.15207v3, Eq. 6 and 7). One function; no verl, no distributed calls.

For a prompt x, its response y of |y| tokens and its reward r, in the paper normalised within the prompt's group::

    L = w * delta(x, y)^2
    w = clip(pi(y|x) / pi_old(y|x), 1 - clip_low, 1 + clip_high), no gradient

    length_normalization   delta, the trajectory-balance residual              delta = 0 for every y
    log_probs (the paper)  log Z + log(pi/pi_ref)(y|x) / |y| - beta r          pi = pi_ref exp(|y| (beta r - log Z))
    residual               (log Z + log(pi/pi_ref)(y|x) - beta r) / |y|        pi = pi_ref exp(beta r) / Z
    residual_root          (log Z + log(pi/pi_ref)(y|x) - beta r) / sqrt(|y|)  pi = pi_ref exp(beta r) / Z
    none                   log Z + log(pi/pi_ref)(y|x) - beta r                pi = pi_ref exp(beta r) / Z

log pi(y|x) is a sum over the response tokens. The right column is where the loss is stationary if the reward is raw and
log Z(x) free; log Z follows from sum_y pi(y|x) = 1. Dividing the log-probs alone tilts the policy to long answers among
those of equal reward, dividing the whole residual doesn't. A reward normalised in its group moves the target with the
policy. docs/choosing_beta.md has the consequences, tests/unit/algorithm/test_fixed_points.py the calculations.

Deviations from the released code:

* The weight is clipped as in the equation. The code computed the clipped weight without using it, later versions bound
  it from above only (``importance_weight="clamp_max"``). Clipping happens before the exponential, so that a long
  response cannot overflow.
* beta and the other constants are options instead of literals.
* A sequence weighs the same in whichever micro-batch it lies (``loss_weights``); in the first release the scale of the
  loss depended on the number of metrics and of micro-batches.
* Everything is computed in float32, log Z included (there bfloat16).
* Metrics: the clip fraction compares pi with pi_old (there with pi_ref), the reference KL is a KL (there its negative),
  the importance ratio is reported before the clip as well, and padding counts nowhere.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recipe.flowrl.config import FlowRLConfig


def chosen_log_z(config: FlowRLConfig, like: Tensor, learned: Tensor | None, group: Tensor | None) -> Tensor:
    """The log Z that ``config.partition`` asks for.

    Args:
        config: the objective.
        like: (B,), of the dtype and on the device of a constant.
        learned: (B,) from the head; needed by "learned" only.
        group: (B,) from :func:`recipe.flowrl.advantages.group_log_z`; needed by "group_mean" only.

    Returns:
        (B,) in nats.
    """
    log_z = {
        "learned": learned,
        "constant": torch.full_like(like, config.partition_constant),
        "group_mean": group,
    }[config.partition]
    assert log_z is not None, f"partition={config.partition} without its log Z"
    return log_z


def divisors(config: FlowRLConfig, length: Tensor) -> tuple[Tensor, Tensor]:
    """What ``config.length_normalization`` divides the log-probs by, and the whole residual, for |y| ``(B,)``; (B,)."""
    length, one = length.float(), torch.ones_like(length, dtype=torch.float32)
    return {
        "log_probs": (length, one),
        "residual": (one, length),
        "residual_root": (one, length.sqrt()),
        "none": (one, one),
    }[config.length_normalization]


def flowrl_loss(
    *,
    log_prob: Tensor,
    old_log_prob: Tensor,
    ref_log_prob: Tensor,
    log_z: Tensor,
    reward: Tensor,
    response_mask: Tensor,
    config: FlowRLConfig,
    loss_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Trajectory-balance loss of a batch of B responses padded to T tokens. Log-probs in nats, float32 inside.

    A row with an empty mask or a ``loss_weights`` of 0 is left out: it adds nothing to loss, gradient or metrics, even
    where it holds inf or nan; the same goes for every masked position.

    Args:
        log_prob: (B, T) log pi of each token, with gradient.
        old_log_prob: (B, T) log pi_old, the policy at the start of the update; no gradient is passed on.
        ref_log_prob: (B, T) log pi_ref; no gradient is passed on.
        log_z: (B,) log Z of each row's prompt, with gradient.
        reward: (B,) the reward before the factor beta, normalised or not; no gradient is passed on.
        response_mask: (B, T) true or non-zero on response tokens, the end-of-sequence token included.
        config: see ``FlowRLConfig``.
        loss_weights: (B,) weight of each row: 1/N makes the losses of any split of N sequences add up to their mean.
            None = the mean over the rows whose mask is not empty (0 if there is none).

    Returns:
        loss, a scalar, and metrics, detached float32 scalars. A metric ``*_max`` is a maximum over rows, 0 if there is
        none: combine by max. Every other one is weighted like the loss: over micro-batches and ranks, do to it what is
        done to the loss (with weights 1/N: add) and it is the mean over sequences.

        log_z; scaled_reward = beta r; residual, residual_abs, residual_sq, residual_abs_max = delta, its modulus and
        its square; reward_term_abs, reference_term_abs = the moduli of the two parts of delta, log Z - beta r and
        log(pi/pi_ref), divided as in delta: the gradient is their sum times that of log pi; importance_weight = w;
        log_importance_ratio, log_importance_ratio_abs_max = log of the ratio before the clip; clip_fraction,
        clip_fraction_low, clip_fraction_high = rows outside, below and above the interval; ref_log_ratio = log
        pi/pi_ref, ref_kl = the k3 estimate of KL(pi || pi_ref) (exact in expectation while pi = pi_old, which drew the
        samples), approx_kl = the k3 estimate of KL(pi_old || pi); these three are means over the tokens of a sequence.

    Raises:
        ValueError: shapes that do not fit each other.
    """
    _check_shapes(log_prob, (old_log_prob, ref_log_prob, response_mask), (log_z, reward, loss_weights))
    mask = response_mask.bool()
    if loss_weights is None:
        loss_weights = mask.any(-1) / mask.any(-1).sum()  # 0/0 in a batch of empty rows is left out below
    counted = mask.any(-1) & (loss_weights != 0)
    mask = mask & counted.unsqueeze(-1)
    length = mask.sum(-1).clamp(min=1)

    # `where` comes before any arithmetic: multiplying by 0 would keep a nan, in the value or in the gradient.
    weights, log_z, reward = (torch.where(counted, row.float(), 0.0) for row in (loss_weights, log_z, reward.detach()))
    ref_log_ratio = torch.where(mask, log_prob.float() - ref_log_prob.detach().float(), 0.0)
    old_log_ratio = torch.where(mask, log_prob.detach().float() - old_log_prob.detach().float(), 0.0)

    scaled_reward = config.beta * reward
    per_log_prob, per_residual = divisors(config, length)
    residual = (log_z + ref_log_ratio.sum(-1) / per_log_prob - scaled_reward) / per_residual
    if config.gap_clip_low is not None or config.gap_clip_high is not None:
        gap = residual.detach() - old_log_ratio.sum(-1) / per_log_prob / per_residual  # the residual at pi_old
        low, high = config.gap_clip_low, config.gap_clip_high
        residual = residual + gap.clamp(None if low is None else -low, high) - gap
    log_ratio = old_log_ratio.sum(-1) / (length if config.importance_ratio == "geometric_mean" else 1)
    low, high = _log_clip_interval(config)
    weight = torch.ones_like(log_ratio) if config.importance_weight == "none" else log_ratio.clamp(low, high).exp()
    loss = (weights * weight * residual.square()).sum()

    with torch.no_grad():
        means = {
            "log_z": log_z,
            "scaled_reward": scaled_reward,
            "residual": residual,
            "residual_abs": residual.abs(),
            "residual_sq": residual.square(),
            "reward_term_abs": (log_z - scaled_reward).abs() / per_residual,
            "reference_term_abs": ref_log_ratio.sum(-1).abs() / per_log_prob / per_residual,
            "importance_weight": weight,
            "log_importance_ratio": log_ratio,
            "clip_fraction": (log_ratio < low) | (log_ratio > high),
            "clip_fraction_low": log_ratio < low,
            "clip_fraction_high": log_ratio > high,
            "ref_log_ratio": ref_log_ratio.sum(-1) / length,
            "ref_kl": _k3(-ref_log_ratio).sum(-1) / length,
            "approx_kl": _k3(old_log_ratio).sum(-1) / length,
        }
        maxima = {"residual_abs_max": residual.abs(), "log_importance_ratio_abs_max": log_ratio.abs()}
        metrics = {name: (weights * rows).sum() for name, rows in means.items()}
        metrics |= {name: rows.max() for name, rows in maxima.items()}
    return loss, metrics


def _log_clip_interval(config: FlowRLConfig) -> tuple[float, float]:
    """Bounds on the log importance ratio."""
    if config.importance_weight == "clip":
        return math.log1p(-config.clip_low), math.log1p(config.clip_high)
    if config.importance_weight == "clamp_max":
        return -math.inf, math.log(config.clamp_max)
    return -math.inf, math.inf


def _k3(log_ratio: Tensor) -> Tensor:
    """exp(d) - 1 - d >= 0 with d = log(q/p), an unbiased estimate of KL(p || q) from samples of p, for each token."""
    bounded = log_ratio.clamp(max=20.0)  # one token whose probability vanished must not make the mean infinite
    return bounded.expm1() - bounded


def _check_shapes(log_prob: Tensor, per_token: tuple[Tensor, ...], per_row: tuple[Tensor | None, ...]) -> None:
    # (B, 1) against (B,) would broadcast to (B, B) and train on nonsense.
    if log_prob.dim() != 2:
        raise ValueError(f"flowrl_loss: log_prob must have shape (batch, tokens), got {tuple(log_prob.shape)}")
    tokens = zip(("old_log_prob", "ref_log_prob", "response_mask"), per_token, strict=True)
    rows = zip(("log_z", "reward", "loss_weights"), per_row, strict=True)
    expected = [(*named, log_prob.shape) for named in tokens] + [(*named, log_prob.shape[:1]) for named in rows]
    for name, tensor, shape in expected:
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"flowrl_loss: {name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
