"""The trainers: verl's V1 loop with the chosen algorithm's worker, and metrics of solutions and of their grading."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
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

from recipe.flowrl.advantages import GROUP_LOG_Z, dmpo, group_log_z, kl_matched, target_log_odds
from recipe.flowrl.config import SATURATED, FlowRLConfig, check_replay
from recipe.flowrl.reporting import names
from recipe.flowrl.reporting.observer import RunRecorder
from recipe.flowrl.ungraded import TAG, UngradedGuard, leave_out
from verl_ext.faults import RejectedError
from verl_ext.idle import IdleShare
from verl_ext.lag import lag_of
from verl_ext.nonfinite import SKIPPED
from verl_ext.replay_memory import ReplayConfig, ReplayMemory
from verl_ext.self_check import SelfCheck
from verl_ext.stop import StopRequest
from verl_ext.trainer import ObservedTrainerMixin, choose_trainer


@dataclass(frozen=True)
class Rows:
    """What is known of B responses before an update; all but ``index`` are (B,).

    Attributes:
        advantage: of verl's estimator; r_hat for FlowRL.
        reward: as it is.
        old_log_prob: log pi_old of the response, a sum over its tokens; None unless it is asked for.
        ref_log_ratio: log pi_old/pi_ref, likewise; None without a reference as well.
        length: in tokens, 1 where there are none.
        index: the prompts.
    """

    advantage: torch.Tensor
    reward: torch.Tensor
    old_log_prob: Any
    ref_log_ratio: Any
    length: torch.Tensor
    index: list[Any]


ROW_COLUMNS = ("uid", "advantages", "rm_scores", "response_mask")
"""What :func:`rows_of` needs."""


class RecordedTrainer(ObservedTrainerMixin):
    """A verl trainer that records its run and counts distinct solutions. Any algorithm of verl's own runs on it.

    So do those that are verl's but for one thing: ``algorithm.kl_matched_beta`` (see :func:`kl_matched`),
    ``algorithm.dmpo_weight`` (see :func:`dmpo`) and ``algorithm.reference_reset_steps``, after which the reference
    becomes the policy, again and again.
    """

    observer: RunRecorder
    columns_of_metrics: Sequence[str] = ("uid", "extra_fields")

    def __init__(self, config: DictConfig) -> None:
        from recipe.flowrl.worker import worker_class  # with its engines, which the driver needn't load

        self.worker_cls = worker_class(config)
        self.always_reference = self.always_reference or config.algorithm.kl_matched_beta is not None
        self.rows_in_order = config.deterministic
        # In bypass mode pi_old is the policy that drew the data; the loss tells its own ratio to it.
        self._measures_lag = (
            config.trainer.v1.trainer_mode != "sync"
            and config.actor_rollout_ref.rollout.calculate_log_probs
            and not config.algorithm.rollout_correction.bypass_mode
        )
        super().__init__(config)
        by_the_algorithm = config.algorithm.kl_matched_beta is not None or bool(config.algorithm.dmpo_weight)
        self.old_log_probs_used = self.old_log_probs_used or by_the_algorithm or self._measures_lag
        self.observer = RunRecorder(config.run_dir)
        self.self_check = SelfCheck() if config.self_check else None
        self.stop_request = StopRequest(config.stop_file, config.stop_deadline)
        self.ungraded_guard = UngradedGuard(config.max_ungraded_steps)
        self._none_graded = False

    def worth_replaying(self, tag: Mapping[str, Any]) -> bool:
        return super().worth_replaying(tag) and not tag.get(TAG)

    def on_train_begin(self) -> None:
        managers = self._rollout_server_managers()
        self._servers_idle = IdleShare([server for manager in managers for server in manager.server_handles])
        super().on_train_begin()

    def on_step_begin(self) -> None:
        super().on_step_begin()
        steps = self.config.algorithm.reference_reset_steps
        if steps is not None and self.global_steps > 1 and (self.global_steps - 1) % steps == 0:
            self.actor_rollout_wg.move_reference()

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        ungraded, responses = leave_out(batch)
        self._none_graded = ungraded == responses
        if told := self.ungraded_guard.step(ungraded, responses, self.global_steps):
            self.observer.message(told)
        if self._measures_lag:
            metrics.update({f"{names.LAG}/{name}": value for name, value in lag_of(batch).items()})
        batch = super()._compute_advantage(batch, metrics)
        if metrics.get("rollout_corr/rollout_rs_masked_fraction") == 1.0:
            raise RejectedError(
                f"step {self.global_steps}: algorithm.rollout_correction.rollout_rs="
                f"{self.config.algorithm.rollout_correction.rollout_rs} rejected every response of a batch: raise "
                "rollout_rs_threshold, or let the data be younger (trainer.v1.sampler.max_off_policy_threshold)"
            )
        algorithm = self.config.algorithm
        if beta := algorithm.kl_matched_beta:
            self._put_row_values(
                batch, "advantages", lambda r: kl_matched(r.advantage, r.ref_log_ratio, r.length, r.index, beta)
            )
        if weight := algorithm.dmpo_weight:
            self._put_row_values(
                batch,
                "advantages",
                lambda r: dmpo(
                    r.advantage, r.reward, r.old_log_prob / r.length, r.index, weight, algorithm.dmpo_temperature
                ),
            )
        return batch

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if self._none_graded:
            metrics[f"actor/{SKIPPED}"] = 1.0
            return batch
        return super()._update_actor(batch, metrics)

    def _update_critic(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        return batch if self._none_graded else super()._update_critic(batch, metrics)

    def _put_row_values(self, batch: KVBatchMeta, column: str, compute: Callable[[Rows], torch.Tensor]) -> None:
        """Put ``compute(rows)`` ``(B,)`` in ``column``, on every response token."""
        columns = [*ROW_COLUMNS, "old_log_probs"] + (["ref_log_prob"] if self.use_reference_policy else [])
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=columns)
        rows, mask = rows_of(data)
        nested = response_to_nested(compute(rows).unsqueeze(-1) * mask, data["response_mask"])
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
        metrics[names.TRAINER_IDLE] = metrics["timing_s/gen"] / metrics[names.STEP_TIME]
        metrics[names.SERVERS_IDLE] = self._servers_idle.read()
        # verl fills the place of a rollout that failed with a row of its own, so marked; so are those left out.
        real = [(k, t) for k, t in zip(batch.keys, batch.tags, strict=True) if t.get(TAG) or not t.get("is_padding")]
        keys = [key for key, _ in real]
        asked = self.new_prompts * self.config.actor_rollout_ref.rollout.n
        metrics[names.MISSING] = max(0, asked - len({key.rsplit("_", 1)[0] for key in keys}))
        data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=list(self.columns_of_metrics))
        self._measure(data, metrics)
        infos = [fields.get("reward_extra_info", {}) for fields in _items(data["extra_fields"])]
        metrics.update(grading_metrics("train", infos))
        graded = [index for index, (_, tag) in enumerate(real) if not tag.get(TAG)]
        uids = _items(data["uid"])
        uids, infos = [uids[index] for index in graded], [infos[index] for index in graded]
        accuracy = [info["acc"] for info in infos if "acc" in info]
        if accuracy:
            metrics[names.SOLVE_RATE] = float(np.mean(accuracy))
        metrics.update(solution_metrics("train", uids, infos))

    def _measure(self, data: TensorDict, metrics: dict) -> None:
        """More ``metrics``, of the rows' ``columns_of_metrics``."""

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
            if failed := grading_metrics(f"val/{source}", source_infos).get(f"val/{source}/grader_failed"):
                metrics[f"val/{source}/grader_failed"] = failed
                self.observer.message(
                    f"warning: validation on {source}: {failed:.1%} of the responses couldn't be graded, since the "
                    "grader failed; they count as wrong"
                )
        return metrics


