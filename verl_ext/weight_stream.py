"""New weights from the training ranks to rollout servers on resources of their own, over sockets of the run's own.

verl sends them through a checkpoint engine, and those that it has need GPUs. This one, ``own_sockets``, needs nothing
but the one machine that ranks and servers share. With any engine, verl's option ``custom_backend_module`` has to name
this module: it is all of this package that the process beside a server, which takes the weights, loads.
"""

import socket
import struct
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from verl.checkpoint_engine import CheckpointEngine, CheckpointEngineRegistry

from verl_ext import any_platform as any_platform  # the adapter that sends to where our servers listen
from verl_ext.rollout import WEIGHT_SYNC_TIMEOUT_S, WeightSyncError, sync_directory

BACKEND = "own_sockets"

_LENGTH = struct.Struct(">Q")
_END = _LENGTH.pack(0)


@CheckpointEngineRegistry.register(BACKEND)
class WeightStream(CheckpointEngine):
    """The first training rank writes the weights, in buckets of safetensors' format, to a Unix socket a receiver.

    The socket is in the run's directory, which only this user can enter, and what comes through it isn't unpickled. No
    wait is longer than ``VERL_EXT_WEIGHT_SYNC_TIMEOUT_S`` (seconds, default 600).

    Args:
        bucket_size: bytes that are sent at once; a larger tensor is a bucket of its own.
        is_master: of the first training rank. The others only help to gather the weights.
    """

    def __init__(self, bucket_size: int, is_master: bool = False) -> None:
        self.bucket_size, self.is_master = bucket_size, is_master
        self._path: Path | None = None
        self._listener: socket.socket | None = None
        self._peers: list[socket.socket] = []

    def prepare(self) -> dict[str, Any]:
        """Returns where the first training rank listens, as ``path``; nothing for the others."""
        if not self.is_master:
            return {}
        self._path = sync_directory() / f"weights-{uuid.uuid4().hex[:16]}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.settimeout(WEIGHT_SYNC_TIMEOUT_S)
        self._listener.bind(str(self._path))
        self._listener.listen(128)
        return {"path": str(self._path)}

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Arguments of :meth:`init_process_group` for each training rank and for each receiver."""
        receivers = [rollout_world_size, *[0] * (actor_wg_world_size - 1)]
        return {"receivers": receivers}, {"path": [metadata[0]["path"]] * rollout_world_size}

    def init_process_group(self, path: str | None = None, receivers: int = 0) -> None:
        """Connect: a receiver to ``path``, the first training rank with so many ``receivers``.

        Raises:
            WeightSyncError: that didn't happen in time.
        """
        try:
            if path is not None:
                peer = socket.socket(socket.AF_UNIX)
                self._peers.append(peer)
                peer.settimeout(WEIGHT_SYNC_TIMEOUT_S)
                peer.connect(path)
            elif self._listener is not None:
                for _ in range(receivers):
                    self._peers.append(self._listener.accept()[0])
                    self._peers[-1].settimeout(WEIGHT_SYNC_TIMEOUT_S)
        except OSError as error:
            raise _failed(f"{len(self._peers)} of {receivers or 1} connections", error) from error

    async def send_weights(
        self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None
    ) -> dict[str, float]:
        """Send ``weights``, or only gather them where this isn't the first rank.

        Returns:
            What the trainer adds to the step's metrics: seconds, and MiB to each receiver.

        Raises:
            WeightSyncError: a receiver is gone, or took nothing for too long.
        """
        begun, size = time.perf_counter(), 0
        bucket: dict[str, torch.Tensor] = {}
        for name, weight in weights:
            if not self.is_master:
                continue
            if bucket and sum(map(_bytes, bucket.values())) + _bytes(weight) > self.bucket_size:
                size += self._send(bucket)
                bucket = {}
            bucket[name] = weight.detach().clone(memory_format=torch.contiguous_format)  # tied ones share memory
        if not self.is_master:
            return {}
        size += self._send(bucket)
        self._send_bytes(_END)
        return {
            "separate_async/weights_sent_s": time.perf_counter() - begun,
            "separate_async/weights_sent_mib": size / 2**20,
        }

    async def receive_weights(self, global_steps: int | None = None) -> AsyncIterator[tuple[str, torch.Tensor]]:
        """Yields name and tensor of each weight, on the CPU.

        Raises:
            WeightSyncError: the sender is gone, or sent nothing for too long.
        """
        (peer,) = self._peers
        while length := _LENGTH.unpack(_receive(peer, _LENGTH.size))[0]:
            for item in safetensors.torch.load(bytes(_receive(peer, length))).items():
                yield item

    def finalize(self) -> None:
        """Close the connections of this sync."""
        for connection in [*self._peers, self._listener]:
            if connection is not None:
                connection.close()
        self._peers, self._listener = [], None
        if self._path is not None:
            with suppress(FileNotFoundError):
                self._path.unlink()

    def _send(self, bucket: dict[str, torch.Tensor]) -> int:
        content = safetensors.torch.save(bucket)
        self._send_bytes(_LENGTH.pack(len(content)))
        self._send_bytes(content)
        return len(content)

    def _send_bytes(self, content: bytes) -> None:
        for peer in self._peers:
            try:
                peer.sendall(content)
            except OSError as error:
                raise _failed("a rollout worker took no weights", error) from error


def _receive(peer: socket.socket, length: int) -> bytearray:
    content = bytearray(length)
    view, begun = memoryview(content), 0
    while begun < length:
        try:
            got = peer.recv_into(view[begun:])
        except OSError as error:
            raise _failed("the trainer sent no weights", error) from error
        if not got:
            raise _failed("the trainer sent no weights", ConnectionError("it closed the connection"))
        begun += got
    return content


def _bytes(weight: torch.Tensor) -> int:
    return weight.numel() * weight.element_size()


def _failed(what: str, error: Exception) -> WeightSyncError:
    reason = f"nothing moved for {WEIGHT_SYNC_TIMEOUT_S:.0f} s" if isinstance(error, TimeoutError) else str(error)
    return WeightSyncError(f"weight sync: {what}: {reason}; the other side's own error is in the log above")
