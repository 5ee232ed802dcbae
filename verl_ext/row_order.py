"""Rows of a batch in the order of their prompts, not in that in which rollouts happened to end."""

import functools
from typing import Any

from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer


def order_rows(replay_buffer: ReplayBuffer) -> None:
    """Have ``replay_buffer`` sort what it samples: by prompt as submitted, then by session, then by turn.

    Micro-batches, and with them the rounding of every sum, are then the same in each run that samples the same tokens.
    Which prompts make a batch is left to verl: with ``trainer_mode=sync`` all that were submitted for it, else those
    that end first.
    """
    sample = replay_buffer.sample

    @functools.wraps(sample)
    def sample_in_order(*args: Any, **kwargs: Any) -> tuple[KVBatchMeta, dict]:
        batch, metrics = sample(*args, **kwargs)
        # verl's last look at the queue, which lists prompts in the order in which they were put there.
        submitted = {uid: place for place, uid in enumerate(replay_buffer.prompt_global_steps[batch.partition_id])}

        def place(row: int) -> tuple[int, int, int]:
            uid, session, turn = batch.keys[row].split("_")
            return submitted[uid], int(session), int(turn)

        batch.reorder(sorted(range(len(batch.keys)), key=place))
        return batch, metrics

    replay_buffer.sample = sample_in_order
