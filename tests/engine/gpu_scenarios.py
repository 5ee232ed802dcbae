"""Scenarios with the options of a GPU run on: what can't run here is the kernel of flash attention, which is replaced.

``plain`` is float32, padded, in micro-batches of a fixed number, with nothing else; ``gpu`` has what
``configs/cluster/gpu.yaml`` sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from flash_attention import flash_attention
from transformers import LlamaForCausalLM, Qwen2ForCausalLM
from verl.utils import tensordict_utils as tu
from verl.workers.config import FSDPActorConfig
from verl.workers.config.critic import FSDPCriticConfig
from verl.workers.engine import base as verl_engine
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.utils.losses import ppo_loss, value_loss
from workers import captured_gradients, make_flowrl_worker, make_worker, to_batch, update

from verl_ext import auxiliary
from verl_ext.critic import CriticWorker
from verl_ext.nonfinite import GuardedTrainingWorker, UpdateGuard

FLASH = {"override_config": {"attn_implementation": "flash_attention_2"}}
FUSED = {"use_fused_kernels": True, "fused_kernel_options": {"impl_backend": "torch"}}
CHECKPOINTING = {"enable_gradient_checkpointing": True}
TOKENS = 60
DYNAMIC = {"use_dynamic_bsz": True, "max_token_len_per_gpu": TOKENS, "infer_max_token_len_per_gpu": TOKENS}
PLAIN = {"model": {"use_remove_padding": False}}
GPU = {"model": {**FLASH, **FUSED, **CHECKPOINTING, "use_remove_padding": True}, "engine": DYNAMIC}
OFFLOAD = {"param_offload": True, "optimizer_offload": True}
BFLOAT16 = {"mixed_precision": {"param_dtype": "bf16", "reduce_dtype": "fp32"}}
LORA = {"lora_rank": 4, "lora_alpha": 8}


def options(ranks: int) -> dict[str, dict[str, Any]]:
    """Name -> the ``model`` and ``engine`` sections; each but ``plain`` is ``gpu`` and one thing more or less."""

    def gpu(model: dict[str, Any] | None = None, engine: dict[str, Any] | None = None) -> dict[str, Any]:
        return {"model": {**GPU["model"], **(model or {})}, "engine": {**GPU["engine"], **(engine or {})}}

    return {
        "plain": PLAIN,
        "gpu": gpu(),
        "not fused": gpu({"use_fused_kernels": False}),
        "padded": gpu({"use_remove_padding": False}),
        "offloaded": gpu(engine=OFFLOAD),
        "ulysses": gpu(engine={"ulysses_sequence_parallel_size": ranks}),
        "not resharded": gpu(engine={"reshard_after_forward": False}),
        "prefetched": gpu(engine={"forward_prefetch": True}),
        "bfloat16": gpu(engine=BFLOAT16),
        "packed without flash attention": gpu({"override_config": {"attn_implementation": "sdpa"}}),
    }


def critic_options(ranks: int) -> dict[str, dict[str, Any]]:
    """The same for a critic, which has no head that fused log-probs would need."""
    fused = ("use_fused_kernels", "fused_kernel_options")
    names = ("plain", "gpu", "padded", "offloaded", "ulysses", "bfloat16", "packed without flash attention")
    return {
        name: {**chosen, "model": {key: value for key, value in chosen["model"].items() if key not in fused}}
        for name, chosen in options(ranks).items()
        if name in names
    }


@contextmanager
def own_forwards(*others: type) -> Iterator[None]:
    """verl sets its fused forward on a model's class, where every later model would have it: it is taken off again."""
    with ExitStack() as stack:
        for kind in (Qwen2ForCausalLM, LlamaForCausalLM, *others):
            stack.enter_context(mock.patch.object(kind, "forward", kind.forward))
        yield


@contextmanager
def gpu_process() -> Iterator[list[int]]:
    """As in a process of a GPU run."""
    with own_forwards(), flash_attention() as calls:
        yield calls


def worker_of(algorithm: str, directory: Path, **sections: Any) -> Any:
    """FlowRL's worker; verl's with GRPO's loss and a KL term; or the critic's."""
    if algorithm == "flowrl":
        return make_flowrl_worker(directory, **sections)
    if algorithm == "grpo":
        actor = {"strategy": "fsdp2", "rollout_n": 4, "use_dynamic_bsz": True, "use_torch_compile": False}
        loss = FSDPActorConfig(**actor, use_kl_loss=True, kl_loss_coef=0.1, kl_loss_type="low_var_kl", clip_ratio=0.2)
        guard = UpdateGuard(5, str(directory / "nonfinite"))
        worker = make_worker(directory, partial(GuardedTrainingWorker, guard=guard), **sections)
        worker.set_loss_fn(partial(ppo_loss, loss))
    else:
        worker = make_worker(directory, CriticWorker, model_type="value_model", **sections)
        critic = FSDPCriticConfig(strategy="fsdp2", use_dynamic_bsz=True, cliprange_value=0.5)
        worker.set_loss_fn(partial(value_loss, critic))
    return worker


