"""Responses that the rollout correction rejected, after verl has masked them: they count in nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorData, NonTensorStack
from transfer_queue import KVBatchMeta

from recipe.flowrl import trainer
from recipe.flowrl.trainer import RecordedTrainer, Rows
from verl_ext.faults import RejectedError

MASKS = ([1, 1, 0, 1], [0, 0, 0], [1, 1], [1])
PROMPTS = ("a", "a", "a", "b")


def jagged(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


class Queue:
    """The columns of one batch; keeps what is put."""

    def __init__(self) -> None:
        masks = [torch.tensor(mask) for mask in MASKS]
        self.put: dict[str, torch.Tensor] = {}
        columns = {
            "advantages": jagged([0.5 * (row + 1) * mask for row, mask in enumerate(masks)]),
            "rm_scores": jagged([torch.ones(len(mask)) for mask in masks]),
            "old_log_probs": jagged([torch.full((len(mask),), -1.0 - row) for row, mask in enumerate(masks)]),
            "ref_log_prob": jagged([torch.full((len(mask),), -2.0) for mask in masks]),
            "response_mask": jagged(masks),
        }
        self.data = TensorDict(columns, batch_size=len(MASKS))
        self.data["uid"] = NonTensorStack(*map(NonTensorData, PROMPTS))

    def kv_batch_get(self, select_fields: list[str], **where: Any) -> TensorDict:
        return self.data.select(*select_fields)

    def kv_batch_put(self, fields: TensorDict, **where: Any) -> None:
        self.put |= dict(fields.items())


@pytest.fixture
def batch() -> KVBatchMeta:
    keys = [f"{row}_0_0" for row in range(len(MASKS))]
    return KVBatchMeta(keys=keys, tags=[{} for _ in keys], partition_id="train", fields=[], extra_info={})


def test_they_are_in_no_group(monkeypatch: pytest.MonkeyPatch, batch: KVBatchMeta) -> None:
    queue = Queue()
    monkeypatch.setattr(trainer, "tq", queue)
    seen: list[Rows] = []

    def compute(rows: Rows) -> torch.Tensor:
        seen.append(rows)
        return torch.arange(1.0, 5.0)

    own = object.__new__(RecordedTrainer)
    own.use_reference_policy = True
    own._put_row_values(batch, "column", compute)
    (rows,) = seen
    assert rows.index[0] == rows.index[2] == "a" and rows.index[3] == "b"
    assert rows.index[1] not in ("a", "b")
    assert rows.length.tolist() == [3, 1, 2, 1], "of the model's tokens"
    assert rows.ref_log_ratio.tolist() == [3.0, 0.0, -2.0, -2.0]
    assert [row.tolist() for row in queue.put["column"].unbind()] == [[1, 1, 0, 1], [0, 0, 0], [3, 3], [4]]


@pytest.mark.parametrize("rejected", [0.5, 1.0])
def test_none_left_ends_the_run(monkeypatch: pytest.MonkeyPatch, batch: KVBatchMeta, rejected: float) -> None:
    class Verls:
        def _compute_advantage(self, batch: KVBatchMeta, metrics: dict[str, float]) -> KVBatchMeta:
            metrics["rollout_corr/rollout_rs_masked_fraction"] = rejected
            return batch

    class Trainer(RecordedTrainer, Verls):
        pass

    monkeypatch.setattr(trainer, "leave_out", lambda batch: (0, 4))
    own = object.__new__(Trainer)
    own.config = OmegaConf.create(
        {
            "algorithm": {
                "kl_matched_beta": None,
                "dmpo_weight": None,
                "rollout_correction": {"rollout_rs": "seq_mean_k3"},
            }
        }
    )
    own.global_steps, own._measures_lag, own._on_policy = 7, False, False
    own.ungraded_guard = SimpleNamespace(step=lambda *counts: None)
    if rejected < 1:
        assert own._compute_advantage(batch, {}) is batch
        return
    with pytest.raises(RejectedError, match="^step 7: .*rollout_rs=seq_mean_k3 rejected every response") as ended:
        own._compute_advantage(batch, {})
    assert "\n" not in str(ended.value)
