"""A CPU platform for verl: FSDP2 over gloo and the CPU build of vLLM, with no accelerator in the machine.

Importing this module registers the platform and applies the process-group patch. verl imports it in every process
whose environment says ``VERL_PLATFORM=cpu VERL_USE_EXTERNAL_MODULES=verl_ext.cpu``. The engine and rollout classes,
which cost seconds to import, are registered by ``verl_ext.cpu.register``, which verl imports where a model is used:
set ``model.external_lib=verl_ext.cpu.register``. ``configs/cluster/cpu.yaml`` sets all of it.
"""

from verl_ext.cpu.platform import PlatformCPU
from verl_ext.patches import patch_process_group_backend

patch_process_group_backend()

__all__ = ["PlatformCPU"]
