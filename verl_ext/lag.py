"""How far the policy has moved away from the one that drew a batch. verl tells the age of the data in steps."""

import torch
import transfer_queue as tq
from torch import Tensor
from transfer_queue import KVBatchMeta


def lag_of(batch: KVBatchMeta) -> dict[str, float]:
    """The metrics of :func:`lag_metrics` for a batch in the queue whose old log-probs are computed."""
    fields = ["rollout_log_probs", "old_log_probs", "response_mask"]
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields).to_padded_tensor()
    return lag_metrics(data["old_log_probs"], data["rollout_log_probs"], data["response_mask"])


def lag_metrics(log_prob: Tensor, rollout_log_prob: Tensor, response_mask: Tensor) -> dict[str, float]:
    """Log-ratio of a response's probability under the policy and under the one that drew it, in nats.

    Args:
        log_prob: (B, T) of each token under the policy, before it is updated on this batch.
        rollout_log_prob: (B, T) as the rollout server told it; of a response that went on with new weights, each token
            under the weights that drew it.
        response_mask: (B, T); a row without tokens counts nowhere.

    Returns:
        ``mean``, ``abs_mean`` and ``abs_max`` over the responses; nothing if there is none.
    """
    mask = response_mask.bool()
    log_ratio = torch.where(mask, log_prob.double() - rollout_log_prob.double(), 0.0).sum(-1)[mask.any(-1)]
    if not len(log_ratio):
        return {}
    size = log_ratio.abs()
    return {"mean": log_ratio.mean().item(), "abs_mean": size.mean().item(), "abs_max": size.max().item()}