def _gradients(inputs: Any, algorithm: str, family: str, chosen: dict[str, Any], calls: list[int]) -> dict[str, Any]:
    torch.manual_seed(7)  # a critic's head is random, and so is an adapter's A
    worker = worker_of(algorithm, inputs.directory / family, **chosen)
    calls.clear()
    settings = {} if chosen.get("engine") else {"micro_batch_size_per_gpu": 8}
    with captured_gradients(worker) as captured:
        metrics = update(worker, inputs.sequences, **settings)
    fused = getattr(worker.engine.module, "_verl_fused_kernels_backend", None)
    return {**captured, "metrics": metrics, "flash calls": list(calls), "fused": fused}


def gpu_gradients(inputs: Any) -> dict[str, Any]:
    """Gradient of one mini-batch: algorithm and family of model -> options -> what the optimizers find."""
    results: dict[str, Any] = {}
    actor, critic = options(inputs.ranks), critic_options(inputs.ranks)
    few = {name: actor[name] for name in ("plain", "gpu", "not fused", "ulysses", "bfloat16")}
    tied = {name: actor[name] for name in ("plain", "gpu")}
    cases = {
        ("flowrl", "qwen2"): actor,
        ("grpo", "qwen2"): few,
        ("critic", "qwen2"): critic,
        ("flowrl", "llama"): tied,
        ("grpo", "llama"): tied,
    }
    for (algorithm, family), chosen in cases.items():
        for name, sections in chosen.items():
            with gpu_process() as calls:
                outcome = _gradients(inputs, algorithm, family, sections, calls)
            results.setdefault(f"{algorithm}, {family}", {})[name] = outcome
    return results


def gpu_reference(inputs: Any) -> dict[str, Any]:
    """Log-probs of a forward-only engine, its weights in bfloat16 unless told, and of the actor's, on this rank."""
    results: dict[str, Any] = {}
    chosen = {name: sections for name, sections in options(inputs.ranks).items() if name in ("plain", "gpu", "ulysses")}
    for role, engine in {"reference": {"forward_only": True, "model_dtype": "fp32"}, "actor": {}}.items():
        for family in ("qwen2", "llama"):
            for name, sections in chosen.items():
                with gpu_process():
                    merged = {**sections, "engine": {**sections.get("engine", {}), **engine}}
                    worker = worker_of("grpo", inputs.directory / family, **merged)
                    batch = to_batch(worker, inputs.sequences, compute_loss=False)
                    output = worker.infer_batch(batch)
                if output is not None:
                    rows = [row.clone() for row in tu.get(output, "log_probs").unbind()]
                    results.setdefault(f"{role}, {family}", {})[name] = rows
    return results


def gpu_lora(inputs: Any) -> dict[str, Any]:
    """Gradient of the adapters: plainly, and with all options of a GPU run."""
    results = {}
    for name in ("plain", "gpu", "offloaded"):
        sections = options(inputs.ranks)[name]
        with gpu_process() as calls:
            sections = {**sections, "model": {**sections["model"], **LORA}}
            results[name] = _gradients(inputs, "flowrl", "qwen2", sections, calls)
    return results


def gpu_moves(inputs: Any) -> dict[str, dict[str, list[str]]]:
    """With both offloads on, what is loaded onto the device and off it in each phase of a run; the device is named.

    Phase -> policy, head and their optimizers -> its moves, in order.
    """
    device, moves = "cpu:0", []

    def recorded(direction: str, function: Callable) -> Callable:
        def move(what: Any, *args: Any, **kwargs: Any) -> None:
            moves.append((what, direction))
            function(what, *args, **kwargs)

        return move

    functions = {
        "load_fsdp_model_to_gpu": "load",
        "load_fsdp_optimizer": "load",
        "offload_fsdp_model_to_cpu": "offload",
        "offload_fsdp_optimizer": "offload",
    }
    to = transformer_impl.FSDPEngine.to

    def named(self: Any, *args: Any, **kwargs: Any) -> None:
        with mock.patch.object(transformer_impl, "get_device_name", lambda: device):
            to(self, *args, **kwargs)

    with gpu_process(), ExitStack() as stack:
        for module in (transformer_impl, auxiliary):
            for name, direction in functions.items():
                stack.enter_context(mock.patch.object(module, name, recorded(direction, getattr(module, name))))
        stack.enter_context(mock.patch.object(auxiliary, "get_device_name", lambda: device))
        stack.enter_context(mock.patch.object(transformer_impl.FSDPEngine, "to", named))
        phases: dict[str, list] = {}

        def phase(name: str, run: Callable) -> Any:
            moves.clear()
            result = run()
            phases[name] = list(moves)
            return result

        chosen = options(inputs.ranks)["offloaded"]
        worker = phase("init", lambda: worker_of("flowrl", inputs.qwen2, **chosen))
        # Not before: engines are registered by device.
        stack.enter_context(mock.patch.object(verl_engine, "get_device_name", lambda: device))
        directory = str(inputs.directory / f"offloaded_{inputs.ranks}" / "global_step_1" / "actor")
        phase("update", lambda: update(worker, inputs.sequences))
        phase("log-probs", lambda: worker.infer_batch(to_batch(worker, inputs.sequences, compute_loss=False)))
        phase("save", lambda: worker.save_checkpoint(directory))
        phase("load", lambda: worker.load_checkpoint(directory))
    engine = worker.engine
    objects = {
        "policy": engine.module,
        "head": engine.auxiliary,
        "policy's optimizer": engine.optimizer,
        "head's optimizer": engine.auxiliary_optimizer,
    }
    return {
        phase: {name: [way for what, way in found if what is one] for name, one in objects.items()}
        for phase, found in phases.items()
    }
