"""Responses whose grader failed take part in nothing; a queue in this process stands in for TransferQueue's.

``tests/stack/test_ungraded_run.py`` does the same in a run.
"""

from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

from recipe.flowrl import ungraded
from recipe.flowrl.advantages import group_log_z
from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.objective import flowrl_loss
from recipe.flowrl.ungraded import UngradedGuard, leave_out
from verl_ext.faults import UngradedError


class Queue:
    """Columns by key."""

    def __init__(self, rows: dict[str, dict[str, Any]]) -> None:
        self.rows, self.tags = rows, {key: {"seq_len": 3} for key in rows}

    def kv_batch_get(self, keys: list[str], partition_id: str, select_fields: list[str]) -> dict[str, Any]:
        columns = {name: [self.rows[key][name] for key in keys] for name in select_fields}
        if "response_mask" in columns:
            columns["response_mask"] = torch.nested.as_nested_tensor(columns["response_mask"], layout=torch.jagged)
        return columns

    def kv_batch_put(
        self,
        keys: list[str],
        partition_id: str,
        fields: TensorDict | None = None,
        tags: list[dict[str, Any]] | None = None,
    ) -> None:
        self.tags.update(zip(keys, tags or [], strict=False))
        if fields is not None:
            for name in ("response_mask", "loss_mask"):
                for key, row in zip(keys, fields[name].unbind(), strict=True):
                    self.rows[key][name] = row
            for key, uid in zip(keys, fields["uid"], strict=True):
                self.rows[key]["uid"] = getattr(uid, "data", uid)


def queue(monkeypatch: pytest.MonkeyPatch, failed: set[str], keys: list[str]) -> tuple[Queue, KVBatchMeta]:
    mask = torch.ones(3, dtype=torch.int64)
    rows = {
        key: {
            "uid": key[0],
            "response_mask": mask,
            "loss_mask": mask,
            "extra_fields": {"reward_extra_info": {"acc": 0.0, "grader_failed": float(key in failed)}},
        }
        for key in keys
    }
    store = Queue(rows)
    monkeypatch.setattr(ungraded, "tq", store)
    tags = [dict(store.tags[key]) for key in keys]
    return store, KVBatchMeta(keys=keys, tags=tags, partition_id="train", fields=[], extra_info={})


KEYS = [f"{prompt}_{session}_0" for prompt in "ab" for session in range(3)]


def test_a_response_is_masked_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    store, batch = queue(monkeypatch, {"a_1_0"}, KEYS)
    assert leave_out(batch) == (1, 6)
    left = store.rows["a_1_0"]
    assert not left["response_mask"].any() and not left["loss_mask"].any()
    assert left["uid"] not in {store.rows[key]["uid"] for key in KEYS if key != "a_1_0"}
    assert store.tags["a_1_0"] == {"seq_len": 3, "is_padding": True, "ungraded": True} == batch.tags[1]
    assert all(
        store.rows[key]["response_mask"].all() and store.tags[key] == {"seq_len": 3} for key in KEYS if key != "a_1_0"
    )

    # verl's GRPO, the group's log Z and FlowRL's loss are those of the others alone.
    mask = torch.stack([store.rows[key]["response_mask"] for key in KEYS])
    uids = np.array([store.rows[key]["uid"] for key in KEYS])
    rewards = torch.zeros(6, 3)
    rewards[:, -1] = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])
    kept = [index for index, key in enumerate(KEYS) if key != "a_1_0"]
    advantages, _ = compute_grpo_outcome_advantage(rewards.clone(), mask, uids)
    alone, _ = compute_grpo_outcome_advantage(rewards[kept].clone(), mask[kept], uids[kept])
    assert torch.equal(advantages[kept], alone) and not advantages[1].any()
    ratios = torch.arange(6.0)
    log_z = group_log_z(advantages[:, 0], ratios, torch.full((6,), 3), uids, FlowRLConfig())
    assert torch.equal(
        log_z[kept], group_log_z(alone[:, 0], ratios[kept], torch.full((5,), 3), uids[kept], FlowRLConfig())
    )

    def loss(rows: list[int]) -> torch.Tensor:
        log_prob = torch.full((6, 3), -1.0)[rows]
        value, _ = flowrl_loss(
            log_prob=log_prob,
            old_log_prob=log_prob,
            ref_log_prob=log_prob - 0.1,
            log_z=log_z[rows],
            reward=advantages[rows, 0],
            response_mask=mask[rows],
            config=FlowRLConfig(),
            loss_weights=torch.full((len(rows),), 1 / 6),
        )
        return value

    assert torch.equal(loss(list(range(6))), loss(kept))


def test_all_rows_of_a_response_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["a_0_0", "a_0_1", "a_1_0"]
    store, batch = queue(monkeypatch, {"a_0_1"}, keys)
    assert leave_out(batch) == (1, 2)
    assert [bool(store.rows[key]["response_mask"].any()) for key in keys] == [False, False, True]


def test_rows_that_fill_a_batch_up_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    store, batch = queue(monkeypatch, {"a_0_0"}, ["a_0_0", "p_0_0"])
    batch.tags[1]["is_padding"] = True
    assert leave_out(batch) == (1, 1)
    assert batch.tags[0] == {"seq_len": 3, "ungraded": True} and store.rows["a_0_0"]["response_mask"].all(), (
        "there is no update, and verl needs rows for its metrics"
    )


def test_it_is_told_and_ends_the_run_if_it_lasts() -> None:
    guard = UngradedGuard(max_in_a_row=2)
    assert guard.step(0, 8, 1) is None
    assert "step 2: 3 of 8 responses couldn't be graded" in guard.step(3, 8, 2)
    assert "no update" in guard.step(8, 8, 3)
    assert guard.step(0, 8, 4) is None
    guard.step(8, 8, 5)
    with pytest.raises(UngradedError, match="in 2 steps in a row, the last of them step 6"):
        guard.step(8, 8, 6)
