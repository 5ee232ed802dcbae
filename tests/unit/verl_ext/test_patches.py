"""Each patch of ``verl_ext.patches``: the fault is still there without it, and gone with it."""

from __future__ import annotations

import importlib.util
import inspect
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
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
    torch.testing.assert_close(patched_log_probs, log_probs.float(), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(patched_gradient, gradient, rtol=tolerance, atol=tolerance)


def test_patched_verl_keeps_the_digits_of_log_probs_of_half_precision_logits() -> None:
    """As flash attention's kernel does: the sum over a response of thousands of tokens needs them."""
    from verl.utils import torch_functional

    logits = torch.randn(512, 50, generator=torch.Generator().manual_seed(0)).mul(5).bfloat16()
    labels = logits.argmax(-1)
    exact = logits.double().log_softmax(-1).gather(-1, labels[:, None]).sum().item()
    unpatched = fresh_copy("verl.utils.torch_functional")
    assert abs(unpatched.logprobs_from_logits(logits, labels).double().sum().item() - exact) > 1e-2
    with mock.patch.object(torch_functional, "logprobs_from_logits_v2", unpatched.logprobs_from_logits_v2):
        patches.patch_models()
        log_probs = torch_functional.logprobs_from_logits(logits, labels)
    assert log_probs.dtype == torch.float32 and abs(log_probs.double().sum().item() - exact) < 1e-4


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


def fused_log_probs(fsdp_utils: ModuleType) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probs by verl's fused forward, under FSDP2 of one rank, of an untied model; and the same without either."""
    from torch.distributed.device_mesh import init_device_mesh
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from verl.models.transformers.monkey_patch import patch_forward_with_backends

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    tokens = torch.arange(8).unsqueeze(0)
    with mock.patch.object(Qwen2ForCausalLM, "forward", Qwen2ForCausalLM.forward):
        model = Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=False, **sizes, **heads))
        log_probs = model(tokens).logits.log_softmax(-1).gather(-1, tokens.roll(-1).unsqueeze(-1)).squeeze(-1).detach()
        patch_forward_with_backends(model, use_fused_kernels=True, fused_kernels_backend="torch")
        mesh = init_device_mesh("cpu", (1,))
        fsdp_utils.apply_fsdp2(model, {"mesh": mesh, "reshard_after_forward": True}, {})
        return model(input_ids=tokens, return_dict=True).log_probs.detach(), log_probs


def gloo() -> None:
    dist.init_process_group("gloo")


def test_verl_shards_the_head_that_its_fused_forward_reads(one_rank: None) -> None:
    gloo()
    with pytest.raises(RuntimeError, match="mixed torch.Tensor and DTensor"):
        fused_log_probs(fresh_copy("verl.utils.fsdp_utils"))


def test_patched_verl_gives_the_log_probs_of_the_model(one_rank: None) -> None:
    from verl.utils import fsdp_utils

    gloo()
    unpatched = fresh_copy("verl.utils.fsdp_utils")._select_fsdp2_wrap_targets
    with mock.patch.object(fsdp_utils, "_select_fsdp2_wrap_targets", unpatched):
        patches.patch_fused_head_sharding()
        fused, plain = fused_log_probs(fsdp_utils)
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6)


