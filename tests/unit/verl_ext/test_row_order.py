"""verl's replay buffer, with the rows that it samples in the order of their prompts."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

PROMPTS = ["d1", "07", "c3", "aa"]


@pytest.fixture
def sample(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, bool], list[str]]:
    """Keys of what verl samples of a queue whose rollouts ended in a random order."""
    from verl.trainer.ppo.v1 import replay_buffer

    from verl_ext.row_order import order_rows

    def get(seed: int, in_order: bool, partition: str = "train") -> list[str]:
        prompts: dict[str, Any] = {uid: {"is_prompt": True, "status": "finished", "global_steps": 3} for uid in PROMPTS}
        rollouts = [f"{uid}_{session}_{turn}" for uid in PROMPTS for session in range(12) for turn in range(2)]
        random.Random(seed).shuffle(rollouts)
        queue = {partition: {**prompts, **{key: {"status": "success", "key": key} for key in rollouts}}}
        monkeypatch.setattr(replay_buffer.tq, "kv_list", lambda *args: queue)
        monkeypatch.setattr(replay_buffer.tq, "kv_clear", lambda **kwargs: None)
        buffer = replay_buffer.ReplayBuffer("sync", {}, None, "drop", {})
        if in_order:
            order_rows(buffer)
        batch, _ = buffer.sample(global_steps=3, partition_id=partition, batch_size=len(PROMPTS))
        assert [tag["key"] for tag in batch.tags] == batch.keys
        return batch.keys

    return get


def test_verl_alone_takes_rows_as_they_come(sample: Callable[..., list[str]]) -> None:
    assert sample(0, False) != sample(1, False)


@pytest.mark.parametrize("partition", ["train", "val"])
def test_rows_by_prompt_session_and_turn(sample: Callable[..., list[str]], partition: str) -> None:
    wanted = [f"{uid}_{session}_{turn}" for uid in PROMPTS for session in range(12) for turn in range(2)]
    assert sample(0, True, partition) == sample(1, True, partition) == wanted
