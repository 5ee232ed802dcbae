"""Writes rows into the queue, several at a time: most of a write's cost is the same for one row as for many."""

import asyncio
from collections import defaultdict
from typing import Any

import torch
import transfer_queue as tq
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

Row = tuple[str, dict[str, Any], dict[str, Any]]
"""Key, columns and tag."""


class QueueWriter:
    """Rows that come while a write is under way go together into the next one."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Row, str, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def put(self, rows: list[Row], partition: str) -> None:
        """Returns when ``rows`` are in the queue.

        Raises:
            Exception: the write of some of them failed.
        """
        if not rows:
            return
        written = asyncio.get_running_loop().create_future()
        self._waiting += [(row, partition, written) for row in rows]
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())
        await written

    async def _write_all(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []
            alike: dict[tuple[str, frozenset[Any]], list[tuple[Row, asyncio.Future[None]]]] = defaultdict(list)
            for row, partition, written in taken:
                alike[partition, _form(row[1])].append((row, written))
            for (partition, _), together in alike.items():
                keys, columns, tags = map(list, zip(*(row for row, _ in together), strict=True))
                try:
                    await tq.async_kv_batch_put(
                        keys=keys, fields=list_of_dict_to_tensordict(columns), tags=tags, partition_id=partition
                    )
                except Exception as error:
                    for _, written in together:
                        if not written.done():
                            written.set_exception(error)
            for _, _, written in taken:
                if not written.done():  # failed, or who waited was cancelled
                    written.set_result(None)


def _form(columns: dict[str, Any]) -> frozenset[Any]:
    """What rows must have in common to be one batch; an empty response lacks a column, and prompts may differ more."""
    return frozenset(
        (name, value.dtype, value.shape[1:], value.ndim) if isinstance(value, torch.Tensor) else name
        for name, value in columns.items()
    )
