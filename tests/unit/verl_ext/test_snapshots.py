"""The actor's weights that are kept aside, on one rank with FSDP2."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from verl_ext.snapshots import SnapshotWorker


@pytest.fixture
def module() -> Iterator[torch.nn.Module]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2))
    mesh = dist.init_device_mesh("cpu", (1,))
    yield fully_shard(module, mesh=mesh)
    dist.destroy_process_group()


def train(module: torch.nn.Module) -> None:
    """A step in place, as an optimizer's."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)


def values(module: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.full_tensor().detach().clone() for parameter in module.parameters()]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, one, other))


def test_the_old_policy_comes_back_and_so_does_the_new_one(module: torch.nn.Module) -> None:
    """As verl's trainer does for the second update of a step."""
    worker = object.__new__(SnapshotWorker)
    worker._strategy_handlers = None
    worker.config = SimpleNamespace(actor=SimpleNamespace(strategy="fsdp2"))
    worker.actor = SimpleNamespace(engine=SimpleNamespace(module=module))
    old = values(module)
    worker.save_model_to_cpu(0)
    train(module)
    new = values(module)
    worker.save_model_to_cpu(1)
    worker.restore_model_from_cpu(0)
    assert same(values(module), old) and not same(old, new)
    worker.restore_model_from_cpu(1)
    worker.clear_cpu_model(1)
    assert same(values(module), new)


def test_verl_keeps_the_live_weights(module: torch.nn.Module) -> None:
    """On the CPU. Once it copies them, SnapshotWorker isn't needed."""
    from verl.utils.fsdp_utils import fsdp2_sharded_load_from_cpu, fsdp2_sharded_save_to_cpu

    old = values(module)
    kept, spec = fsdp2_sharded_save_to_cpu(module)
    train(module)
    fsdp2_sharded_load_from_cpu(module, kept, spec)
    assert not same(values(module), old)
