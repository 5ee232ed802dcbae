"""verl's V1 trainers with a choice of worker, a reference policy on demand, and hooks that say what is going on."""

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import ray
import transfer_queue as tq
from omegaconf import DictConfig
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.utils import Role
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer

from verl_ext.checkpoint import AtomicCheckpointMixin
from verl_ext.critic import CriticWorker
from verl_ext.group_rollout import GROUPED
from verl_ext.nonfinite import SKIPPED, STEP, GuardedWorker
from verl_ext.on_policy import metrics_of_the_update, one_update, uses_old_log_probs, without_correction
from verl_ext.patches import patch_separate_async_logger
from verl_ext.replay import ReplayMixin
from verl_ext.row_order import order_rows
from verl_ext.self_check import AT_THE_START, SelfCheck
from verl_ext.stop import StopRequest, StopRequested
from verl_ext.supervision import ENDING, FAILING

REPLAY_POLL_INTERVAL_S = 0.05
"""verl polls its replay buffer every 2 s, which is the step time of a small model. One poll costs about 1 ms."""

NOT_FOR_LOG_PROBS = ("rm_scores", "rollout_log_probs", "log_probs", "entropy", "old_log_probs")
"""What is known of tokens and isn't an input of the model."""

SETUP_PHASES = {
    "train and validate dataloader initialized": "loading the model",
    "reward loop manager initialized": "loading vLLM",
}
"""Start of a message that verl logs while it sets up -> the phase that begins with it."""


class RunObserver(Protocol):
    """What a trainer tells of its run."""

    def phase(self, name: str) -> None:
        """A phase has begun; it lasts until the next one begins."""

    def message(self, text: str) -> None:
        """Something to tell the person who looks on, in a line."""

    def log(self, data: dict[str, Any], step: int) -> None:
        """Metrics of a step, as verl's loggers get them."""


