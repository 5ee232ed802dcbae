"""A reference policy that can be moved up to the actor in mid-training."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from verl.single_controller.base.decorator import Dispatch, register
from verl.workers.engine_workers import TrainingWorker

from verl_ext.files import replacing
from verl_ext.nonfinite import GuardedWorker


class MovableReferenceWorker(GuardedWorker):
    """verl's worker; its reference can be set to the actor. Checkpoints hold the reference once that has happened."""

    reference_of_process: ClassVar[TrainingWorker]
    """Where rollout servers have resources of their own, actor and reference are two workers of one process."""

    _reference_moved = False

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def init_model(self) -> None:
        super().init_model()
        if "ref" in self.role:
            MovableReferenceWorker.reference_of_process = self.ref

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def move_reference(self) -> None:
        """Copy the actor's weights into the reference and forget the optimizer's moments."""
        with torch.no_grad():
            for reference, parameter in zip(self._reference_parameters(), self._actor_parameters(), strict=True):
                reference.copy_(parameter)
        self.actor.engine.optimizer.state.clear()
        self._reference_moved = True

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def save_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        super().save_checkpoint(local_path, *args, **kwargs)
        if self._reference_moved:
            with replacing(self._file(local_path)) as temporary:
                torch.save([parameter.clone() for parameter in self._reference_parameters()], temporary)

    @register(dispatch_mode=Dispatch.ONE_TO_ALL)
    def load_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        file = self._file(local_path)
        if file.exists():  # before verl's, which may delete the files
            saved = torch.load(file, weights_only=True)
            for reference, parameter in zip(self._reference_parameters(), saved, strict=True):
                reference.copy_(parameter)
            self._reference_moved = True
        super().load_checkpoint(local_path, *args, **kwargs)

    def _file(self, directory: str) -> Path:
        """This rank's shard, named as verl names the model's."""
        return Path(directory) / f"reference_world_size_{self.world_size}_rank_{self.rank}.pt"

    def _actor_parameters(self) -> list[torch.Tensor]:
        return _local_shards(self.actor.engine.module)

    def _reference_parameters(self) -> list[torch.Tensor]:
        return _local_shards(self.reference_of_process.engine.module)


def _local_shards(module: torch.nn.Module) -> list[torch.Tensor]:
    """Each parameter's part on this rank; actor and reference are sharded alike."""
    return [getattr(parameter, "_local_tensor", parameter).data for parameter in module.parameters()]
