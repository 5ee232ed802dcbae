"""What the ranks do: ``python scenarios.py DIRECTORY RESULTS [SCENARIO ...]``, started by ``launch.run_ranks``.

Each scenario (all but ``resharded``, unless named) runs on all ranks with real workers; rank 0 writes what they return
to the file RESULTS. The tests, in the parent process, judge it. A scenario that raises on every rank fails its own
tests only.
"""

from __future__ import annotations

import gc
import math
import shutil
import sys
import time
import traceback
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from family_scenarios import families as families
from gpu_scenarios import gpu_gradients, gpu_lora, gpu_moves, gpu_reference, own_forwards
from launch import Failure
from on_policy_scenarios import on_policy
from one_process_scenarios import one_process
from preset_scenarios import presets
from self_check_scenarios import self_check
from tiny import Sequences
from torch import Tensor
from verl.utils import tensordict_utils as tu
from verl.utils.distributed import initialize_global_process_group
from verl.utils.ulysses import gather_outputs_and_unpad
from workers import captured_gradients, make_flowrl_worker, parameters_of, state_of, to_batch, update, whole

from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.engine import _decoder
from recipe.flowrl.partition import prompt_mean
from recipe.flowrl.worker import flowrl_worker_loss
from verl_ext.faults import NonFiniteError
from verl_ext.nonfinite import UpdateGuard

STILL = FlowRLConfig(partition_lr=0.0)
MOVING = {"lr": 1e-3, "weight_decay": 0.01}
RESUMED = FlowRLConfig(partition_lr=1e-2, partition_weight_decay=0.1)
SCHEDULED = {**MOVING, "lr_scheduler_type": "cosine", "lr_warmup_steps": 1, "total_training_steps": 6}
LORA = {"lora_rank": 4, "lora_alpha": 8}
# Prompt and response lengths. On two ranks: odd totals; a rank without a prompt token; a prompt over both ranks.
SHARDED_LENGTHS = (([3, 1, 4], [2, 5, 2]), ([3, 1, 4], [2, 5, 1]), ([2], [7]), ([1, 1], [9, 8]), ([9, 1], [1, 1]))


@dataclass(frozen=True)
class Inputs:
    """Where the scenarios work, and on what."""

    directory: Path
    sequences: Sequences
    ranks: int

    @property
    def qwen2(self) -> Path:
        return self.directory / "qwen2"


