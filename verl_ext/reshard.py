"""verl's FSDP2 checkpoints on another number of ranks than wrote them, cut anew while they are loaded."""

import hashlib
import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import (
    _compute_local_shape_and_global_offset,
    compute_local_shape_and_global_offset,
)
from verl.single_controller.base.decorator import Dispatch, register
from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager
from verl.workers.engine_workers import TrainingWorker

logger = logging.getLogger(__name__)


class ReshardingCheckpointManager(FSDPCheckpointManager):
    """verl's, which also loads what another number of ranks has saved with FSDP2.

    Each rank reads, of each file, the rows that it holds now; files are mapped into memory, not read whole. Model and
    optimizer are what they were. So is the random state of a rank that there was before; a new one's is derived from an
    old one's and its own number.
    """

    @classmethod
    def like(cls, manager: FSDPCheckpointManager) -> "ReshardingCheckpointManager":
        """One for the same model and optimizer as ``manager``."""
        names = ("model", "optimizer", "lr_scheduler", "processing_class", "checkpoint_config", "trust_remote_code")
        return cls(**{name: getattr(manager, name) for name in names})

    def load_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        own = Path(local_path) / f"model_world_size_{self.world_size}_rank_{self.rank}.pt"
        if own.exists() or not self.should_load_model:
            super().load_checkpoint(local_path, *args, **kwargs)
            return
        ranks = int(json.loads((Path(local_path) / "fsdp_config.json").read_text())["world_size"])
        self._load_resharded(Path(local_path), ranks)
        torch.distributed.barrier()

    def _load_resharded(self, directory: Path, ranks: int) -> None:
        def saved(kind: str) -> list[Any]:
            files = [directory / f"{kind}_world_size_{ranks}_rank_{rank}.pt" for rank in range(ranks)]
            return [torch.load(file, map_location="cpu", mmap=True, weights_only=False) for file in files]

        shards, live = saved("model"), self.model.state_dict()
        state = {name: reshard([shard[name] for shard in shards], live[name]) for name in shards[0]}
        self.model.load_state_dict(state, strict=not self.is_lora_only_state_dict(state))
        del shards, state
        if self.should_load_optimizer:
            self.optimizer.load_state_dict(self._optimizer_state(saved("optim")))
        if self.should_load_extra:
            extra = saved("extra_state")
            self._load_random_state([state["rng"] for state in extra])
            if self.lr_scheduler is not None:
                self.lr_scheduler.load_state_dict(extra[0]["lr_scheduler"])
        if self.rank == 0:
            logger.warning("%s: written by %d ranks, loaded by %d", directory, ranks, self.world_size)

    def _optimizer_state(self, saved: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Parameters are numbered alike on every rank, whatever the number of ranks."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        state = {
            index: {
                name: reshard([rank["state"][index][name] for rank in saved], parameters[index]) for name in entries
            }
            for index, entries in saved[0]["state"].items()
        }
        return {"state": state, "param_groups": saved[0]["param_groups"]}

    def _load_random_state(self, saved: Sequence[dict[str, Any]]) -> None:
        self.load_rng_state(saved[self.rank % len(saved)])
        if self.rank >= len(saved):
            state = saved[self.rank % len(saved)]["cpu"].numpy().tobytes()
            seed = int.from_bytes(hashlib.sha256(state + str(self.rank).encode()).digest()[:4], "big")
            torch.manual_seed(seed)  # the device's as well
            np.random.seed(seed)
            random.seed(seed)


def reshard(shards: Sequence[Any], live: Any) -> Any:
    """This rank's part of a value of which ``shards`` hold each old rank's, sharded as ``live`` is.

    A value that isn't sharded is the same on every rank, and comes from the first. ``live`` may differ in dtype.
    """
    if not isinstance(shards[0], DTensor):
        return shards[0]
    if not isinstance(live, DTensor):
        return _region(shards, shards[0].shape, (0,) * shards[0].ndim)
    shape, offset = compute_local_shape_and_global_offset(live.shape, live.device_mesh, live.placements)
    local = _region(shards, shape, offset).to(live.to_local().device)
    return DTensor.from_local(
        local, live.device_mesh, live.placements, run_check=False, shape=live.shape, stride=live.stride()
    )


def _region(shards: Sequence[DTensor], shape: Sequence[int], offset: Sequence[int]) -> torch.Tensor:
    """The block of ``shape`` at ``offset`` of the whole tensor, put together from the old ranks' blocks."""
    region = torch.empty(tuple(shape), dtype=shards[0].dtype)
    for rank, shard in enumerate(shards):
        mesh = shard.device_mesh.mesh
        coordinate = (mesh == rank).nonzero()[0].tolist()
        old_shape, old_offset = _compute_local_shape_and_global_offset(
            shard.shape, mesh.shape, coordinate, shard.placements
        )
        starts = [max(start, old) for start, old in zip(offset, old_offset, strict=True)]
        ends = [
            min(start + size, old + old_size)
            for start, size, old, old_size in zip(offset, shape, old_offset, old_shape, strict=True)
        ]
        if all(start < end for start, end in zip(starts, ends, strict=True)):
            target, source = (
                tuple(slice(s - o, e - o) for s, e, o in zip(starts, ends, origin, strict=True))
                for origin in (offset, old_offset)
            )
            region[target] = shard._local_tensor[source]
    return region


class ReshardingTrainingWorker(TrainingWorker):
    """verl's training worker, whose FSDP2 checkpoints load on any number of ranks."""

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def reset(self) -> None:
        super().reset()
        manager = getattr(self.engine, "checkpoint_manager", None)
        if type(manager) is FSDPCheckpointManager:
            self.engine.checkpoint_manager = ReshardingCheckpointManager.like(manager)