class FlowRLTrainer(RecordedTrainer):
    """The same, with the FlowRL worker and a reference policy that needs no KL flag."""

    always_reference = True
    columns_of_metrics = (*RecordedTrainer.columns_of_metrics, *ROW_COLUMNS[1:])

    def __init__(self, config: DictConfig) -> None:
        self.flowrl = FlowRLConfig.from_mapping(OmegaConf.to_container(config.flowrl))
        check_replay(config.algorithm, self.flowrl)
        super().__init__(config)
        if config.algorithm.replay.share is not None:
            self.replay = ReplayMemory(ReplayConfig(**config.algorithm.replay, seed=config.data.get("seed") or 0))
        needed = self.flowrl.partition == "group_mean" or self.replay is not None
        self.old_log_probs_used = self.old_log_probs_used or needed

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch = super()._compute_advantage(batch, metrics)
        if self.flowrl.partition == "group_mean":
            self._put_row_values(
                batch,
                GROUP_LOG_Z,
                lambda r: group_log_z(r.advantage, r.ref_log_ratio, r.length, r.index, self.flowrl),
            )
        return batch

    def _measure(self, data: TensorDict, metrics: dict) -> None:
        rows, _ = rows_of(data)
        if (log_odds := target_log_odds(rows.advantage, rows.length, rows.index, self.flowrl)) is not None:
            metrics[names.TARGET_LOG_ODDS] = log_odds
        if "actor/flowrl/reference_term_abs" in metrics:  # else no response could be graded, and nothing was updated
            reference, reward = (float(metrics[f"actor/flowrl/{name}_term_abs"]) for name in ("reference", "reward"))
            metrics[names.REFERENCE_SHARE] = reference / (reference + reward or 1.0)
            if re.fullmatch("10*", str(self.global_steps)):
                self.observer.message(where_it_stands(metrics))


