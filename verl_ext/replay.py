"""Earlier rollouts in the batches of verl's V1 trainers, so that a step needs fewer new ones.

For objectives that hold whoever drew the data. Which groups come again :mod:`verl_ext.replay_memory` decides.
"""

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transfer_queue as tq
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl import DataProto
from verl.utils.debug.metrics import calculate_debug_metrics
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from verl_ext.files import replacing
from verl_ext.lag import lag_of
from verl_ext.replay_memory import Group, ReplayMemory

logger = logging.getLogger(__name__)

FILE = "replay.pt"
"""In a checkpoint: the groups that are kept."""
REPLAYED = "replayed"
"""Tag of a row that an earlier step trained on."""
_REFERENCE = "ref_log_prob"

if TYPE_CHECKING:
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer as _Trainer
else:
    _Trainer = object


@dataclass(frozen=True)
class Row:
    """A row of verl's queue: its key, its tag, and what each column holds of it."""

    key: str
    tag: dict[str, Any]
    columns: dict[str, Any]


class ReplayMixin(_Trainer):
    """Put in front of a verl V1 trainer class: a share of each mini-batch's prompts are such as were trained on before.

    A group comes again whole, as the rollout put it into the queue and with the reference's log-probs, which aren't
    computed again; so do its log-probs under the policy that drew it. pi_old, advantages and what follows from them are
    those of the step in which it comes again. Groups with a failed rollout aren't kept. As long as there are too few
    groups a step has new prompts only. A checkpoint holds the memory; one without it is gone on from with an empty one.

    verl's metrics of the rollout (rewards, lengths, ages) are those of the new rows, since a replayed one is marked as
    verl marks rows that fill up a batch.
    """

    replay: ReplayMemory[list[Row]] | None = None
    """None: no replay."""

    def __init__(self, config: DictConfig) -> None:
        super().__init__(config)
        self._drawn: list[Group[list[Row]]] = []
        self._given = 0
        self._fresh: list[Row] = []

    def worth_replaying(self, tag: Mapping[str, Any]) -> bool:
        """Whether a row, by its tag at the end of its step, may come again."""
        return not tag.get("is_padding", False)

    @property
    def new_prompts(self) -> int:
        """How many of this step's prompts are new."""
        return self.config.data.train_batch_size - len(self._drawn)

    def _init_dataloader(self) -> None:
        if self.replay is not None:  # verl asks for prompts in multiples of this
            with open_dict(self.config):
                self.config.data.gen_batch_size = 1
        super()._init_dataloader()

    def step(self, metrics: dict, timing_raw: dict) -> KVBatchMeta:
        if self.replay is None:
            return super().step(metrics, timing_raw)
        prompts, mini = self.config.data.train_batch_size, self.config.actor_rollout_ref.actor.ppo_mini_batch_size
        self._drawn = self.replay.draw(self.replay.config.of_step(prompts, mini), self.global_steps)
        self._given, self._fresh = 0, []
        batch = super().step(metrics, timing_raw)
        metrics.update(self._replay_metrics(batch))
        for tag in batch.tags:
            tag["is_padding"] = tag.get("is_padding", False) or tag.get(REPLAYED, False)
        self._remember(batch)
        return batch

    def _next_train_batch(self, num_prompts: int | None = None) -> TensorDict:
        return super()._next_train_batch(self.new_prompts if num_prompts is None else num_prompts)

    def _step_once(self, metrics: dict, timing_raw: dict, sample_batch_size: int) -> KVBatchMeta:
        replayed = len(self._drawn) * sample_batch_size // self.config.data.train_batch_size
        return super()._step_once(metrics, timing_raw, sample_batch_size - replayed)

    def _balance_batch(self, batch: KVBatchMeta, *args: Any, **kwargs: Any) -> KVBatchMeta:
        """The first that verl does with a batch: here the earlier rows join it."""
        if self.replay is not None:
            self._fresh += _read(batch)
            batch = self._joined(batch)
        return super()._balance_batch(batch, *args, **kwargs)

    def _joined(self, batch: KVBatchMeta) -> KVBatchMeta:
        """``batch`` and its part of the drawn groups, which are put into the queue; each mini-batch has its share."""
        sizes = self.config.actor_rollout_ref
        minis = max(1, self.config.data.train_batch_size // sizes.actor.ppo_mini_batch_size // self.parameter_sync_step)
        groups = self._drawn[self._given : self._given + len(self._drawn) // self.parameter_sync_step]
        self._given += len(groups)
        if not groups:
            return batch
        earlier = [row for group in groups for row in group.rows]
        tags = [{**row.tag, REPLAYED: True} for row in earlier]
        tq.kv_batch_put(
            keys=[row.key for row in earlier],
            partition_id=batch.partition_id,
            fields=list_of_dict_to_tensordict([row.columns for row in earlier]),
            tags=tags,
        )
        fresh = list(zip(batch.keys, batch.tags, strict=True))
        old = list(zip([row.key for row in earlier], tags, strict=True))
        mixed = [
            pair for new_part, old_part in zip(_parts(fresh, minis), _parts(old, minis), strict=True)
            for pair in [*new_part, *old_part]
        ]  # fmt: skip
        keys, all_tags = map(list, zip(*mixed, strict=True))
        return KVBatchMeta(
            keys=keys, tags=all_tags, partition_id=batch.partition_id, fields=batch.fields, extra_info=batch.extra_info
        )

    def _compute_old_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        batch = super()._compute_old_log_prob(batch, metrics)
        if "training/rollout_probs_diff_max" in metrics and _replayed(batch):
            # A check of the weight sync, for which earlier rows are no measure.
            fields = ["response_mask", "responses", "rollout_log_probs", "old_log_probs"]
            data = tq.kv_batch_get(keys=_new(batch).keys, partition_id=batch.partition_id, select_fields=fields)
            metrics.update(calculate_debug_metrics(DataProto(batch=data.to_padded_tensor())))
        return batch

    def _compute_ref_log_prob(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        super()._compute_ref_log_prob(_new(batch) if _replayed(batch) else batch, metrics)
        return batch

    def _log_rollout_data(self, batch: KVBatchMeta, *args: Any, **kwargs: Any) -> None:
        super()._log_rollout_data(_new(batch) if _replayed(batch) else batch, *args, **kwargs)

    # ---- the memory ----------------------------------------------------------------------------------------------

    def _remember(self, batch: KVBatchMeta) -> None:
        """Keep the step's new groups that are whole."""
        assert self.replay is not None
        tags = dict(zip(batch.keys, batch.tags, strict=True))
        groups: dict[str, list[Row]] = defaultdict(list)
        for row in self._fresh:
            groups[row.key.split("_")[0]].append(row)
        rollouts = self.config.actor_rollout_ref.rollout.n
        kept = [
            rows
            for rows in groups.values()
            if len({row.key.rsplit("_", 1)[0] for row in rows}) == rollouts
            and all(self.worth_replaying(tags[row.key]) for row in rows)
        ]
        if self.use_reference_policy and kept:
            keys = [row.key for rows in kept for row in rows]
            data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=[_REFERENCE])
            reference = dict(zip(keys, _values(data[_REFERENCE]), strict=True))
            for rows in kept:
                for row in rows:
                    row.columns[_REFERENCE] = reference[row.key]
        for rows in kept:
            reward = sum(float(row.columns["rm_scores"].sum()) for row in rows) / len(rows)
            self.replay.add(rows, reward, self.global_steps)
        self._fresh = []

    def _replay_metrics(self, batch: KVBatchMeta) -> dict[str, float]:
        """``replay/share`` of the rows; of those the age in steps, reward, and distance from who drew them, in nats."""
        assert self.replay is not None
        replayed = _replayed(batch)
        real = sum(not tag.get("is_padding", False) for tag in batch.tags)
        told: dict[str, float] = {"replay/share": len(replayed) / max(1, real), "replay/groups": len(self.replay)}
        if not replayed:
            return told
        ages = [self.global_steps - group.step for group in self._drawn]
        told |= {
            "replay/age_mean": sum(ages) / len(ages),
            "replay/age_max": max(ages),
            "replay/reward": sum(group.reward for group in self._drawn) / len(self._drawn),
        }
        if self.config.actor_rollout_ref.rollout.calculate_log_probs:
            lag = lag_of(batch.select_keys(replayed))
            told |= {f"replay/log_ratio_{name}": lag[name] for name in ("abs_mean", "abs_max") if name in lag}
        return told

    def _save_checkpoint(self) -> None:
        super()._save_checkpoint()
        if self.replay is not None:
            with replacing(self._checkpoint_folder() / FILE) as temporary:
                torch.save(self.replay.state(), temporary)

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()
        if self.replay is None or not self.global_steps:
            return
        settings = self.config.trainer
        given = settings.resume_from_path if settings.resume_mode == "resume_path" else None
        path = (Path(given) if given else self._checkpoint_folder()) / FILE
        if path.exists():
            self.replay.load(torch.load(path, weights_only=False))
        else:
            logger.warning("no earlier rollouts in %s: the replay begins anew", path.parent)

    def _checkpoint_folder(self) -> Path:
        return Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"


def _replayed(batch: KVBatchMeta) -> list[str]:
    return [key for key, tag in zip(batch.keys, batch.tags, strict=True) if tag.get(REPLAYED)]


def _new(batch: KVBatchMeta) -> KVBatchMeta:
    """``batch`` without the replayed rows."""
    return batch.select_keys([key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get(REPLAYED)])


def _read(batch: KVBatchMeta) -> Iterator[Row]:
    """The rows of a batch, with all that the queue has of them."""
    data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id)
    columns = {name: _values(data.get(name)) for name in data.keys()}
    for number, (key, tag) in enumerate(zip(batch.keys, batch.tags, strict=True)):
        yield Row(key, dict(tag), {name: values[number] for name, values in columns.items()})


def _values(column: Any) -> list[Any]:
    """A column's values, a row each; tensors with a storage of their own, so that a kept row keeps no other one."""
    if isinstance(column, torch.Tensor):
        return [row.clone() for row in column.unbind()]
    return [getattr(item, "data", item) for item in column]


def _parts(items: Sequence[Any], parts: int) -> list[Sequence[Any]]:
    """``items`` in so many parts, as equal as can be."""
    ends = [len(items) * part // parts for part in range(parts + 1)]
    return [items[start:end] for start, end in zip(ends, ends[1:], strict=False)]