def gradients(inputs: Inputs) -> dict[str, Any]:
    """The gradient of one mini-batch, cut in many ways, by engines of many configurations. Nothing moves."""
    results: dict[str, Any] = {}

    def measure(name: str, worker: Any, **settings: Any) -> None:
        with captured_gradients(worker) as captured:
            metrics = update(worker, inputs.sequences, **settings)
        results[name] = {**captured, "metrics": metrics}

    worker = make_flowrl_worker(inputs.qwen2)
    measure("one micro-batch", worker, micro_batch_size_per_gpu=len(inputs.sequences) // inputs.ranks)
    for size in (1, 2, 3, 8):
        measure(f"micro-batches of {size}", worker, micro_batch_size_per_gpu=size)
    for budget in (24, 60, 10_000):
        measure(f"{budget} tokens a micro-batch", worker, use_dynamic_bsz=True, max_token_len_per_gpu=budget)

    padded = make_flowrl_worker(inputs.qwen2, model={"use_remove_padding": False})
    measure("padded", padded, micro_batch_size_per_gpu=8)
    measure("padded, 60 tokens a micro-batch", padded, use_dynamic_bsz=True, max_token_len_per_gpu=60)

    engines = {
        "gradient synchronised in every micro-batch": {"use_no_sync_for_gradient_accumulation": False},
        "not resharded after the forward pass": {"reshard_after_forward": False},
        "packed length rounded up": {"pad_to_length": True, "pad_to_length_bucket": 32},
        "replicated": {"fsdp_size": 1},
        "offloaded": {"param_offload": True, "optimizer_offload": True},
    }
    for name, engine in engines.items():
        measure(name, make_flowrl_worker(inputs.qwen2, engine=engine), micro_batch_size_per_gpu=8)
    checkpointing = make_flowrl_worker(inputs.qwen2, model={"enable_gradient_checkpointing": True})
    measure("gradient checkpointing", checkpointing, micro_batch_size_per_gpu=8)
    measure(
        "detached", make_flowrl_worker(inputs.qwen2, replace(STILL, partition_detach=True)), micro_batch_size_per_gpu=8
    )
    for normalization in ("residual", "residual_root"):
        whole_residual = make_flowrl_worker(inputs.qwen2, replace(STILL, length_normalization=normalization))
        for size in (3, 8):
            measure(f"{normalization}, micro-batches of {size}", whole_residual, micro_batch_size_per_gpu=size)
    with_ppo = make_flowrl_worker(inputs.qwen2, replace(STILL, ppo_coef=50.0))
    for size in (3, 8):
        measure(f"with PPO's loss, micro-batches of {size}", with_ppo, micro_batch_size_per_gpu=size)
    bfloat16 = {"mixed_precision": {"param_dtype": "bf16", "reduce_dtype": "fp32"}}
    worker_of_bfloat16, dtypes = make_flowrl_worker(inputs.qwen2, engine=bfloat16), set()

    def watching_loss(model_output: dict, **kwargs: Any) -> Any:
        dtypes.add(model_output["log_z"].dtype)
        return flowrl_worker_loss(STILL, model_output=model_output, **kwargs)

    worker_of_bfloat16.set_loss_fn(watching_loss)
    measure("bfloat16", worker_of_bfloat16, micro_batch_size_per_gpu=8)
    results["bfloat16"]["log_z dtypes"] = dtypes
    # Last: verl patches the model's class for it, and so every model of it that this scenario builds afterwards.
    fused = {"use_fused_kernels": True, "fused_kernel_options": {"impl_backend": "torch"}}
    for name, model in {
        "llama": {},
        "llama, fused": fused,
        "llama, fused and padded": {**fused, "use_remove_padding": False},
    }.items():
        measure(name, make_flowrl_worker(inputs.directory / "llama", model=model), micro_batch_size_per_gpu=8)

    ulysses = {"ulysses_sequence_parallel_size": inputs.ranks}
    measure("ulysses", make_flowrl_worker(inputs.directory / "pointwise", engine=ulysses), micro_batch_size_per_gpu=8)
    return {"runs": results, "head": parameters_of(worker)["head"]}


def updates(inputs: Inputs) -> dict[str, Any]:
    """Weights before and after one update under options of the head's optimizer."""

    def step(flowrl: FlowRLConfig, optim: dict[str, Any] | None = None) -> dict[str, Any]:
        worker = make_flowrl_worker(inputs.qwen2, flowrl, optim={**MOVING, **(optim or {})})
        before = parameters_of(worker)
        with captured_gradients(worker) as captured:
            metrics = update(worker, inputs.sequences)
        return {"before": before, "after": parameters_of(worker), "metrics": metrics, "clipped": captured}

    clip = {"clip_grad": 0.5}
    return {
        "default": step(FlowRLConfig(partition_lr=1e-2)),
        "policy's lr": step(FlowRLConfig(partition_lr=None)),
        "lr 0": step(FlowRLConfig(partition_lr=0.0)),
        "weight decay": step(FlowRLConfig(partition_lr=1e-2, partition_weight_decay=0.5)),
        "policy's weight decay": step(FlowRLConfig(partition_lr=1e-2, partition_weight_decay=None)),
        "clipped together": step(FlowRLConfig(partition_lr=1e-2), clip),
        "clipped separately": step(FlowRLConfig(partition_lr=1e-2, partition_clip_separately=True), clip),
        "shape": step(FlowRLConfig(partition_depth=2, partition_width=24)),
    }


def dropout(inputs: Inputs) -> dict[str, list[float]]:
    """Mean log Z of two updates that move nothing, without and with dropout."""
    results = {}
    for probability in (0.0, 0.5):
        worker = make_flowrl_worker(inputs.qwen2, replace(STILL, partition_dropout=probability))
        results[str(probability)] = [update(worker, inputs.sequences)["flowrl/log_z"] for _ in range(2)]
    return results


def schedule(inputs: Inputs) -> list[tuple[float, float]]:
    """Learning rates of policy and head in three updates of two mini-batches each."""
    optim = {**MOVING, "lr_scheduler_type": "cosine", "lr_warmup_steps": 1, "total_training_steps": 4}
    worker = make_flowrl_worker(inputs.qwen2, FlowRLConfig(partition_lr=1e-2), optim=optim)
    rates = []
    for _ in range(3):
        rate = worker.engine.optimizer.param_groups[0]["lr"]
        settings = {"mini_batch_size": len(inputs.sequences) // 2, "global_batch_size": len(inputs.sequences) // 2}
        metrics = update(worker, inputs.sequences, **settings)
        rates.append((rate, metrics["flowrl/log_partition_lr"]))
    return rates


def non_finite(inputs: Inputs) -> dict[str, Any]:
    """A NaN in one gradient on one rank, then a whole update on data that holds an infinity."""
    worker = make_flowrl_worker(inputs.qwen2, FlowRLConfig(partition_lr=1e-2), optim=MOVING)
    engine = worker.engine
    update(worker, inputs.sequences)  # gives both optimizers a state
    results: dict[str, Any] = {"before": parameters_of(worker)}
    for name, module in (("policy", engine.module), ("head", engine.auxiliary)):
        batch = to_batch(worker, inputs.sequences, use_dynamic_bsz=False, micro_batch_size_per_gpu=12)
        with engine.train_mode():
            engine.optimizer_zero_grad()
            engine.forward_backward_batch(batch, worker.loss_fn)
            if dist.get_rank() == inputs.ranks - 1:
                shard = next(p.grad.to_local() for p in module.parameters() if p.grad.to_local().numel())
                shard.view(-1)[0] = math.nan
            norm = engine.optimizer_step()
        results[name] = {"norm": norm, "after": parameters_of(worker)}
    reference = [row.clone() for row in inputs.sequences.ref_log_prob]
    reference[0][:] = math.inf
    metrics = update(worker, replace(inputs.sequences, ref_log_prob=reference))
    results["data"] = {"metrics": metrics, "after": parameters_of(worker)}
    results["recovered"] = update(worker, inputs.sequences)
    return results


def skipped_in_a_row(inputs: Inputs) -> dict[str, Any]:
    """A loss that is infinite while its gradient isn't, then updates on bad data up to the guard's limit."""
    directory = str(inputs.directory / f"nonfinite_{inputs.ranks}")
    worker = make_flowrl_worker(inputs.qwen2, optim=MOVING, guard=UpdateGuard(2, directory))
    before = parameters_of(worker)

    def infinite_loss(**kwargs: Any) -> Any:
        loss, metrics = flowrl_worker_loss(STILL, **kwargs)
        return loss + math.inf, metrics

    worker.set_loss_fn(infinite_loss)
    results = {"before": before, "infinite": update(worker, inputs.sequences), "after": parameters_of(worker)}
    worker.set_loss_fn(partial(flowrl_worker_loss, STILL))
    results["recovered"] = update(worker, inputs.sequences)
    reference = [row.clone() for row in inputs.sequences.ref_log_prob]
    reference[0][:] = math.nan
    bad = replace(inputs.sequences, ref_log_prob=reference)
    results["first"] = update(worker, bad, training_step=7)
    try:
        update(worker, bad, training_step=8)
    except NonFiniteError as error:
        results["error"] = str(error)
    dist.barrier()  # the files of all ranks are there
    results["directory"] = directory
    return results


def isolation(inputs: Inputs) -> dict[str, Any]:
    """Where the head and the hidden states can be seen: state dict, weight sync, and after each kind of pass."""
    worker = make_flowrl_worker(inputs.qwen2, FlowRLConfig(partition_lr=1e-2), optim=MOVING)
    engine, seen = worker.engine, []

    def watch(module: torch.nn.Module, args: Any, output: Any) -> None:
        seen.append((weakref.ref(output[0]), output.hidden_states, engine._hidden_states is not None))

    handle = _decoder(engine.module).register_forward_hook(watch)
    results: dict[str, Any] = {}
    passes = {
        "update": lambda: update(worker, inputs.sequences),
        "forward": lambda: worker.infer_batch(to_batch(worker, inputs.sequences, compute_loss=False)),
    }
    for name, run in passes.items():
        output, captured = run(), [entry[2] for entry in seen]
        gc.collect()
        alive = sum(reference() is not None for reference, _, _ in seen)
        output_hidden_states = any(states is not None for _, states, _ in seen)
        results[name] = {"captured": captured, "alive": alive, "output_hidden_states": output_hidden_states}
        seen.clear()
    handle.remove()
    return results | {
        "kept": engine._hidden_states,
        "forward keys": sorted(output.keys()),
        "state dict": sorted(engine.module.state_dict()),
        "synced": {name: whole(tensor) for name, tensor in engine.get_per_tensor_param()[0]},
        "parameters": parameters_of(worker),
    }


def checkpoint(inputs: Inputs) -> dict[str, Any]:
    """Update, save, update; then in fresh workers: load, update."""
    first, second = inputs.sequences, replace(inputs.sequences, advantages=inputs.sequences.advantages[::-1])
    directory = inputs.directory / f"checkpoint_{inputs.ranks}" / "global_step_1" / "actor"

    worker = make_flowrl_worker(inputs.qwen2, RESUMED, optim=SCHEDULED)
    update(worker, first)
    worker.save_checkpoint(str(directory))
    saved = state_of(worker)
    batch = to_batch(worker, second, compute_loss=False)
    log_probs = tu.get(worker.infer_batch(batch), "log_probs")
    uninterrupted = {"metrics": update(worker, second), **state_of(worker)}

    resumed_worker = make_flowrl_worker(inputs.qwen2, RESUMED, optim=SCHEDULED)
    resumed_worker.load_checkpoint(str(directory))
    loaded = state_of(resumed_worker)
    resumed = {"metrics": update(resumed_worker, second), **state_of(resumed_worker)}

    weights_only = make_flowrl_worker(inputs.qwen2, RESUMED, optim=SCHEDULED, checkpoint={"load_contents": ["model"]})
    weights_only.load_checkpoint(str(directory))
    engine = weights_only.engine
    return {
        "saved": saved,
        "loaded": loaded,
        "uninterrupted": uninterrupted,
        "resumed": resumed,
        "weights only": {
            "parameters": parameters_of(weights_only),
            "optimizer states": [len(engine.optimizer.state), len(engine.auxiliary_optimizer.state)],
            "schedules": [engine.lr_scheduler.last_epoch, engine.auxiliary_lr_scheduler.last_epoch],
        },
        "log_probs": list(log_probs.unbind()),
    }


def other_checkpoints(inputs: Inputs) -> dict[str, Any]:
    """Load the head's file of a run on one rank, and a checkpoint without that file."""
    source = inputs.directory / f"checkpoint_{inputs.ranks}" / "global_step_1" / "actor"
    one_rank = inputs.directory / "checkpoint_1" / "global_step_1" / "actor" / "log_partition.pt"
    copies = {name: inputs.directory / f"{name}_{inputs.ranks}" for name in ("resharded", "headless")}
    if dist.get_rank() == 0:
        for copy in copies.values():
            shutil.copytree(source, copy)
        shutil.copy(one_rank, copies["resharded"])
        (copies["headless"] / "log_partition.pt").unlink()
    dist.barrier()

    worker = make_flowrl_worker(inputs.qwen2, FlowRLConfig(partition_lr=1e-2), optim=MOVING)
    before = parameters_of(worker)
    try:
        worker.load_checkpoint(str(copies["headless"]))
        error = None
    except FileNotFoundError as raised:
        error = str(raised)
    untouched = parameters_of(worker)
    worker.load_checkpoint(str(copies["resharded"]))
    states = worker.engine.auxiliary_optimizer.state
    moments = {name: whole(states[p]["exp_avg"]) for name, p in worker.engine.auxiliary.named_parameters()}
    return {
        "error": error,
        "before": before,
        "untouched": untouched,
        "head": parameters_of(worker)["head"],
        "moments": moments,
    }


def lora(inputs: Inputs) -> dict[str, Any]:
    """Two updates of adapters and head (an adapter's A has no gradient while its B is zero), and a checkpoint."""
    worker = make_flowrl_worker(
        inputs.qwen2,
        FlowRLConfig(partition_lr=1e-2),
        model=LORA,
        optim=MOVING,
    )
    before = parameters_of(worker)
    metrics = [update(worker, inputs.sequences) for _ in range(2)]
    directory = inputs.directory / f"lora_{inputs.ranks}" / "global_step_2" / "actor"
    worker.save_checkpoint(str(directory))
    with torch.no_grad():
        log_probs = tu.get(worker.infer_batch(to_batch(worker, inputs.sequences, compute_loss=False)), "log_probs")
    names = [name for name, _ in worker.engine.get_per_tensor_param(base_sync_done=True)[0]]
    return {
        "before": before,
        "after": parameters_of(worker),
        "metrics": metrics,
        "synced": names,
        "log_probs": list(log_probs.unbind()),
    }


def resharded(inputs: Inputs) -> dict[str, Any]:
    """Load what another number of ranks has saved (the scenarios ``checkpoint`` and ``lora``), then update."""
    other = 3 - inputs.ranks
    worker = make_flowrl_worker(inputs.qwen2, RESUMED, optim=SCHEDULED)
    worker.load_checkpoint(str(inputs.directory / f"checkpoint_{other}" / "global_step_1" / "actor"))
    random_states: list[Any] = [None] * inputs.ranks
    dist.all_gather_object(random_states, worker.engine.checkpoint_manager.get_rng_state())
    loaded = state_of(worker)
    second = replace(inputs.sequences, advantages=inputs.sequences.advantages[::-1])
    updated = {"metrics": update(worker, second), **state_of(worker)}
    lora_worker = make_flowrl_worker(inputs.qwen2, FlowRLConfig(partition_lr=1e-2), model=LORA, optim=MOVING)
    lora_worker.load_checkpoint(str(inputs.directory / f"lora_{other}" / "global_step_2" / "actor"))
    return {
        "loaded": loaded,
        "random states": random_states,
        "updated": updated,
        "lora": parameters_of(lora_worker),
    }


def moves(inputs: Inputs) -> dict[str, Any]:
    """Off the device and back between two updates, by hand and by the offload flags, against leaving all in place."""

    def two_updates(engine: dict[str, Any], by_hand: bool) -> dict[str, Any]:
        worker = make_flowrl_worker(inputs.qwen2, FlowRLConfig(partition_lr=1e-2), optim=MOVING, engine=engine)
        update(worker, inputs.sequences)
        if by_hand:
            worker.to("cpu")
            worker.to("device")
        update(worker, inputs.sequences)
        return parameters_of(worker)

    offload = {"param_offload": True, "optimizer_offload": True}
    return {
        "in place": two_updates({}, by_hand=False),
        "by hand": two_updates({}, by_hand=True),
        "by flag": two_updates(offload, by_hand=False),
    }


def refused(inputs: Inputs) -> dict[str, str]:
    """The message for each engine that the head can't be trained in."""
    engines = {
        "fp16": {"mixed_precision": {"param_dtype": "fp16"}},
        "forward-only": {"forward_only": True},
    }
    messages = {}
    for name, engine in engines.items():
        try:
            make_flowrl_worker(inputs.qwen2, engine=engine)
        except ValueError as error:
            messages[name] = str(error)
    return messages


def sequence_parallel(inputs: Inputs) -> dict[str, Any]:
    """``prompt_mean`` over a sequence-parallel group of all ranks, and on the sequence that verl's gather rebuilds."""
    group, rank, generator = dist.group.WORLD, dist.get_rank(), torch.Generator().manual_seed(1)

    def value_and_gradient(
        pool: Callable[[Tensor], Tensor], slices: tuple[Tensor, ...], weights: Tensor
    ) -> list[Tensor]:
        local = slices[rank].clone().requires_grad_()
        mean = pool(local)
        (weights * mean.square()).sum().backward()
        gathered = [torch.empty_like(local) for _ in slices]
        dist.all_gather(gathered, local.grad)
        return [mean.detach(), torch.cat(gathered)]

    results: dict[str, Any] = {}
    for prompts, responses in SHARDED_LENGTHS:
        prompt_lengths = torch.tensor(prompts)
        lengths = {"prompt_lengths": prompt_lengths, "sequence_lengths": prompt_lengths + torch.tensor(responses)}
        total = sum(prompts) + sum(responses)
        padding = -total % inputs.ranks
        slices = torch.randn(total + padding, 4, generator=generator).chunk(inputs.ranks)
        weights = torch.randn(len(prompts), 4, generator=generator)

        def pooled(local: Tensor, lengths: dict = lengths) -> Tensor:
            return prompt_mean(local, **lengths, packed=True, sp_group=group)

        def gathered(local: Tensor, lengths: dict = lengths, padding: int = padding) -> Tensor:
            packed = gather_outputs_and_unpad(local, gather_dim=0, unpad_dim=0, padding_size=padding, group=group)
            return prompt_mean(packed, **lengths, packed=True)

        results[f"{prompts} + {responses}"] = {
            pool.__name__: value_and_gradient(pool, slices, weights) for pool in (pooled, gathered)
        }
    return results


SCENARIOS = [
    gradients, updates, dropout, schedule, non_finite, skipped_in_a_row, isolation, checkpoint, other_checkpoints, lora,
    moves, refused, sequence_parallel, gpu_gradients, gpu_reference, gpu_lora, gpu_moves,
    self_check, on_policy, presets, one_process,
]  # fmt: skip


def main(directory: Path, results_file: str, names: list[str]) -> None:
    rank, ranks = initialize_global_process_group()[1:]
    inputs = Inputs(directory, torch.load(directory / "sequences.pt", weights_only=False), ranks)
    results: dict[str, Any] = {}
    for scenario in [globals()[name] for name in names] or SCENARIOS:
        started = time.monotonic()
        try:
            with own_forwards():
                results[scenario.__name__] = scenario(inputs)
        except Exception:
            results[scenario.__name__] = Failure(traceback.format_exc())
            traceback.print_exc()
        print(f"{scenario.__name__}: {time.monotonic() - started:.1f} s", flush=True)
    if rank == 0:
        torch.save(results, directory / results_file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
