"""Each patch of ``verl_ext.patches``: the fault is still there without it, and gone with it."""

from __future__ import annotations

import importlib.util
import socket
from collections.abc import Iterator
from unittest import mock

import pytest
import torch
import torch.distributed as dist

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


FUNCTIONS = ("initialize_global_process_group", "initialize_global_process_group_ray")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_verl_asks_for_two_backends_of_the_cpu(function: str, one_rank: None) -> None:
    spec = importlib.util.find_spec("verl.utils.distributed")
    unpatched = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpatched)
    with pytest.raises(ValueError, match="Duplicate device type cpu"):
        getattr(unpatched, function)()


@pytest.mark.parametrize("function", FUNCTIONS)
def test_patched_verl_has_one_gloo_group(function: str, one_rank: None) -> None:
    """verl as a CPU run has it, where importing it applies the patch."""
    from verl.utils import distributed

    getattr(distributed, function)()
    total = torch.ones(1)
    dist.all_reduce(total)
    assert (total.item(), dist.get_world_size(), dist.get_backend()) == (1.0, 1, "cpu:gloo")


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


def test_every_patch_is_tested_here() -> None:
    assert {name for name in vars(patches) if name.startswith("patch_")} == {
        "patch_process_group_backend",
        "patch_vllm_cpu_linear",
    }