def rows_of(data: TensorDict) -> tuple[Rows, torch.Tensor]:
    """The responses of ``data``, which has :data:`ROW_COLUMNS` and may have log-probs, and their mask (B, T)."""
    wanted = (*ROW_COLUMNS[1:], "old_log_probs", "ref_log_prob")
    padded = data.select(*wanted, strict=False).to_padded_tensor()
    mask = padded["response_mask"].bool()
    # A rejected response, or a row that fills up the batch, has no token left, and counts in no group.
    prompts = enumerate(zip(_items(data["uid"]), mask.any(-1).tolist(), strict=True))
    old, ref = padded.get("old_log_probs"), padded.get("ref_log_prob")
    rows = Rows(
        advantage=padded["advantages"].gather(1, mask.float().argmax(dim=1, keepdim=True)).squeeze(1),
        reward=padded["rm_scores"].sum(-1),
        old_log_prob=None if old is None else torch.where(mask, old, 0.0).sum(-1),
        ref_log_ratio=None if ref is None else torch.where(mask, old - ref, 0.0).sum(-1),
        length=mask.sum(-1).clamp(min=1),
        index=[uid if counts else f"row {row}" for row, (uid, counts) in prompts],
    )
    return rows, mask


def where_it_stands(metrics: Mapping[str, float]) -> str:
    """One line on how sharp the target is and what moves the policy, from the metrics of a step."""
    line = f"of the gradient {metrics[names.REFERENCE_SHARE]:.1%} comes from the reference"
    if names.CLIPPED in metrics:
        line += f"; its norm was clipped in {metrics[names.CLIPPED]:.0%} of the updates"
    if (log_odds := metrics.get(names.TARGET_LOG_ODDS)) is not None:
        saturated = ": saturated (docs/choosing_beta.md)" if log_odds > SATURATED else ""
        line = f"a right answer gains odds of e^{log_odds:.3g} in the target{saturated}; {line}"
    return line


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
