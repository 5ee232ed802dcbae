"""Each patch of ``verl_ext.patches``: the fault is still there without it, and gone with it."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from verl_ext import patches


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def fresh_copy(module: str) -> ModuleType:
    """The module as its file says, whatever patches this process has applied to the loaded one."""
    spec = importlib.util.find_spec(module)
    copy = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(copy)
    return copy


FUNCTIONS = ("initialize_global_process_group", "initialize_global_process_group_ray")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_verl_asks_for_two_backends_of_the_cpu(function: str, one_rank: None) -> None:
    with pytest.raises(ValueError, match="Duplicate device type cpu"):
        getattr(fresh_copy("verl.utils.distributed"), function)()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_patched_verl_has_one_gloo_group(function: str, one_rank: None) -> None:
    """verl as a CPU run has it, where importing it applies the patch."""
    from verl.utils import distributed

    getattr(distributed, function)()
    total = torch.ones(1)
    dist.all_reduce(total)
    assert (total.item(), dist.get_world_size(), dist.get_backend()) == (1.0, 1, "cpu:gloo")


class Reductions(TorchFunctionMode):
    """Counts the reductions of logits to a normalisation while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function in (torch.logsumexp, torch.nn.functional.log_softmax, torch.nn.functional.cross_entropy)
        return function(*args, **(kwargs or {}))


def log_probs_and_gradient(verl: ModuleType, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, int]:
    """What verl's engine calls where there is no flash attention, on 20 tokens: (log-probs, gradient, reductions)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20, 50, generator=generator).mul(5).to(dtype).requires_grad_()
    labels = torch.randint(50, (20,), generator=generator)
    with Reductions() as reductions:
        log_probs = verl.logprobs_from_logits(logits, labels)
    (log_probs * torch.arange(20)).sum().backward()
    return log_probs.detach(), logits.grad, reductions.count


def test_verl_reduces_logits_token_by_token() -> None:
    assert log_probs_and_gradient(fresh_copy("verl.utils.torch_functional"), torch.float32)[2] == 20


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_patched_verl_gives_the_same_log_probs_in_one_operation(dtype: torch.dtype, tolerance: float) -> None:
    from verl.utils import torch_functional

    unpatched = fresh_copy("verl.utils.torch_functional")
    log_probs, gradient, _ = log_probs_and_gradient(unpatched, dtype)
    with mock.patch.object(torch_functional, "logprobs_from_logits_v2", unpatched.logprobs_from_logits_v2):
        patches.patch_log_prob_loop()
        patched_log_probs, patched_gradient, reductions = log_probs_and_gradient(torch_functional, dtype)
    assert reductions == 1
    torch.testing.assert_close(patched_log_probs, log_probs, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(patched_gradient, gradient, rtol=tolerance, atol=tolerance)


def attention_asked_for(verl: ModuleType) -> str | None:
    """What verl loads a critic with where the configuration says ``sdpa``; None leaves it to the configuration."""
    from transformers import AutoModelForTokenClassification, Qwen2Config

    config = Qwen2Config(attn_implementation="sdpa", num_labels=1)
    with mock.patch.object(AutoModelForTokenClassification, "from_pretrained") as load:
        verl.load_valuehead_model("somewhere", torch.float32, config, False)
    return load.call_args.kwargs.get("attn_implementation")


def test_verl_loads_a_critic_with_flash_attention_only() -> None:
    assert attention_asked_for(fresh_copy("verl.utils.model")) == "flash_attention_2"


def test_patched_verl_loads_a_critic_with_the_attention_of_its_configuration() -> None:
    from verl.utils import model

    with mock.patch.object(model, "load_valuehead_model", model.load_valuehead_model):
        patches.patch_value_model_attention()
        assert attention_asked_for(model) is None


class Linear(torch.nn.Module):
    """A layer as vLLM makes it: a weight that knows how new values are loaded into it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(64, 32), requires_grad=False)
        self.weight.weight_loader = lambda parameter, loaded: parameter.data.copy_(loaded)


def test_vllms_cpu_build_loses_the_weight_loader() -> None:
    layer = Linear()
    importlib.import_module("vllm.model_executor.layers.utils").dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    assert not hasattr(layer.weight, "weight_loader")


def test_patched_vllm_computes_with_the_weight_that_was_loaded_last() -> None:
    utils = importlib.import_module("vllm.model_executor.layers.utils")
    layer, loaded, inputs = Linear(), torch.randn(64, 32), torch.randn(3, 32)
    with mock.patch.object(utils, "dispatch_cpu_unquantized_gemm", utils.dispatch_cpu_unquantized_gemm):
        patches.patch_vllm_cpu_linear()
        utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=True)
    layer.weight.weight_loader(layer.weight, loaded)
    torch.testing.assert_close(layer.cpu_linear(inputs, layer.weight, None), inputs @ loaded.T)


def test_patched_vllm_computes_each_row_alike_whatever_the_others_are() -> None:
    utils = importlib.import_module("vllm.model_executor.layers.utils")
    with mock.patch.object(utils, "dispatch_cpu_unquantized_gemm", utils.dispatch_cpu_unquantized_gemm):
        patches.patch_vllm_cpu_linear()
        for width, outputs in ((192, 576), (512, 192), (192, 262)):
            layer, inputs = torch.nn.Linear(width, outputs), torch.randn(128, width)
            utils.dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
            whole = layer.cpu_linear(inputs, layer.weight, layer.bias)
            for rows in (1, 2, 3, 5, 8, 15, 16, 17, 64):
                some = layer.cpu_linear(inputs[128 - rows :], layer.weight, layer.bias)
                assert torch.equal(some, whole[128 - rows :]), (width, outputs, rows)


def test_every_patch_is_tested_here() -> None:
    assert {name for name in vars(patches) if name.startswith("patch_")} == {
        "patch_log_prob_loop",
        "patch_process_group_backend",
        "patch_value_model_attention",
        "patch_vllm_cpu_linear",
    }
