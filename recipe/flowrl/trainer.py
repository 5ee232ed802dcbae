"""The trainers: verl's V1 loop with the chosen algorithm's worker, and metrics of solutions and of their grading."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import ray
import torch
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.main_ppo import TaskRunnerV1
from verl.workers.utils.padding import response_to_nested

from recipe.flowrl.advantages import GROUP_LOG_Z, group_log_z, kl_matched
from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.reporting import names
from recipe.flowrl.reporting.observer import RunRecorder
from verl_ext.stop import StopRequest
from verl_ext.trainer import ObservedTrainerMixin, choose_trainer


class RecordedTrainer(ObservedTrainerMixin):
    """A verl trainer that records its run and counts distinct solutions. Any algorithm of verl's own runs on it.

    So do those that are verl's but for one thing: ``algorithm.kl_matched_beta`` (see :func:`kl_matched`) and
    ``algorithm.reference_reset_steps``, after which the reference becomes the policy, again and again.
    """

    def __init__(self, config: DictConfig) -> None:
        if config.algorithm.reference_reset_steps is not None:
            from verl_ext.reference import MovableReferenceWorker

            self.worker_cls = MovableReferenceWorker
        self.always_reference = self.always_reference or config.algorithm.kl_matched_beta is not None
        self.rows_in_order = config.deterministic
        super().__init__(config)
        self.observer = RunRecorder(config.run_dir)
        self.stop_request = StopRequest(config.stop_file, config.stop_deadline)

    def on_step_begin(self) -> None:
        super().on_step_begin()
        steps = self.config.algorithm.reference_reset_steps
        if steps is not None and self.global_steps > 1 and (self.global_steps - 1) % steps == 0:
            self.actor_rollout_wg.move_reference()

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch = super()._compute_advantage(batch, metrics)
        if beta := self.config.algorithm.kl_matched_beta:
            self._put_row_values(batch, "advantages", partial(kl_matched, beta=beta), length_normalize=True)
        return batch

    def _put_row_values(
        self, batch: KVBatchMeta, column: str, compute: Callable[..., torch.Tensor], length_normalize: bool
    ) -> None:
        """Put ``compute(r_hat, log pi_old/pi_ref, index=prompts)``, ``(B,)``, in ``column``, on every response token.

        The log ratio is the tokens' sum, or their mean where ``length_normalize``.
        """
        fields = ["uid", "advantages", "old_log_probs", "ref_log_prob", "response_mask"]
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=fields)
        nested_mask = data["response_mask"]
        padded = data.select(*fields[1:]).to_padded_tensor()
        mask = padded["response_mask"].bool()
        reward = padded["advantages"].gather(1, mask.float().argmax(dim=1, keepdim=True)).squeeze(1)
        log_ratio = torch.where(mask, padded["old_log_probs"] - padded["ref_log_prob"], 0.0).sum(-1)
        length = mask.sum(-1).clamp(min=1) if length_normalize else 1
        values = compute(reward, log_ratio / length, index=_items(data["uid"]))
        nested = response_to_nested(values.unsqueeze(-1) * mask, nested_mask)
        tq.kv_batch_put(
            keys=batch.keys,
            partition_id=batch.partition_id,
            fields=TensorDict({column: nested}, batch_size=len(batch)),
        )

    def _setup(self) -> None:
        super()._setup()
        self.observer.total_steps = self.total_training_steps

    def _compute_metrics(self, batch: KVBatchMeta, metrics: dict, *args: Any, **kwargs: Any) -> None:
        super()._compute_metrics(batch, metrics, *args, **kwargs)
        # verl fills the place of a rollout that failed with a copy of another one, so marked.
        keys = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
        asked = self.config.data.train_batch_size * self.config.actor_rollout_ref.rollout.n
        metrics[names.MISSING] = max(0, asked - len({key.rsplit("_", 1)[0] for key in keys}))
        data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["uid", "extra_fields"])
        infos = [fields.get("reward_extra_info", {}) for fields in _items(data["extra_fields"])]
        accuracy = [info["acc"] for info in infos if "acc" in info]
        if accuracy:
            metrics[names.SOLVE_RATE] = float(np.mean(accuracy))
        metrics.update(solution_metrics("train", _items(data["uid"]), infos))
        metrics.update(grading_metrics("train", infos))

    def _val_metrics_update(
        self, data_sources: list, sample_uids: list, reward_extra_infos_dict: dict, *args: Any, **kwargs: Any
    ) -> dict[str, float]:
        metrics = super()._val_metrics_update(data_sources, sample_uids, reward_extra_infos_dict, *args, **kwargs)
        columns = {name: values for name, values in reward_extra_infos_dict.items() if len(values) == len(sample_uids)}
        infos = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        for source in sorted(set(data_sources)):
            rows = [index for index, name in enumerate(data_sources) if name == source]
            uids, source_infos = [sample_uids[i] for i in rows], [infos[i] for i in rows]
            metrics.update(solution_metrics(f"val/{source}", uids, source_infos))
        return metrics


class FlowRLTrainer(RecordedTrainer):
    """The same, with the FlowRL worker and a reference policy that needs no KL flag."""

    always_reference = True

    def __init__(self, config: DictConfig) -> None:
        from recipe.flowrl.worker import FlowRLWorker

        self.worker_cls = FlowRLWorker
        self.flowrl = FlowRLConfig.from_mapping(OmegaConf.to_container(config.flowrl))
        super().__init__(config)

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch = super()._compute_advantage(batch, metrics)
        if self.flowrl.partition == "group_mean":
            estimate = partial(group_log_z, beta=self.flowrl.beta)
            self._put_row_values(batch, GROUP_LOG_Z, estimate, length_normalize=self.flowrl.length_normalize)
        return batch


def solution_metrics(prefix: str, uids: Iterable[str], infos: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """How many of a prompt's correct solutions its samples found.

    Args:
        prefix: of the metrics' names.
        uids: each sample's prompt.
        infos: each sample's reward information. ``solution`` is a canonical form of a correct answer, empty where the
            answer is wrong; ``n_solutions``, where given, is how many exist for the prompt.

    Returns:
        ``distinct_solutions``, the mean over prompts of the number of distinct solutions found, and
        ``solution_coverage``, the mean of that number divided by ``n_solutions``. Empty if no reward says its solution.
    """
    found: dict[str, set[str]] = defaultdict(set)
    existing: dict[str, float] = {}
    for uid, info in zip(uids, infos, strict=True):
        if info.get("solution") is None:
            continue
        found[uid].update([info["solution"]] if info["solution"] else [])
        if info.get("n_solutions"):
            existing[uid] = info["n_solutions"]
    metrics = {}
    if found:
        metrics[f"{prefix}/distinct_solutions"] = float(np.mean([len(solutions) for solutions in found.values()]))
    if existing:
        coverage = [len(found[uid]) / number for uid, number in existing.items()]
        metrics[f"{prefix}/solution_coverage"] = float(np.mean(coverage))
    return metrics


def grading_metrics(prefix: str, infos: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """What share of the responses couldn't be graded, for each of the reasons that the reward function tells.

    Args:
        prefix: of the metrics' names.
        infos: each sample's reward information; 1.0 under ``extraction_failed``, ``timed_out`` and ``grader_failed``
            where that was so.

    Returns:
        The mean of each over the samples that tell it, e.g. ``train/extraction_failed``.
    """
    told = defaultdict(list)
    for info in infos:
        for name in ("extraction_failed", "timed_out", "grader_failed"):
            if info.get(name) is not None:
                told[name].append(info[name])
    return {f"{prefix}/{name}": float(np.mean(values)) for name, values in told.items()}


def _items(column: Iterable[Any]) -> list[Any]:
    """A non-tensor column of a TensorDict as a list; its container depends on how the queue stored it."""
    return [getattr(item, "data", item) for item in column]


@ray.remote
class RecipeTaskRunner(TaskRunnerV1.__ray_metadata__.modified_class):
    """verl's task runner with our trainer: FlowRL's where ``flowrl`` is configured, else verl's algorithm, recorded."""

    def run(self, config: DictConfig) -> None:
        trainer = RecordedTrainer if config.actor_rollout_ref.flowrl is None else FlowRLTrainer
        choose_trainer(config.trainer.v1.trainer_mode, trainer)
        super().run(config)

    def init_agent_loop_manager(self) -> None:
        with self.trainer.failure_told():
            super().init_agent_loop_manager()
