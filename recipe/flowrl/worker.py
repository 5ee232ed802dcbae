"""The actor worker: verl's, with the FlowRL engine and the FlowRL loss."""

import dataclasses
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig
from tensordict import TensorDict
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.metric.utils import Metric
from verl.workers.config import ActorConfig, TrainingWorkerConfig
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

from recipe.flowrl.advantages import GROUP_LOG_Z
from recipe.flowrl.config import FlowRLConfig, refuse_additions
from recipe.flowrl.engine import MODEL_TYPE
from recipe.flowrl.objective import chosen_log_z, flowrl_loss
from recipe.flowrl.rollout_weights import ROLLOUT_WEIGHTS, weigh_gradients
from verl_ext.nonfinite import GuardedTrainingWorker, GuardedWorker
from verl_ext.reference import MovableReferenceWorker


class FlowRLTrainingWorker(GuardedTrainingWorker):
    """verl's training worker on the engine with the log-partition head."""

    def __init__(self, config: TrainingWorkerConfig, *, flowrl: FlowRLConfig, **kwargs: Any) -> None:
        super().__init__(dataclasses.replace(config, model_type=MODEL_TYPE), **kwargs)
        self.engine.flowrl = flowrl


class FlowRLWorker(GuardedWorker):
    """verl's actor, rollout and reference worker, with FlowRL in the actor; the head only where log Z is learned.

    ``config.flowrl`` holds the fields of :class:`FlowRLConfig`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.flowrl = FlowRLConfig.from_mapping(self.config.flowrl)
        if self.flowrl.partition == "learned":
            self.actor_worker_cls = partial(FlowRLTrainingWorker, flowrl=self.flowrl, guard=self.guard)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        super().init_model()
        if "actor" in self.role:  # else the reference has a worker of its own
            actor = omega_conf_to_dataclass(self.config.actor) if self.flowrl.ppo_coef else None
            self.actor.set_loss_fn(partial(flowrl_worker_loss, self.flowrl, actor=actor))


class AdvantageWorker(GuardedWorker):
    """verl's worker where the policy loss may be one that :mod:`recipe.flowrl.advantages` registers with verl.

    A worker's process imports the module of its class, and so this one.
    """


def worker_class(config: DictConfig) -> type[GuardedWorker]:
    """The worker of actor, rollout and reference that a run's configuration asks for.

    Raises:
        UserError: FlowRL with an option that is for verl's algorithms only, such as a reference that moves.
    """
    if config.flowrl is not None:
        refuse_additions(config.algorithm)
        return FlowRLWorker
    return AdvantageWorker if config.algorithm.reference_reset_steps is None else MovableReferenceWorker


def flowrl_worker_loss(
    config: FlowRLConfig,
    model_output: dict,
    data: TensorDict,
    dp_group: Any = None,
    actor: ActorConfig | None = None,
) -> tuple[torch.Tensor, dict[str, Metric]]:
    """The objective in the form in which verl's engine calls a loss.

    Each sequence weighs 1/N, N the sequences of the *global* mini-batch; the data-parallel size undoes FSDP's average
    over ranks. So the gradient depends neither on the number of ranks nor on how micro-batches are cut.

    Args:
        config: the objective.
        model_output: ``log_probs``, jagged, one row a sequence; ``log_z`` ``(B,)`` where the engine has the head.
        data: a micro-batch: jagged ``old_log_probs``, ``ref_log_prob``, ``response_mask`` and ``advantages`` (the
            group-normalised reward on every response token); ``group_log_z``, likewise, where log Z is the group's;
            ``rollout_is_weights`` where verl's rollout correction has made some.
        dp_group: unused; part of verl's signature.
        actor: of verl's policy loss, needed where ``config.ppo_coef`` is positive.

    Returns:
        The micro-batch's share of the loss and its metrics, each of which sums over micro-batches and averages over
        ranks to its mean over the global mini-batch (or is a maximum or minimum).
    """
    names = ["old_log_probs", "ref_log_prob", "response_mask", "advantages"]
    names += [GROUP_LOG_Z] if config.partition == "group_mean" else []
    names += [ROLLOUT_WEIGHTS] if ROLLOUT_WEIGHTS in data else []
    fields = data.select(*names).to_padded_tensor()
    response_mask = fields["response_mask"]
    log_prob = no_padding_2_padding(model_output["log_probs"], data)
    first_token = response_mask.float().argmax(dim=1, keepdim=True)
    reward = fields["advantages"].gather(1, first_token).squeeze(1)
    group = fields[GROUP_LOG_Z].gather(1, first_token).squeeze(1) if GROUP_LOG_Z in names else None
    loss_weights = torch.full_like(reward, data["dp_size"] / data["global_batch_size"])
    log_z = chosen_log_z(config, like=reward, learned=model_output.get("log_z"), group=group)
    rollout = {}
    if ROLLOUT_WEIGHTS in names:
        log_prob, log_z, mean = weigh_gradients(log_prob, log_z, fields[ROLLOUT_WEIGHTS], response_mask)
        rollout["rollout_weight"] = (mean * loss_weights).sum().detach()
    loss, metrics = flowrl_loss(
        log_prob=log_prob,
        old_log_prob=fields["old_log_probs"],
        ref_log_prob=fields["ref_log_prob"],
        log_z=log_z,
        reward=reward,
        response_mask=response_mask,
        config=config,
        loss_weights=loss_weights,
    )
    metrics |= rollout
    reported = {f"flowrl/{name}": Metric(_aggregation(name), value) for name, value in metrics.items()}
    if config.ppo_coef:
        policy_loss, policy_metrics = ppo_loss(actor, model_output, data, dp_group)
        loss, reported = loss + config.ppo_coef * policy_loss, reported | policy_metrics
    return loss, reported


def _aggregation(name: str) -> str:
    return name[-3:] if name.endswith(("_max", "_min")) else "sum"
