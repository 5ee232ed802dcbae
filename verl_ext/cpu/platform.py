"""verl's platform interface on a machine without an accelerator."""

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import torch
from verl.plugin.platform import PlatformBase, PlatformRegistry


class _CPUDeviceModule(types.ModuleType):
    """``torch.cpu`` plus the calls that verl makes on ``torch.cuda``: caches do nothing, memory is this process's RSS.

    verl tests ``get_torch_device() == torch.cpu`` in places, so the module compares equal to ``torch.cpu``.
    """

    def __init__(self) -> None:
        super().__init__("torch.cpu")
        self._peak_bytes = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(torch.cpu, name)

    def __eq__(self, other: object) -> bool:
        return other is self or other is torch.cpu

    def __hash__(self) -> int:
        return hash(torch.cpu)

    def empty_cache(self) -> None:
        """Nothing is cached."""

    def ipc_collect(self) -> None:
        """No device memory is shared between processes."""

    def memory_allocated(self, device: Any = None) -> int:
        """Resident set size of this process, in bytes."""
        used = psutil.Process().memory_info().rss
        self._peak_bytes = max(self._peak_bytes, used)
        return used

    memory_reserved = memory_allocated

    def max_memory_allocated(self, device: Any = None) -> int:
        """Largest resident set size seen since the last reset, in bytes."""
        self.memory_allocated()
        return self._peak_bytes

    max_memory_reserved = max_memory_allocated

    def reset_peak_memory_stats(self, device: Any = None) -> None:
        """Forget the largest resident set size."""
        self._peak_bytes = 0

    def set_rng_state(self, state: torch.Tensor) -> None:
        """verl restores a checkpoint's state for the CPU, and again for the device."""
        torch.set_rng_state(state)

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        """Free and total memory of the machine, in bytes."""
        memory = psutil.virtual_memory()
        return memory.available, memory.total


_DEVICE_MODULE = _CPUDeviceModule()


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """CPU as verl's device: gloo collectives, weights over POSIX shared memory, Ray's ``GPU`` as a slot counter.

    verl counts only ``GPU`` and ``NPU`` in its resource check, so a CPU run declares a number of ``GPU`` to Ray that
    stands for the number of ranks.
    """

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> types.ModuleType:
        return _DEVICE_MODULE

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        """Never chosen by auto-detection: a CPU run is asked for with ``VERL_PLATFORM=cpu``."""
        return False

    def current_device(self) -> str:
        """The string ``cpu``: an integer, passed on to ``Tensor.to``, would mean ``cuda:<index>``."""
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        """There is one device."""

    def synchronize(self, device_index: int | None = None) -> None:
        """CPU work is synchronous."""

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        """The C allocator has none of CUDA's settings."""

    def empty_cache(self) -> None:
        """Nothing is cached."""

    def get_device_capability(self, device_index: int = 0) -> tuple[None, None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        """No device profiler."""

    def profiler_stop(self) -> None:
        """No device profiler."""

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False

    def cudart(self) -> None:
        return None