class ObservedTrainerMixin(AtomicCheckpointMixin, ReplayMixin):
    """Put in front of a verl V1 trainer class; see :func:`choose_trainer`."""

    worker_cls: type[GuardedWorker] = GuardedWorker
    always_reference: bool = False
    use_reference_policy: bool
    rows_in_order: bool = False
    old_log_probs_used: bool
    observer: RunObserver
    stop_request = StopRequest()
    self_check: SelfCheck | None = None

    def __init__(self, config: DictConfig) -> None:
        super().__init__(config)
        self._saved_step: int | None = None
        self._stop_reason: str | None = None
        self.use_reference_policy = self.use_reference_policy or self.always_reference
        self.old_log_probs_used = uses_old_log_probs(config)
        self._on_policy = False

    def _build_replay_buffer(self) -> Any:
        replay_buffer = super()._build_replay_buffer()
        replay_buffer.poll_interval = REPLAY_POLL_INTERVAL_S
        if self.rows_in_order:
            order_rows(replay_buffer)
        return replay_buffer

    def _init_resource_pool_mgr(self) -> None:
        """Use ``worker_cls``, and give it the reference role that verl grants only where a KL flag asks for it."""
        super()._init_resource_pool_mgr()
        model = self.config.actor_rollout_ref.model
        lora_rank = model.get("lora", {}).get("rank", 0) or model.get("lora_rank", 0)
        reference_in_actor = lora_rank > 0 or model.get("lora_adapter_path") is not None
        wanted = self.use_reference_policy and not reference_in_actor
        if wanted and Role.ActorRollout in self.role_worker_mapping:
            for mapping in (self.role_worker_mapping, self.mapping):
                mapping[Role.ActorRolloutRef] = mapping.pop(Role.ActorRollout)
        elif wanted and Role.Actor in self.role_worker_mapping:
            self.role_worker_mapping[Role.RefPolicy] = None
            self.mapping[Role.RefPolicy] = self.mapping[Role.Actor]
        for role in self.role_worker_mapping:
            if role in (Role.Actor, Role.ActorRollout, Role.ActorRolloutRef, Role.RefPolicy):
                self.role_worker_mapping[role] = ray.remote(self.worker_cls)
            elif role == Role.Critic:
                self.role_worker_mapping[role] = ray.remote(CriticWorker)

    # ---- what is going on --------------------------------------------------------------------------------------

    @contextmanager
    def failure_told(self) -> Iterator[None]:
        """Say that the run ends, before verl begins to end its processes because of an error."""
        try:
            yield
        except BaseException as error:
            self.observer.phase(ENDING if isinstance(error, StopRequested) else FAILING)
            raise

    def init(self) -> None:
        with self.failure_told():
            super().init()

    def fit(self, *args: Any, **kwargs: Any) -> None:
        with self.failure_told():
            super().fit(*args, **kwargs)
        self.observer.phase(ENDING)

    def _setup(self) -> None:
        self.observer.phase("reading the data")
        with _on_log_message(trainer_base.logger, self._setup_phase):
            super()._setup()

    def _setup_phase(self, message: str) -> None:
        for start, phase in SETUP_PHASES.items():
            if message.startswith(start):
                self.observer.phase(phase)

    def on_init_end(self) -> None:
        self.observer.phase("first weight sync")
        super().on_init_end()

    def on_validate_begin(self) -> None:
        self._observe_metrics()
        self.observer.phase("validation")
        super().on_validate_begin()

    def on_train_begin(self) -> None:
        self._observe_metrics()
        if self.self_check:
            self.observer.phase("self-check")
            self.self_check.ask(self, AT_THE_START)
        super().on_train_begin()

    def on_step_begin(self) -> None:
        if self._stop_reason is not None:  # the metrics of the last step are logged by now
            self.wait_for_save()
            self._shutdown_dump_executor()
            self.stop_request.honour()
            raise StopRequested(
                f"stopped after step {self.global_steps - 1}, which is saved ({self._stop_reason}): the same command "
                "continues"
            )
        self.stop_request.step_begins()
        self.observer.phase("rollout")
        super().on_step_begin()

    def on_step_end(self) -> None:
        if self.global_steps < self.total_training_steps:  # else the run ends anyway
            self._stop_reason = self.stop_request.reason()
        if self._stop_reason is not None and self._saved_step != self.global_steps:
            self._save_checkpoint()
        self.observer.phase("weight sync")
        super().on_step_end()
        if self.self_check and self.global_steps < self.total_training_steps:
            self.self_check.synced(self)

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        self.observer.phase("log-probs")
        if self.self_check:
            told, found = self.self_check.judge(self)
            metrics.update(found)
            if told:
                self.observer.message(told)
        self._on_policy = not self.old_log_probs_used and one_update(self.config, len(batch.keys))
        return (
            batch if self._on_policy else super()._compute_old_log_prob(_for_workers(batch, NOT_FOR_LOG_PROBS), metrics)
        )

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        with without_correction(self.config) if self._on_policy else nullcontext():
            return super()._compute_advantage(batch, metrics)

    def _compute_ref_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        return super()._compute_ref_log_prob(_for_workers(batch, NOT_FOR_LOG_PROBS), metrics)

    def _update_actor(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        self.observer.phase("update")
        batch = _for_workers(batch)
        batch.extra_info[STEP] = self.global_steps
        batch = super()._update_actor(batch, metrics)
        metrics.update(metrics_of_the_update(metrics))
        if self.self_check and metrics[f"actor/{SKIPPED}"] < 1:
            self.self_check.updated()
        if skipped := metrics[f"actor/{SKIPPED}"]:
            self.observer.message(
                f"warning: step {self.global_steps}: {skipped:.0%} of the updates skipped, their loss or gradient "
                "wasn't finite"
            )
        return batch

    def _compute_metrics(self, batch: KVBatchMeta, metrics: dict, *args: Any, **kwargs: Any) -> None:
        super()._compute_metrics(batch, metrics, *args, **kwargs)
        grouped = [tag.get(GROUPED, False) for tag in batch.tags if not tag.get("is_padding", False)]
        metrics["training/grouped_rollouts"] = sum(grouped) / max(1, len(grouped))

    def _save_checkpoint(self) -> None:
        self.observer.phase("checkpoint")
        super()._save_checkpoint()
        self._saved_step = self.global_steps

    def _observe_metrics(self) -> None:
        # verl makes its loggers inside fit(); these hooks are the first calls after that.
        self.logger.logger["run_observer"] = self.observer


def choose_trainer(mode: str, mixin: type[ObservedTrainerMixin]) -> None:
    """Make ``mixin`` part of the trainer that verl runs in this process for ``trainer.v1.trainer_mode=mode``.

    The mode keeps its name: verl switches replay buffer, refill and checkpoints by it.
    """
    patch_separate_async_logger()
    base: type[PPOTrainer] = trainer_base.get_trainer_cls(mode)
    if not issubclass(base, mixin):
        TRAINER_REGISTRY[mode] = type(f"{mixin.__name__}{base.__name__}", (mixin, base), {})


def _for_workers(batch: KVBatchMeta, without: Collection[str] = ()) -> KVBatchMeta:
    """``batch`` without the data set's columns (messages, ground truth and the like), which stay in the queue.

    So do those of ``without``.

    Otherwise each worker fetches them in every phase and copies each row's objects with every micro-batch: a fifth of
    the time of a small model's passes.
    """
    columns = tq.get_client().kv_retrieve_meta(keys=batch.keys, partition_id=batch.partition_id).field_schema
    batch.fields = [
        name
        for name, column in columns.items()
        if name not in without and (not column["is_non_tensor"] or name == "multi_modal_inputs")
    ]
    return batch


@contextmanager
def _on_log_message(logger: logging.Logger, callback: Callable[[str], None]) -> Iterator[None]:
    handler = logging.Handler()
    handler.emit = lambda record: callback(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
