"""The FlowRL objective once more, for tests: float64 NumPy and loops, written from Eq. 6 and 7 of arXiv 2509.15207."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from recipe.flowrl.config import FlowRLConfig


@dataclass(frozen=True)
class Batch:
    """Inputs of the loss: four arrays (B, T), then two (B,)."""

    log_prob: np.ndarray
    old_log_prob: np.ndarray
    ref_log_prob: np.ndarray
    response_mask: np.ndarray
    log_z: np.ndarray
    reward: np.ndarray


def random_batch(rows: int, tokens: int, seed: int, drift: float = 0.2) -> Batch:
    """Log-probs of a policy that has moved by about ``drift`` nats a token; masks with holes, no empty row."""
    rng = np.random.default_rng(seed)
    old = -rng.exponential(1.0, (rows, tokens))
    mask = np.arange(tokens) < rng.integers(2, tokens + 1, (rows, 1))
    mask[:, 1] = rng.random(rows) < 0.5  # as in a multi-turn response, where a tool's output is masked
    return Batch(
        log_prob=old + rng.normal(0.0, drift, (rows, tokens)),
        old_log_prob=old,
        ref_log_prob=old + rng.normal(0.0, 0.3, (rows, tokens)),
        response_mask=mask,
        log_z=rng.normal(0.0, 1.0, rows),
        reward=rng.normal(0.0, 1.0, rows),
    )


def importance_weights(batch: Batch, config: FlowRLConfig) -> np.ndarray:
    """w of every row, (B,)."""
    weights = []
    for row, mask in enumerate(batch.response_mask):
        ratio = 1.0
        for token in np.flatnonzero(mask):
            ratio *= np.exp(batch.log_prob[row, token]) / np.exp(batch.old_log_prob[row, token])
        if config.importance_ratio == "geometric_mean":
            ratio **= 1.0 / mask.sum()
        if config.importance_weight == "clip":
            ratio = min(max(ratio, 1.0 - config.clip_low), 1.0 + config.clip_high)
        elif config.importance_weight == "clamp_max":
            ratio = min(ratio, config.clamp_max)
        else:
            ratio = 1.0
        weights.append(ratio)
    return np.array(weights)


def residuals(batch: Batch, config: FlowRLConfig) -> np.ndarray:
    """The parenthesis of the equation for every row, (B,)."""
    result = []
    for row, mask in enumerate(batch.response_mask):
        log_pi = sum(batch.log_prob[row, token] for token in np.flatnonzero(mask))
        log_pi_ref = sum(batch.ref_log_prob[row, token] for token in np.flatnonzero(mask))
        length = mask.sum()
        whole = batch.log_z[row] + log_pi - log_pi_ref - config.beta * batch.reward[row]
        result.append(
            {
                "log_probs": batch.log_z[row] + (log_pi - log_pi_ref) / length - config.beta * batch.reward[row],
                "residual": whole / length,
                "residual_root": whole / length**0.5,
                "none": whole,
            }[config.length_normalization]
        )
    return np.array(result)


def loss(batch: Batch, config: FlowRLConfig, row_weights: np.ndarray) -> float:
    return float(np.sum(row_weights * importance_weights(batch, config) * residuals(batch, config) ** 2))


def gradients(batch: Batch, config: FlowRLConfig, row_weights: np.ndarray, step: float = 1e-6) -> dict[str, np.ndarray]:
    """Central differences with respect to log_prob and log_z, the importance weight held where it is."""
    frozen = row_weights * importance_weights(batch, config)
    result = {}
    for name in ("log_prob", "log_z"):
        value = getattr(batch, name)
        gradient = np.zeros_like(value)
        for index in np.ndindex(value.shape):
            sides = []
            for sign in (+1, -1):
                moved = value.copy()
                moved[index] += sign * step
                sides.append(np.sum(frozen * residuals(replace(batch, **{name: moved}), config) ** 2))
            gradient[index] = (sides[0] - sides[1]) / (2 * step)
        result[name] = gradient
    return result


def _nothing_but_log_probs(batch: Batch) -> Batch:
    return replace(batch, log_z=np.zeros_like(batch.log_z), reward=np.zeros_like(batch.reward))


def metrics(batch: Batch, config: FlowRLConfig, row_weights: np.ndarray) -> dict[str, float]:
    """What ``flowrl_loss`` documents: weighted sums over rows, and maxima for the names that end in ``_max``."""
    rows: dict[str, list[float]] = {}
    unclipped = importance_weights(batch, replace(config, importance_weight="clamp_max", clamp_max=1e300))
    bounds = {"clip": (1 - config.clip_low, 1 + config.clip_high), "clamp_max": (0, config.clamp_max)}
    low, high = bounds.get(config.importance_weight, (0, np.inf))
    for row, mask in enumerate(batch.response_mask):
        pi, old, ref = (
            np.exp(log[row, mask.astype(bool)]) for log in (batch.log_prob, batch.old_log_prob, batch.ref_log_prob)
        )
        values = {
            "log_importance_ratio": np.log(unclipped[row]),
            "clip_fraction_low": float(unclipped[row] < low),
            "clip_fraction_high": float(unclipped[row] > high),
            "clip_fraction": float(not low <= unclipped[row] <= high),
            "ref_log_ratio": np.mean(np.log(pi) - np.log(ref)),
            "ref_kl": np.mean(ref / pi - 1 - np.log(ref / pi)),
            "approx_kl": np.mean(pi / old - 1 - np.log(pi / old)),
        }
        for name, value in values.items():
            rows.setdefault(name, []).append(value)
    residual = residuals(batch, config)
    result = {name: float(np.dot(row_weights, values)) for name, values in rows.items()}
    return result | {
        "log_z": float(np.dot(row_weights, batch.log_z)),
        "scaled_reward": float(np.dot(row_weights, config.beta * batch.reward)),
        "residual": float(np.dot(row_weights, residual)),
        "residual_abs": float(np.dot(row_weights, np.abs(residual))),
        "residual_sq": float(np.dot(row_weights, residual**2)),
        "reward_term_abs": float(
            np.dot(row_weights, np.abs(residuals(replace(batch, ref_log_prob=batch.log_prob), config)))
        ),
        "reference_term_abs": float(np.dot(row_weights, np.abs(residuals(_nothing_but_log_probs(batch), config)))),
        "residual_abs_max": float(np.abs(residual).max()),
        "importance_weight": float(np.dot(row_weights, importance_weights(batch, config))),
        "log_importance_ratio_abs_max": float(np.abs(np.log(unclipped)).max()),
    }
