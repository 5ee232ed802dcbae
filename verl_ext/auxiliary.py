"""An auxiliary module trained beside the policy by verl's FSDP engine, and kept out of the policy's state dict.

The module is its own FSDP2 root with its own optimizer, learning-rate schedule and checkpoint file. Because it is no
submodule of the policy, the weight sync to the rollout servers, the Hugging Face export and verl's model merger never
see it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from verl.utils.device import get_device_name
from verl.utils.fsdp_utils import (
    load_fsdp_model_to_gpu,
    load_fsdp_optimizer,
    offload_fsdp_model_to_cpu,
    offload_fsdp_optimizer,
)
from verl.utils.metric.utils import Metric
from verl.workers.config.optimizer import FSDPOptimizerConfig, build_optimizer

from verl_ext.files import replacing

if TYPE_CHECKING:
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine as _Engine
else:
    _Engine = object


class AuxiliaryModuleMixin(_Engine):
    """Put in front of a verl FSDP engine class. The subclass says what the module is; this class trains it.

    Subclasses define :meth:`build_auxiliary`, :meth:`auxiliary_optim_config`, ``auxiliary_name`` (its checkpoint file,
    ``<auxiliary_name>.pt``, and the prefix of its metrics) and may override ``clip_auxiliary_separately``.
    """

    auxiliary_name: str

    @property
    def clip_auxiliary_separately(self) -> bool:
        """Whether its gradients' norm is clipped by itself, instead of together with the policy's."""
        return False

    def build_auxiliary(self, policy: nn.Module) -> nn.Module:
        """The module to train, in float32 on the CPU, with the same weights on every rank."""
        raise NotImplementedError

    def auxiliary_optim_config(self) -> FSDPOptimizerConfig:
        """Its optimizer; the schedule is the policy's."""
        raise NotImplementedError

    # ---- build -------------------------------------------------------------------------------------------------

    def _build_model_optimizer(self) -> None:
        if self.engine_config.forward_only:
            raise ValueError(f"{type(self).__name__} trains its module: it can't be a forward-only (reference) engine")
        super()._build_model_optimizer()
        if self.scaler is not None:
            raise ValueError(
                "mixed_precision.param_dtype=fp16 needs loss scaling, which the auxiliary module doesn't support: "
                "use bf16 or fp32"
            )
        auxiliary = self.build_auxiliary(self.module).to(get_device_name())
        fully_shard(auxiliary, mesh=self.device_mesh)
        self.auxiliary = auxiliary
        self.auxiliary_optimizer = build_optimizer(auxiliary.parameters(), self.auxiliary_optim_config())
        self.auxiliary_lr_scheduler = self._build_lr_scheduler(self.auxiliary_optimizer)
        self._update_stats: dict[str, float] = {}

    def to(self, device: str, model: bool = True, optimizer: bool = True, grad: bool = True) -> None:
        super().to(device=device, model=model, optimizer=optimizer, grad=grad)
        self._move_auxiliary(device, model, optimizer)

    def _move_auxiliary(self, device: str, model: bool, optimizer: bool) -> None:
        onto_device = device == get_device_name()
        if model:
            (load_fsdp_model_to_gpu if onto_device else offload_fsdp_model_to_cpu)(self.auxiliary)
        if optimizer and onto_device:
            load_fsdp_optimizer(self.auxiliary_optimizer, device)
        elif optimizer:
            offload_fsdp_optimizer(self.auxiliary_optimizer)

    @contextmanager
    def _auxiliary_on_device(self) -> Iterator[None]:
        """Hold the module and its optimizer on the device, even where they are offloaded between updates."""
        self._move_auxiliary(get_device_name(), model=True, optimizer=True)
        try:
            yield
        finally:
            self._move_auxiliary(
                "cpu", model=self.is_param_offload_enabled, optimizer=self.is_optimizer_offload_enabled
            )

    # ---- update ------------------------------------------------------------------------------------------------

    def train_batch(self, data: TensorDict, loss_function: Callable) -> Any:
        self.auxiliary.train()
        outputs = super().train_batch(data, loss_function)
        if self.is_mp_src_rank_with_outputs():
            outputs["metrics"].update(Metric.from_dict(self._update_stats, aggregation="mean"))
        return outputs

    def optimizer_zero_grad(self) -> None:
        super().optimizer_zero_grad()
        self.auxiliary_optimizer.zero_grad()

    def optimizer_step(self) -> float:
        """Clip, then step both optimizers, or neither if a gradient isn't finite.

        Returns:
            The gradient norm over the policy and the module together, before clipping.
        """
        policy_norm, auxiliary_norm = self._policy_grad_norm(), _grad_norm(self.auxiliary)
        joint_norm = math.hypot(policy_norm, auxiliary_norm)
        self._update_stats = {
            f"{self.auxiliary_name}_grad_norm": auxiliary_norm,
            f"{self.auxiliary_name}_lr": self.auxiliary_lr_scheduler.get_last_lr()[0],
        }
        if not math.isfinite(joint_norm):
            self.optimizer_zero_grad()
            return joint_norm

        max_norm = self.optimizer_config.clip_grad
        if self.clip_auxiliary_separately:
            policy_max_norm, clipped_norm = max_norm, auxiliary_norm
        else:  # verl clips the policy by its own norm: to its share of the joint one (1e-6: torch adds it to a norm)
            policy_max_norm, clipped_norm = max_norm * (policy_norm + 1e-6) / (joint_norm + 1e-6), joint_norm
        nn.utils.clip_grads_with_norm_(self.auxiliary.parameters(), max_norm, torch.tensor(clipped_norm))
        self.auxiliary_optimizer.step()
        with self._clip_grad(policy_max_norm):
            super().optimizer_step()
        return joint_norm

    def lr_scheduler_step(self) -> float:
        self.auxiliary_lr_scheduler.step()
        return super().lr_scheduler_step()

    def _policy_grad_norm(self) -> float:
        if isinstance(self.module, FullyShardedDataParallel):
            return self.module.clip_grad_norm_(math.inf).item()
        return _grad_norm(self.module)

    @contextmanager
    def _clip_grad(self, max_norm: float) -> Iterator[None]:
        configured, self.optimizer_config.clip_grad = self.optimizer_config.clip_grad, max_norm
        try:
            yield
        finally:
            self.optimizer_config.clip_grad = configured

    # ---- checkpoint --------------------------------------------------------------------------------------------

    def save_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """verl's files, and one file with the module and its optimizer whole, whatever the number of ranks."""
        super().save_checkpoint(local_path, *args, **kwargs)
        with self._auxiliary_on_device():
            weights, optimizer = get_state_dict(
                self.auxiliary,
                self.auxiliary_optimizer,
                options=StateDictOptions(full_state_dict=True, cpu_offload=True),
            )
        if self.rank == 0:
            path = self._auxiliary_file(local_path)
            state = {"model": weights, "optimizer": optimizer, "lr_scheduler": self.auxiliary_lr_scheduler.state_dict()}
            with replacing(path) as temporary:
                torch.save(state, temporary)
        dist.barrier()

    def load_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> None:
        """Restore both, as far as ``checkpoint.load_contents`` says.

        Raises:
            FileNotFoundError: the checkpoint has no file of the module.
        """
        path = self._auxiliary_file(local_path)
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: a run without the {self.auxiliary_name} module wrote this checkpoint; "
                "resume it with the algorithm that wrote it, or start in another directory"
            )
        # Read before verl's loader, which may delete the local copy.
        state = torch.load(path, map_location="cpu", weights_only=True)
        super().load_checkpoint(local_path, *args, **kwargs)
        options = StateDictOptions(full_state_dict=True)
        with self._auxiliary_on_device():
            set_model_state_dict(self.auxiliary, state["model"], options=options)
            if self.checkpoint_manager.should_load_optimizer:
                set_optimizer_state_dict(self.auxiliary, self.auxiliary_optimizer, state["optimizer"], options=options)
        if self.checkpoint_manager.should_load_extra:
            self.auxiliary_lr_scheduler.load_state_dict(state["lr_scheduler"])

    def _auxiliary_file(self, local_path: str) -> Path:
        return Path(local_path, f"{self.auxiliary_name.rsplit('/', 1)[-1]}.pt")


def _grad_norm(module: nn.Module) -> float:
    """Norm of a module's gradients over all its shards."""
    norm = nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    norm = norm.to(get_device_name())  # gradients may be offloaded, the reduction over ranks is the device's
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()
