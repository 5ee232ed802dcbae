"""verl's rollout correction in FlowRL's gradient: weights for the lag between pi_old and the policy that drew it.

verl computes them before the update, from pi_old and the log-probs that the rollout servers gave: rho_t = pi_old(y_t) /
pi_rollout(y_t) of each token (``algorithm.rollout_correction.rollout_is=token``), or their product, the same for all of
a response's tokens (``sequence``); bounded from above, or 0 outside of an interval. Beside FlowRL's own weight w
(:mod:`recipe.flowrl.objective`), which is for the lag between pi_old and pi, they multiply in the gradient of a
response's loss w delta^2::

    2 w delta * (sum_t rho_t d delta / d log pi(y_t) + mean_t rho_t d delta / d log Z)

So where all rho_t are one number, that number multiplies w; delta, its metrics and the loss as told are what they were.
"""

import torch
from torch import Tensor

ROLLOUT_WEIGHTS = "rollout_is_weights"
"""Column of a batch, which verl adds where ``algorithm.rollout_correction.rollout_is`` is set."""


def weigh_gradients(
    log_prob: Tensor, log_z: Tensor, weights: Tensor, response_mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same log-probs and log Z, whose gradients are multiplied by verl's weights.

    Args:
        log_prob: (B, T) log pi of each token, with gradient.
        log_z: (B,) log Z, with gradient or without.
        weights: (B, T) rho; what it holds outside of the mask doesn't count.
        response_mask: (B, T).

    Returns:
        log_prob (B, T) and log_z (B,), and (B,) the mean of rho over a response's tokens, 0 where it has none.
    """
    mask = response_mask.bool()
    weights = torch.where(mask, weights.detach(), 0.0)
    mean = weights.sum(-1) / mask.sum(-1).clamp(min=1)
    return _weighed(log_prob, weights), _weighed(log_z, mean), mean


def _weighed(value: Tensor, weights: Tensor) -> Tensor:
    still = value.detach()
    return torch.where(weights == 0, still, still + weights * (value - still))
