"""What the engine computes for each family: log-probs, log Z and gradients on each path, and a checkpoint's way."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from families import OPTIONS, adapted, paths_of
from launch import Failure
from verl.utils import tensordict_utils as tu
from workers import captured_gradients, make_flowrl_worker, parameters_of, to_batch, update

from recipe.flowrl.config import FlowRLConfig

FUSED = {"use_fused_kernels": True, "fused_kernel_options": {"impl_backend": "torch"}}
CHOSEN: dict[str, dict[str, Any]] = {
    "padded": {"use_remove_padding": False},
    "packed": {"use_remove_padding": True},
    "fused": FUSED,
    "checkpointing": {"enable_gradient_checkpointing": True},
}
MOVING = {"lr": 1e-3, "weight_decay": 0.01}


def families(inputs: Any) -> dict[str, Any]:
    """Name -> ``head``, and option -> gradients, metrics and log-probs; ``resumed``: a checkpoint's way and back."""
    return {name: _family(inputs.directory / name, name) for name in json.loads(_list(inputs.directory).read_text())}


def _list(directory: Path) -> Path:
    return directory / "families.json"


def _family(directory: Path, name: str) -> dict[str, Any]:
    attention, right = paths_of(name)
    sequences = torch.load(directory / "sequences.pt", weights_only=False)
    packed = "packed" in right
    results: dict[str, Any] = {"attention": attention, "right": right}

    def run(option: str) -> dict[str, Any]:
        chosen = {"use_remove_padding": packed, **(adapted(name) if option == "LoRA" else CHOSEN[option])}
        model = {"override_config": {"attn_implementation": attention}, **chosen}
        worker = make_flowrl_worker(directory, model=model)
        kinds = {type(module) for module in worker.engine.module.modules()}
        with captured_gradients(worker) as captured:
            metrics = update(worker, sequences, micro_batch_size_per_gpu=4)
        log_probs = tu.get(worker.infer_batch(to_batch(worker, sequences, compute_loss=False)), "log_probs")
        results["head"] = parameters_of(worker)["head"]
        found = {**captured, "metrics": metrics, "log_probs": [row.clone() for row in log_probs.unbind()]}
        return found | {"adapted": any("lora" in kind.__module__ for kind in kinds)}

    for option in OPTIONS:
        if option in right:
            results[option] = _or_failure(run, option)
    results["checkpoint"] = _or_failure(_checkpoint, directory, sequences, attention, packed, {})
    results["LoRA checkpoint"] = _or_failure(_checkpoint, directory, sequences, attention, packed, adapted(name))
    return results


def _or_failure(run: Any, *arguments: Any) -> Any:
    """A family that fails fails its own tests only. verl sets its fused forward on the class: it is taken off again."""
    before = {kind: kind.forward for kind in _model_classes()}
    try:
        return run(*arguments)
    except Exception:
        traceback.print_exc(file=sys.stdout)
        return Failure(traceback.format_exc())
    finally:
        for kind, forward in before.items():
            kind.forward = forward


def _model_classes() -> list[type]:
    import transformers

    names = [name for name in dir(transformers.models) if not name.startswith("_")]
    loaded = [sys.modules.get(f"transformers.models.{name}.modeling_{name}") for name in names]
    return [
        kind
        for module in loaded
        if module is not None
        for key, kind in vars(module).items()
        if key.endswith("ForCausalLM") and isinstance(kind, type) and "forward" in vars(kind)
    ]


def _checkpoint(directory: Path, sequences: Any, attention: str, packed: bool, more: dict[str, Any]) -> dict[str, Any]:
    """Update, save, update; and in a fresh worker load, update: parameters of both ways, and log-probs when saved."""
    flowrl = FlowRLConfig(partition_lr=1e-2)
    model = {"override_config": {"attn_implementation": attention}, "use_remove_padding": packed, **more}
    place = directory / ("lora" if more else "full") / "global_step_1" / "actor"
    torch.manual_seed(11)  # an adapter's A is random
    worker = make_flowrl_worker(directory, flowrl, model=model, optim=MOVING)
    update(worker, sequences)
    update(worker, sequences)  # an adapter's A has no gradient while its B is zero
    worker.save_checkpoint(str(place))
    log_probs = tu.get(worker.infer_batch(to_batch(worker, sequences, compute_loss=False)), "log_probs")
    saved = [row.clone() for row in log_probs.unbind()]
    update(worker, sequences)
    fresh = make_flowrl_worker(directory, flowrl, model=model, optim=MOVING)
    fresh.load_checkpoint(str(place))
    update(fresh, sequences)
    dist.barrier()
    return {"uninterrupted": parameters_of(worker), "resumed": parameters_of(fresh), "saved": saved}
