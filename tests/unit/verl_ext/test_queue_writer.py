"""Rows that are ready while others are written go together, and each caller learns of its own."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch

from verl_ext.queue_writer import QueueWriter, Row


class Queue:
    """Takes rows at its own pace. ``writes``: of each write the partition and the keys."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from verl_ext import queue_writer

        self.writes: list[tuple[str, list[str]]] = []
        self.fails: set[str] = set()
        self.under_way = 0
        monkeypatch.setattr(queue_writer.tq, "async_kv_batch_put", self._put)

    async def _put(self, keys: list[str], fields: Any, tags: list[dict], partition_id: str) -> None:
        self.under_way += 1
        assert self.under_way == 1, "one write at a time"
        assert [row.tolist() for row in fields["ids"]] == [[len(key)] for key in keys]
        assert tags == [{"tag": key} for key in keys]
        await asyncio.sleep(0.01)
        self.under_way -= 1
        self.writes.append((partition_id, keys))
        if self.fails & set(keys):
            raise ConnectionError("the queue is gone")


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    return Queue(monkeypatch)


def row(key: str, **more: Any) -> Row:
    return key, {"ids": torch.tensor([len(key)]), **more}, {"tag": key}


def run(what: Callable[[QueueWriter], Awaitable[Any]]) -> Any:
    async def alone() -> Any:
        return await what(QueueWriter())

    return asyncio.run(alone())


def test_what_is_ready_during_a_write_goes_into_the_next(queue: Queue) -> None:
    async def puts(writer: QueueWriter) -> None:
        first = asyncio.create_task(writer.put([row("a"), row("bb")], "train"))
        await asyncio.sleep(0.003)
        later = [asyncio.create_task(writer.put([row(key * 3)], "train")) for key in "cde"]
        await first
        assert not any(task.done() for task in later), "only what is written has returned"
        await asyncio.gather(*later)
        await writer.put([row("f")], "train")  # after all were written

    run(puts)
    assert queue.writes == [("train", ["a", "bb"]), ("train", ["ccc", "ddd", "eee"]), ("train", ["f"])]


def test_partitions_and_rows_of_other_forms_are_written_by_themselves(queue: Queue) -> None:
    async def puts(writer: QueueWriter) -> None:
        others = [row("b", extra=torch.zeros(1)), row("c", extra=torch.zeros(2)), row("d", extra=None)]
        others += [row("e", extra=torch.zeros(1, 4)), row("f", extra=torch.zeros(1, dtype=torch.int64))]
        await asyncio.gather(writer.put([row("a"), *others], "train"), writer.put([row("a")], "val"))

    run(puts)
    assert sorted(queue.writes) == [
        ("train", ["a"]), ("train", ["b", "c"]), ("train", ["d"]), ("train", ["e"]), ("train", ["f"]), ("val", ["a"])
    ]  # fmt: skip


def test_a_failed_write_is_its_rows_failure_alone(queue: Queue) -> None:
    queue.fails = {"bad"}

    async def puts(writer: QueueWriter) -> list[Any]:
        first = asyncio.create_task(writer.put([row("a")], "train"))
        await asyncio.sleep(0.003)
        second = asyncio.create_task(writer.put([row("bad")], "train"))
        with pytest.raises(ConnectionError):
            await asyncio.gather(first, second)
        return await asyncio.gather(first, second, writer.put([row("c")], "train"), return_exceptions=True)

    first, second, third = run(puts)
    assert first is None and third is None and isinstance(second, ConnectionError)


def test_a_failed_write_costs_no_row_of_another_form(queue: Queue) -> None:
    queue.fails = {"bad"}

    async def puts(writer: QueueWriter) -> list[Any]:
        rows = [[row("a")], [row("b"), row("bad", extra=None)], [row("c", other=None)]]
        return await asyncio.gather(*(writer.put(one, "train") for one in rows), return_exceptions=True)

    first, second, third = run(puts)
    assert first is None and third is None and isinstance(second, ConnectionError)


def test_a_caller_that_is_cancelled_leaves_the_others_be(queue: Queue) -> None:
    async def puts(writer: QueueWriter) -> None:
        gone, stays = (asyncio.create_task(writer.put([row(key)], "train")) for key in ("a", "b"))
        await asyncio.sleep(0.003)
        gone.cancel()
        await stays

    run(puts)
    assert queue.writes == [("train", ["a", "b"])]


def test_nothing_to_write(queue: Queue) -> None:
    run(lambda writer: writer.put([], "train"))
    assert not queue.writes
