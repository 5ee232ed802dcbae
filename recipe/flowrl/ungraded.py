"""Responses that couldn't be graded: left out of the update, told, and the end of the run if it lasts.

A grader that fails says nothing about the response: trained on as wrong, a right one would be unlearned.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transfer_queue as tq
from tensordict import TensorDict
from tensordict.tensorclass import NonTensorData, NonTensorStack
from transfer_queue import KVBatchMeta

from verl_ext.faults import UngradedError

TAG = "ungraded"
"""Tag of a row that is left out, beside verl's ``is_padding``, which keeps it out of verl's metrics."""


@dataclass
class UngradedGuard:
    """Counts the steps in which no response could be graded, and ends the run after too many in a row.

    Args:
        max_in_a_row: so many steps.
    """

    max_in_a_row: int
    _in_a_row: int = 0

    def step(self, ungraded: int, rows: int, step: int) -> str | None:
        """Count a step; returns what is to be told of it, if something is.

        Args:
            ungraded: responses of this step that couldn't be graded.
            rows: responses of this step.
            step: its number.

        Raises:
            UngradedError: it was the last of ``max_in_a_row`` steps without a graded response.
        """
        self._in_a_row = self._in_a_row + 1 if ungraded == rows else 0
        if self._in_a_row >= self.max_in_a_row:
            raise UngradedError(
                f"no response could be graded in {self._in_a_row} steps in a row, the last of them step {step} "
                "(train/grader_failed): python -m recipe.flowrl doctor says what the sandbox lacks; the same "
                "command continues"
            )
        if not ungraded:
            return None
        how = "no update" if ungraded == rows else "left out of the update"
        return (
            f"warning: step {step}: {ungraded} of {rows} responses couldn't be graded, since the grader failed: {how}"
        )


def is_ungraded(info: Mapping[str, Any]) -> bool:
    """Whether a reward's information says that the grader failed."""
    return bool(info.get("grader_failed"))


def leave_out(batch: KVBatchMeta) -> tuple[int, int]:
    """Take the responses that couldn't be graded out of a step, before its advantages are computed.

    Their tokens are masked, as in the rows with which verl fills up a batch, so that no loss counts them; each becomes
    a prompt of its own, so that no group's statistics do.

    Returns:
        How many responses couldn't be graded, and how many there are.
    """
    rows = [key for key, tag in zip(batch.keys, batch.tags, strict=True) if not tag.get("is_padding", False)]
    data = tq.kv_batch_get(keys=rows, partition_id=batch.partition_id, select_fields=["extra_fields"])
    infos = [getattr(fields, "data", fields).get("reward_extra_info", {}) for fields in data["extra_fields"]]
    failed = {_response(key) for key, info in zip(rows, infos, strict=True) if is_ungraded(info)}
    responses = len({_response(key) for key in rows})
    keys = [key for key in rows if _response(key) in failed]
    if len(failed) == responses:  # there is no update, and verl makes no metrics of masked tokens alone
        _tag(keys, batch, {TAG: True})
    elif failed:
        _tag(keys, batch, {TAG: True, "is_padding": True})
        _mask(keys, batch)
    return len(failed), responses


def _tag(keys: list[str], batch: KVBatchMeta, tag: Mapping[str, bool]) -> None:
    tags = dict(zip(batch.keys, batch.tags, strict=True))
    for key in keys:
        tags[key].update(tag)
    tq.kv_batch_put(keys=keys, partition_id=batch.partition_id, tags=[tags[key] for key in keys])


def _mask(keys: list[str], batch: KVBatchMeta) -> None:
    data = tq.kv_batch_get(keys=keys, partition_id=batch.partition_id, select_fields=["response_mask"])
    masks = [torch.zeros_like(row) for row in data["response_mask"].unbind()]
    nested = torch.nested.as_nested_tensor(masks, layout=torch.jagged)
    own = NonTensorStack(*(NonTensorData(f"{TAG}-{key}") for key in keys))
    fields = TensorDict({"response_mask": nested, "loss_mask": nested, "uid": own}, batch_size=len(keys))
    tq.kv_batch_put(keys=keys, partition_id=batch.partition_id, fields=fields)


def _response(key: str) -> str:
    """Of a row's key: what an agent says in several turns is graded once."""
    return key.rsplit("_", 1)[0]
