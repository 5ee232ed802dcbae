"""Weights through the run's own sockets: the same on every receiver, and an error where the other side is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from verl.checkpoint_engine import CheckpointEngineRegistry

from verl_ext import weight_stream
from verl_ext.rollout import SYNC_DIRECTORY, WeightSyncError
from verl_ext.weight_stream import BACKEND, WeightStream

BUCKET = 4096


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(SYNC_DIRECTORY, str(tmp_path / "run"))
    return tmp_path / "run"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_stream, "WEIGHT_SYNC_TIMEOUT_S", 0.5)


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    tied = torch.randn(7, 11, generator=generator)
    return {
        "embedding": tied,
        "larger than a bucket": torch.randn(64, 64, generator=generator),
        "transposed": torch.randn(5, 3, generator=generator).T,
        "half": torch.randn(33, generator=generator).bfloat16(),
        "scalar": torch.tensor(3.0, dtype=torch.float64),
        "empty": torch.zeros(0, 4),
        "counts": torch.arange(2000),
        "head": tied,
    }


def connected(ranks: int, receivers: int) -> tuple[list[WeightStream], list[WeightStream]]:
    """Training ranks and receivers, in the order in which verl's manager calls them."""
    training = [WeightStream(bucket_size=BUCKET, is_master=rank == 0) for rank in range(ranks)]
    serving = [WeightStream(bucket_size=BUCKET) for _ in range(receivers)]
    metadata = [engine.prepare() for engine in [*training, *serving]]
    for_training, for_serving = WeightStream.build_topology(ranks, receivers, metadata)
    at_once([
        lambda engine=engine, i=i, given=given: engine.init_process_group(**{name: v[i] for name, v in given.items()})
        for engines, given in ((training, for_training), (serving, for_serving))
        for i, engine in enumerate(engines)
    ])  # fmt: skip
    return training, serving


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(timeout=20) for future in [pool.submit(call) for call in calls]]


def sent(engine: WeightStream, content: dict[str, torch.Tensor]) -> dict[str, float]:
    return asyncio.run(engine.send_weights(iter(content.items()), global_steps=1))


def received(engine: WeightStream) -> dict[str, torch.Tensor]:
    async def collect() -> dict[str, torch.Tensor]:
        return {name: weight async for name, weight in engine.receive_weights(global_steps=1)}

    return asyncio.run(collect())


def test_every_receiver_gets_every_weight(directory: Path) -> None:
    """Twice, since verl builds the connections anew for each sync; the second training rank only gathers."""
    for _ in range(2):
        training, serving = connected(ranks=2, receivers=3)
        calls = [lambda engine=engine: sent(engine, weights()) for engine in training]
        results = at_once(calls + [lambda engine=engine: received(engine) for engine in serving])
        for got in results[2:]:
            assert got.keys() == weights().keys()
            for name, weight in weights().items():
                assert got[name].dtype == weight.dtype and torch.equal(got[name], weight), name
        assert results[0]["separate_async/weights_sent_mib"] > 0 and results[1] == {}
        for engine in [*training, *serving]:
            engine.finalize()
        assert list(directory.iterdir()) == []


def test_verl_finds_it_and_nobody_else_reaches_it(directory: Path) -> None:
    assert CheckpointEngineRegistry.get(BACKEND) is WeightStream
    engine = CheckpointEngineRegistry.new(BACKEND, bucket_size=BUCKET, is_master=True)
    path = Path(engine.prepare()["path"])
    assert path.is_socket() and path.parent.stat().st_mode & 0o777 == 0o700
    engine.finalize()


def test_a_receiver_that_never_comes(directory: Path, impatient: None) -> None:
    engine = WeightStream(bucket_size=BUCKET, is_master=True)
    engine.prepare()
    with pytest.raises(WeightSyncError, match="0 of 2 connections: nothing moved for"):
        engine.init_process_group(receivers=2)


def test_a_receiver_that_died(directory: Path, impatient: None) -> None:
    (sender,), (receiver,) = connected(1, 1)
    receiver.finalize()
    with pytest.raises(WeightSyncError, match="a rollout worker took no weights: .*Broken pipe"):
        sent(sender, {"large": torch.zeros(2**20)})


def test_a_receiver_that_stands_still(directory: Path, impatient: None) -> None:
    (sender,), _ = connected(1, 1)
    with pytest.raises(WeightSyncError, match="a rollout worker took no weights: nothing moved for"):
        sent(sender, {"large": torch.zeros(2**22)})


@pytest.mark.parametrize("closes", [True, False])
def test_a_sender_that_stops(closes: bool, directory: Path, impatient: None) -> None:
    (sender,), (receiver,) = connected(1, 1)
    sender._send_bytes(b"\0\0")
    if closes:
        sender.finalize()
    with pytest.raises(WeightSyncError, match="the trainer sent no weights: " + ("it closed" if closes else "nothing")):
        received(receiver)
