"""``plan``'s bytes against FSDP2's shards and real updates; ``benchmarks/plan_memory.json`` has the figures."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.plan_memory import CASES, SMALL, TOLERANCE, measure
from recipe.flowrl.common.gpus import GPUS
from recipe.flowrl.plan.architecture import KNOWN, load_architecture, shape_of
from recipe.flowrl.plan.memory import plan_memory
from recipe.flowrl.preflight.compose import compose_run
from recipe.flowrl.reporting.console import RunConsole

RECORDED = Path(__file__).resolve().parents[2] / "benchmarks" / "plan_memory.json"

SHARD = """
import json, sys
import torch, torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoConfig, AutoModelForCausalLM

def local(tensor):
    return tensor.to_local().numel() * tensor.element_size()

for file, ranks in zip(sys.argv[1::2], map(int, sys.argv[2::2])):
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    with FakeTensorMode():
        config = AutoConfig.for_model(**json.load(open(file)))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        optimizer = torch.optim.AdamW(model.parameters())
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        print(json.dumps({
            "parameters": sum(local(p) for p in model.parameters()),
            "gradients": sum(local(p.grad) for p in model.parameters()),
            "optimizer": sum(local(s[k]) for s in optimizer.state.values() for k in ("exp_avg", "exp_avg_sq")),
        }))
    dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def measured() -> dict:
    with RunConsole(io.StringIO()) as console:
        return measure(console, SMALL)


@pytest.mark.parametrize("phase", ["update", "log-probs"])
@pytest.mark.parametrize("name", SMALL)
def test_a_phase_takes_about_what_plan_says(measured: dict, name: str, phase: str) -> None:
    assert measured["summary"][name][phase] == pytest.approx(1.0, abs=TOLERANCE), measured["samples"][name]


def test_the_cases_have_their_worst_moments_at_different_places(measured: dict) -> None:
    assert len({sample["moment"] for sample in measured["samples"].values()}) >= 3


def test_parameters_and_optimizer_are_those_of_the_plan(measured: dict) -> None:
    for sample in measured["samples"].values():
        planned = sample["planned"]["update"]["parameters"] + sample["planned"]["update"]["optimizer"]
        assert sample["resident"] == pytest.approx(planned, rel=0.01)


def test_the_record_is_of_these_cases() -> None:
    recorded = json.loads(RECORDED.read_text())
    assert set(recorded["summary"]) == set(CASES)
    assert all(
        ratio == pytest.approx(1.0, abs=TOLERANCE)
        for phases in recorded["summary"].values()
        for ratio in phases.values()
    )


def test_shards_are_those_of_fsdp2_on_as_many_fake_ranks() -> None:
    runs = [("Qwen/Qwen2.5-7B", "math_7b", "1x8", 8), ("Qwen/Qwen2.5-32B", "math_32b", "4x8", 32)]
    arguments = [
        argument for name, *_, ranks in runs for argument in (KNOWN / f"{name.replace('/', '--')}.json", str(ranks))
    ]
    output = subprocess.run([sys.executable, "-c", SHARD, *arguments], capture_output=True, text=True)
    assert output.returncode == 0, output.stderr[-2000:]
    for line, (name, experiment, cluster, ranks) in zip(output.stdout.splitlines(), runs, strict=True):
        config = compose_run([f"experiment={experiment}", f"cluster={cluster}", "algo=grpo"])
        assert config.trainer.nnodes * config.trainer.n_gpus_per_node == ranks
        shape = shape_of(load_architecture(name), None)
        measured, planned = json.loads(line), plan_memory(config, shape, GPUS["h100_80gb"])
        assert planned.resident["parameters"] == pytest.approx(measured["parameters"], rel=0.01)
        assert planned.resident["optimizer"] == pytest.approx(measured["optimizer"], rel=0.01)
        gradients = planned.update["in the first block's backward"]["gradients"]
        assert gradients == pytest.approx(measured["gradients"], rel=0.01)