def own_forward_again(monkey_patch: ModuleType) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a model, and what it gives once verl has fused it, and we have asked for its own forward."""
    from transformers import Qwen2ForCausalLM

    with torch.device("cpu"), mock.patch.object(Qwen2ForCausalLM, "forward", Qwen2ForCausalLM.forward):
        model, tokens = tiny("qwen2").to_empty(device="cpu"), torch.arange(8).unsqueeze(0)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter)
        logits = model(tokens).logits
        monkey_patch.patch_forward_with_backends(model, use_fused_kernels=True, fused_kernels_backend="torch")
        monkey_patch.patch_forward_with_backends(model, use_fused_kernels=True, fused_kernels_backend="torch")
        with patches.unfused():
            return logits, model(input_ids=tokens, return_dict=True).logits


def test_verl_forgets_a_models_own_forward() -> None:
    with mock.patch.dict(patches._OWN_FORWARDS, clear=True):
        assert own_forward_again(fresh_copy("verl.models.transformers.monkey_patch"))[1] is None


def test_patched_verl_keeps_it() -> None:
    from verl.models.transformers import monkey_patch

    unpatched = fresh_copy("verl.models.transformers.monkey_patch").patch_forward_with_backends
    with (
        mock.patch.dict(patches._OWN_FORWARDS, clear=True),
        mock.patch.object(monkey_patch, "patch_forward_with_backends", unpatched),
    ):
        patches.patch_fused_forward()
        logits, again = own_forward_again(monkey_patch)
    torch.testing.assert_close(again, logits)


def test_the_head_is_sharded_as_before_where_nothing_is_fused() -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from verl.utils import fsdp_utils

    model = Qwen2ForCausalLM(
        Qwen2Config(hidden_size=16, intermediate_size=16, num_hidden_layers=1, vocab_size=32, num_attention_heads=2)
    )
    units = fresh_copy("verl.utils.fsdp_utils")._select_fsdp2_wrap_targets(model, ["Qwen2DecoderLayer"])
    with mock.patch.object(fsdp_utils, "_select_fsdp2_wrap_targets", fsdp_utils._select_fsdp2_wrap_targets):
        patches.patch_fused_head_sharding()
        assert fsdp_utils._select_fsdp2_wrap_targets(model, ["Qwen2DecoderLayer"]) == units
    assert model.lm_head in units


def fused_units(policy: torch.nn.Module) -> list[torch.nn.Module]:
    from verl.utils import fsdp_utils

    select = fresh_copy("verl.utils.fsdp_utils")._select_fsdp2_wrap_targets
    policy._verl_fused_kernels_backend = "torch"
    with mock.patch.object(fsdp_utils, "_select_fsdp2_wrap_targets", select):
        patches.patch_fused_head_sharding()
        return fsdp_utils._select_fsdp2_wrap_targets(policy, policy._no_split_modules)


def tiny(model_type: str, **options: Any) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 32, "head_dim": 8}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes, **heads, **options))


@pytest.mark.parametrize(
    ("model_type", "options", "part"),
    [
        ("granite", {"logits_scaling": 8.0}, "logits_scaling=8.0"),
        ("cohere", {}, "logit_scale=0.0625"),
        ("gemma2", {}, "final_logit_softcapping=30.0"),
        ("phi", {}, "the head's bias"),
    ],
)
def test_models_whose_logits_are_more_than_a_product_are_refused(model_type: str, options: dict, part: str) -> None:
    """verl's fused forward is wrong by nats for them, and says nothing."""
    with pytest.raises(ValueError, match=f"leave out {part} of this model: set use_fused_kernels=false"):
        fused_units(tiny(model_type, **options))


@pytest.mark.parametrize(
    ("model_type", "options"), [("granite", {"logits_scaling": 1.0}), ("qwen3", {}), ("llama", {})]
)
def test_others_are_not(model_type: str, options: dict) -> None:
    policy = tiny(model_type, tie_word_embeddings=False, **options)
    assert policy.lm_head not in fused_units(policy)


def test_an_adapter_on_the_head_is_refused() -> None:
    from peft import LoraConfig, get_peft_model

    policy = get_peft_model(tiny("qwen2"), LoraConfig(target_modules=["lm_head", "q_proj"]))
    with pytest.raises(ValueError, match="leave out the head's adapter"):
        fused_units(policy)


