"""Weights of the actor that are kept aside and put back, so that several updates share one old policy."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only
from verl.experimental.separation.engine_workers import DetachActorWorker


class SnapshotWorker(DetachActorWorker):
    """verl's actor, rollout and reference worker that keeps its weights aside, a copy of them on the CPU as well.

    verl keeps ``tensor.cpu()``. Of a tensor that is on the CPU already that is the live one, which the optimizer goes
    on changing: the old policy would be the present one.
    """

    @property
    def copy_handler(self) -> Callable[[torch.nn.Module], Any]:
        keep = super().copy_handler

        def copied(module: torch.nn.Module) -> Any:
            with torch.no_grad():
                return tree_map_only(torch.Tensor, torch.clone, keep(module))

        return copied
