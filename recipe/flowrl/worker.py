"""The actor worker: verl's, with the FlowRL engine and the FlowRL loss."""

import dataclasses
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils.metric.utils import Metric
from verl.workers.config import TrainingWorkerConfig
from verl.workers.utils.padding import no_padding_2_padding

from recipe.flowrl.advantages import GROUP_LOG_Z
from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.engine import MODEL_TYPE
from recipe.flowrl.objective import flowrl_loss
from verl_ext.reshard import ReshardingTrainingWorker, ReshardingWorker


class FlowRLTrainingWorker(ReshardingTrainingWorker):
    """verl's training worker on the engine with the log-partition head."""

    def __init__(self, config: TrainingWorkerConfig, *, flowrl: FlowRLConfig) -> None:
        super().__init__(dataclasses.replace(config, model_type=MODEL_TYPE))
        self.engine.flowrl = flowrl


class FlowRLWorker(ReshardingWorker):
    """verl's actor, rollout and reference worker, with FlowRL in the actor; the head only where log Z is learned.

    ``config.flowrl`` holds the fields of :class:`FlowRLConfig`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.flowrl = FlowRLConfig.from_mapping(self.config.flowrl)
        if self.flowrl.partition == "learned":
            self.actor_worker_cls = partial(FlowRLTrainingWorker, flowrl=self.flowrl)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        super().init_model()
        self.actor.set_loss_fn(partial(flowrl_worker_loss, self.flowrl))


def flowrl_worker_loss(
    config: FlowRLConfig, model_output: dict, data: TensorDict, dp_group: Any = None
) -> tuple[torch.Tensor, dict[str, Metric]]:
    """The objective in the form in which verl's engine calls a loss.

    Each sequence weighs 1/N, N the sequences of the *global* mini-batch; the data-parallel size undoes FSDP's average
    over ranks. So the gradient depends neither on the number of ranks nor on how micro-batches are cut.

    Args:
        config: the objective.
        model_output: ``log_probs``, jagged, one row a sequence; ``log_z`` ``(B,)`` where the engine has the head.
        data: a micro-batch: jagged ``old_log_probs``, ``ref_log_prob``, ``response_mask`` and ``advantages`` (the
            group-normalised reward on every response token); ``group_log_z``, likewise, where log Z is the group's.
        dp_group: unused; part of verl's signature.

    Returns:
        The micro-batch's share of the loss and its metrics, each of which sums over micro-batches and averages over
        ranks to its mean over the global mini-batch (or is a maximum or minimum).
    """
    names = ["old_log_probs", "ref_log_prob", "response_mask", "advantages"]
    names += [GROUP_LOG_Z] if config.partition == "group_mean" else []
    fields = data.select(*names).to_padded_tensor()
    response_mask = fields["response_mask"]
    log_prob = no_padding_2_padding(model_output["log_probs"], data)
    first_token = response_mask.float().argmax(dim=1, keepdim=True)
    reward = fields["advantages"].gather(1, first_token).squeeze(1)
    if config.partition == "learned":
        log_z = model_output["log_z"]
    elif config.partition == "constant":
        log_z = torch.full_like(reward, config.partition_constant)
    else:
        log_z = fields[GROUP_LOG_Z].gather(1, first_token).squeeze(1)
    loss, metrics = flowrl_loss(
        log_prob=log_prob,
        old_log_prob=fields["old_log_probs"],
        ref_log_prob=fields["ref_log_prob"],
        log_z=log_z,
        reward=reward,
        response_mask=response_mask,
        config=config,
        loss_weights=torch.full_like(reward, data["dp_size"] / data["global_batch_size"]),
    )
    return loss, {f"flowrl/{name}": Metric(_aggregation(name), value) for name, value in metrics.items()}


def _aggregation(name: str) -> str:
    return name[-3:] if name.endswith(("_max", "_min")) else "sum"