@pytest.mark.parametrize("worker", ["actor", "critic"])
def test_workers_have_the_patches_of_models_on_any_device(worker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a register module, as on a GPU: a worker applies them before verl builds anything."""
    from verl.single_controller.base import Worker
    from verl.utils import model, torch_functional

    from verl_ext.critic import CriticWorker
    from verl_ext.nonfinite import GuardedWorker

    unpatched = {
        module: fresh_copy(module.__name__).__dict__[name]
        for module, name in ((model, "load_valuehead_model"), (torch_functional, "logprobs_from_logits_v2"))
    }
    monkeypatch.setattr(model, "load_valuehead_model", unpatched[model])
    monkeypatch.setattr(torch_functional, "logprobs_from_logits_v2", unpatched[torch_functional])

    class Reached(Exception):
        """verl begins to build the worker."""

    monkeypatch.setattr(Worker, "__init__", mock.Mock(side_effect=Reached))
    with pytest.raises(Reached):
        if worker == "actor":
            GuardedWorker(mock.MagicMock(), role="actor")
        else:
            CriticWorker(mock.MagicMock(**{"model_config.external_lib": None}))
    assert attention_asked_for(model) is None
    assert log_probs_and_gradient(torch_functional, torch.float32)[2] == 1


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


def experts_after_a_sync(patched: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What vLLM's CPU kernel computes once new weights were loaded, and what those weights give."""
    methods = importlib.import_module("vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method")
    cpu = importlib.import_module("vllm.model_executor.layers.fused_moe.experts.cpu_moe")
    experts, hidden, width, tokens = 4, 64, 32, 5
    method = methods.UnquantizedFusedMoEMethod
    kernel = object.__new__(method)
    torch.nn.Module.__init__(kernel)
    fused = object.__new__(cpu.CPUUnquantizedExperts)
    fused.moe_config = mock.Mock(intermediate_size_per_partition=width, activation=None)
    kernel.unquantized_backend, kernel.moe_kernel = methods.UnquantizedMoeBackend.CPU, None
    kernel.moe, kernel.experts_cls, kernel.get_fused_moe_quant_config = (
        mock.Mock(),
        cpu.CPUUnquantizedExperts,
        mock.Mock(),
    )
    layer = torch.nn.Module()
    for name in ("use_grouped_topk", "renormalize", "scoring_func", "custom_routing_function", "moe_config"):
        setattr(layer, name, None)
    layer._expert_routing_tables = lambda: None
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.nn.Parameter:
        return torch.nn.Parameter(torch.randn(*shape, generator=generator) / 8, requires_grad=False)

    layer.w13_weight, layer.w2_weight = drawn(experts, 2 * width, hidden), drawn(experts, hidden, width)
    making = mock.Mock(return_value=mock.Mock(fused_experts=fused))
    with (
        mock.patch.object(method, "_setup_kernel", method._setup_kernel),
        mock.patch.object(methods, "make_unquantized_moe_kernel", making),
        mock.patch.object(cpu, "is_zentorch_moe_supported", lambda layer: False),
    ):
        if patched:
            patches.patch_vllm_cpu_experts()
            patches.patch_vllm_cpu_experts()  # a second worker in the process
        kernel._setup_kernel(layer, layer.w13_weight, layer.w2_weight)
        w13, w2 = drawn(experts, 2 * width, hidden), drawn(experts, hidden, width)
        layer.w13_weight.data.copy_(w13)  # a weight sync
        layer.w2_weight.data.copy_(w2)
        kernel._setup_kernel(layer, layer.w13_weight, layer.w2_weight)
    x, chosen = torch.randn(tokens, hidden, generator=generator), torch.tensor([[0], [1], [2], [3], [1]])
    weights = torch.ones(tokens, 1)
    found = cpu.cpu_fused_moe(
        x, layer.w13_weight, layer.w2_weight, None, None, weights, chosen.to(torch.int32), "silu", "vec", False
    )
    gate, up = torch.einsum("th,twh->tw", x, w13[chosen[:, 0]]).chunk(2, dim=-1)
    return found, torch.einsum("tw,thw->th", torch.nn.functional.silu(gate) * up, w2[chosen[:, 0]])


def test_vllms_cpu_build_packs_experts_once() -> None:
    found, expected = experts_after_a_sync(patched=False)
    assert (found - expected).abs().max() > 0.01


def test_patched_vllm_computes_with_the_experts_that_were_loaded_last() -> None:
    found, expected = experts_after_a_sync(patched=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def listening(patched: bool) -> tuple[set[str], bytes]:
    """Where the store of a process group that is told 127.0.0.1 listens, and what a second rank reads from it."""
    import psutil

    rendezvous = fresh_copy("torch.distributed.rendezvous")
    if patched:
        with mock.patch.dict("sys.modules", {"torch.distributed.rendezvous": rendezvous}):
            patches.patch_store_address()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    before = {connection.laddr for connection in psutil.Process().net_connections()}
    timeout = timedelta(seconds=10)
    first = rendezvous._create_c10d_store("127.0.0.1", port, 0, 1, timeout)
    again = rendezvous._create_c10d_store("127.0.0.1", port, 0, 1, timeout)  # shares the first one's server
    second = rendezvous._create_c10d_store("127.0.0.1", port, 1, 1, timeout)
    again.set("key", "value")
    now = psutil.Process().net_connections()
    addresses = {c.laddr.ip for c in now if c.status == psutil.CONN_LISTEN and c.laddr not in before}
    value = second.get("key")
    del first, again, second
    return addresses, value


def test_torchs_store_listens_on_every_address() -> None:
    assert listening(patched=False) == ({"::"}, b"value")


def test_patched_store_listens_on_the_address_that_it_is_given() -> None:
    assert listening(patched=True) == ({"127.0.0.1"}, b"value")


def geometric_mean_gradient(core_algos: ModuleType, sizes: list[int]) -> torch.Tensor:
    """Of the sum of the micro-batches' losses, as verl's engine adds them up."""
    from verl.workers.config import ActorConfig

    log_prob = torch.full((4, 3), -1.0).requires_grad_()
    config = ActorConfig(strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1)
    config.global_batch_info.update(dp_size=1, global_batch_size=4)
    loss = core_algos.POLICY_LOSS_REGISTRY["geo_mean"]
    rows = {"advantages": torch.ones(4, 3), "response_mask": torch.ones(4, 3)}
    pieces = [
        loss(
            old_log_prob=piece.detach(), log_prob=piece, **{k: v[: len(piece)] for k, v in rows.items()}, config=config
        )[0]
        for piece in log_prob.split(sizes)
    ]
    return torch.autograd.grad(sum(pieces), log_prob)[0]


def test_verls_geometric_mean_loss_grows_with_the_number_of_micro_batches() -> None:
    verls = fresh_copy("verl.trainer.ppo.core_algos")
    torch.testing.assert_close(geometric_mean_gradient(verls, [1] * 4), 4 * geometric_mean_gradient(verls, [4]))


def test_patched_verl_has_the_same_geometric_mean_loss_in_any_micro_batches() -> None:
    from verl.trainer.ppo import core_algos

    whole = geometric_mean_gradient(fresh_copy("verl.trainer.ppo.core_algos"), [4])
    for _ in range(2):  # to apply it again changes nothing
        patches.patch_geometric_mean_loss()
        for sizes in ([4], [1, 3], [1] * 4):
            torch.testing.assert_close(geometric_mean_gradient(core_algos, sizes), whole)


DRAWN_IN_TWO_FORKS = """
import os, sys
from verl_ext import patches
if sys.argv[1] == "patched":
    patches.patch_actor_class_ids()
import ray

@ray.remote
class Actor: pass

for _ in range(2):
    if os.fork() == 0:
        print(ray.ObjectRef.from_random().hex())
        break
    os.wait()
"""


@pytest.mark.parametrize(("ray_is", "different"), [("as it comes", 1), ("patched", 2)])
def test_forks_of_a_process_with_actor_classes_draw_the_same_ids(ray_is: str, different: int) -> None:
    command = [sys.executable, "-c", DRAWN_IN_TWO_FORKS, ray_is]
    drawn = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.split()
    assert len(drawn) == 2 and len(set(drawn)) == different


def test_every_patch_is_tested_here() -> None:
    assert {name for name in vars(patches) if name.startswith("patch_")} == {
        "patch_actor_class_ids",
        "patch_fused_forward",
        "patch_fused_head_sharding",
        "patch_geometric_mean_loss",
        "patch_log_prob_loop",
        "patch_models",
        "patch_process_group_backend",
        "patch_separate_async_logger",
        "patch_store_address",
        "patch_value_model_attention",
        "patch_vllm_cpu_experts",
        "patch_vllm_cpu_linear",
        "patch_weight_sender",  # in test_weight_sync.py
    }


MESSAGE = "hybrid replicas disabled"


def test_verl_gives_its_logger_what_only_print_takes() -> None:
    from verl.trainer.ppo.v1 import trainer_separate_async

    source = inspect.getsource(trainer_separate_async.PPOTrainerSeparateAsync._setup)
    assert MESSAGE in source and "flush=True" in source
    with pytest.raises(TypeError, match="flush"):
        logging.getLogger(trainer_separate_async.__name__).warning(MESSAGE, flush=True)


def test_patched_verl_logs_it() -> None:
    from verl.trainer.ppo.v1 import trainer_separate_async

    handled = mock.Mock(level=logging.NOTSET)
    with mock.patch.object(trainer_separate_async, "logger", logging.Logger("verl's", logging.INFO)) as logger:
        logger.addHandler(handled)
        patches.patch_separate_async_logger()
        trainer_separate_async.logger.info(MESSAGE, flush=True)
    assert handled.handle.call_args.args[0].getMessage() == MESSAGE
