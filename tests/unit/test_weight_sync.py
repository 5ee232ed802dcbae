"""A weight sync whose receiver is gone ends with an error, on verl's own sender and real sockets."""

import asyncio
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import zmq

from verl_ext import rollout
from verl_ext.rollout import BoundedServerAdapter, WeightSyncError


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BoundedServerAdapter:
    """The adapter of a rank without a server of its own, so that no Ray is needed."""
    monkeypatch.setattr(rollout, "WEIGHT_SYNC_TIMEOUT_S", 0.5)
    made = object.__new__(BoundedServerAdapter)
    made._has_server, made.use_shm, made.replica_rank, made.rollout_rank = False, True, 3, 1
    made.zmq_handle = f"ipc://{tmp_path}/sync.sock"
    made.config = SimpleNamespace(checkpoint_engine=SimpleNamespace(update_weights_bucket_megabytes=1))
    return made


def sync(adapter: BoundedServerAdapter) -> float:
    """Seconds until the error."""
    started = time.monotonic()
    with pytest.raises(WeightSyncError, match="no answer from the vLLM worker of replica 3 in"):
        asyncio.run(adapter.update_weights(iter([("weight", torch.ones(4))])))
    return time.monotonic() - started


def test_nobody_answers(adapter: BoundedServerAdapter) -> None:
    assert 0.4 < sync(adapter) < 5
    assert zmq.Context.instance().getsockopt(zmq.RCVTIMEO) == -1, "as it was"


def test_the_receiver_goes_away_in_between(adapter: BoundedServerAdapter) -> None:
    """It takes the buffer, and no bucket."""

    def receive_once() -> None:
        with zmq.Context() as context, context.socket(zmq.REP) as socket:
            socket.connect(adapter.zmq_handle)
            socket.recv()
            socket.send(b"")

    receiver = threading.Thread(target=receive_once)
    receiver.start()
    assert 0.4 < sync(adapter) < 5
    receiver.join(5)
