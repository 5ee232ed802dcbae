"""Every patch to a third party's symbol, each with its reason.

``tests/unit/verl_ext/test_patches.py`` fails for a patch as soon as the fault that it works around is gone.
"""

import functools
import importlib
import logging
import os
import socket
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any
from unittest import mock

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


def patch_models() -> None:
    """What verl needs in every process that trains or scores a model, whatever the device.

    The first is in use only where flash attention can't be imported, the second also beside it.
    """
    patch_log_prob_loop()
    patch_value_model_attention()
    patch_geometric_mean_loss()


def patch_geometric_mean_loss() -> None:
    """verl: GMPO's loss as a mean over the mini-batch.

    verl's is a mean over the micro-batch, and its engine adds up the micro-batches' losses: the gradient would grow
    with their number. Its other losses weigh each sequence or token by the mini-batch.
    """
    from verl.trainer.ppo import core_algos

    ours = "of the mini-batch"
    micro_batch_mean = core_algos.POLICY_LOSS_REGISTRY["geo_mean"]
    if getattr(micro_batch_mean, "mean", None) == ours:
        return

    @functools.wraps(micro_batch_mean)
    def mini_batch_mean(
        old_log_prob: torch.Tensor, *args: Any, config: Any = None, **kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        loss, metrics = micro_batch_mean(old_log_prob, *args, config=config, **kwargs)
        batch = config.global_batch_info
        return loss * len(old_log_prob) * batch["dp_size"] / batch["global_batch_size"], metrics

    mini_batch_mean.mean = ours  # type: ignore[attr-defined]
    core_algos.POLICY_LOSS_REGISTRY["geo_mean"] = mini_batch_mean


def patch_log_prob_loop() -> None:
    """verl: log-probs of all tokens in one operation instead of a Python loop over tokens.

    Without flash attention's own kernel verl reduces the logits row by row, to save memory, and half-precision logits
    to half-precision log-probs. The engine's rows are tokens: with a small vocabulary the loop costs more than the
    model (37 us a token, forward and backward, against 1 us). The log-probs are float32, as that kernel's are: of
    bfloat16's three digits the sum over a long response would keep none.
    """
    from verl.utils import torch_functional

    def log_probs_from_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        # Float64 stays.
        precise = logits.float() if logits.dtype.itemsize < torch.float32.itemsize else logits
        loss = torch.nn.functional.cross_entropy(precise.flatten(0, -2), labels.flatten(), reduction="none")
        return -loss.view(labels.shape)

    _replace(torch_functional, "logprobs_from_logits_v2", log_probs_from_logits)


def patch_value_model_attention() -> None:
    """verl: a critic with the attention that its configuration names.

    verl asks for ``flash_attention_2`` whatever ``override_config.attn_implementation`` says, and where that isn't
    installed falls back on a package (trl) that isn't a dependency.
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


def patch_fused_head_sharding() -> None:
    """verl: fused log-probs with FSDP2 and a language-model head of its own weights.

    verl makes the untied head an FSDP2 unit, whose weights are whole only while that module's forward runs. The fused
    forward reads the head's weight instead of calling it and finds a shard ("mixed torch.Tensor and DTensor"). Left to
    the root, whose forward this is, the weight is whole there and again in the backward pass.

    The fused forward takes the logits for the product of hidden state and weight, and is silently wrong (by nats) for a
    model that does more to them. Such a model is refused here, with a ValueError, before anything is computed.
    """
    from verl.utils import fsdp_utils

    select = fsdp_utils._select_fsdp2_wrap_targets

    def without_the_fused_head(policy: torch.nn.Module, layer_classes: list[str]) -> list[torch.nn.Module]:
        units = select(policy, layer_classes)
        if getattr(policy, "_verl_fused_kernels_backend", None) is None:
            return units
        if more := _beyond_the_product(policy):
            raise ValueError(f"fused log-probs leave out {more} of this model: set use_fused_kernels=false")
        return [unit for unit in units if unit is not policy.get_output_embeddings()]

    _replace(fsdp_utils, "_select_fsdp2_wrap_targets", without_the_fused_head)


_OWN_FORWARDS: dict[type[torch.nn.Module], Callable] = {}
"""A model's class -> its own forward, where verl has put a fused one in its place."""


def patch_fused_forward() -> None:
    """verl: a model's own forward is kept when the fused one takes its place.

    verl sets the fused forward on the model's class and forgets what stood there, so that nothing in the process can
    say any more what the model itself computes.
    """
    from verl.models.transformers import monkey_patch

    fuse = monkey_patch.patch_forward_with_backends

    def remember_and_fuse(model: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        own = type(model).forward
        fuse(model, *args, **kwargs)
        if type(model).forward is not own:
            _OWN_FORWARDS.setdefault(type(model), own)

    _replace(monkey_patch, "patch_forward_with_backends", remember_and_fuse)


@contextmanager
def unfused() -> Iterator[None]:
    """In this block the models of this process compute with their own forward; see :func:`patch_fused_forward`."""
    with ExitStack() as stack:
        for kind, own in _OWN_FORWARDS.items():
            stack.enter_context(mock.patch.object(kind, "forward", own))
        yield


def patch_weight_sender(sender: type) -> None:
    """verl: weights are sent to vLLM by a ``sender`` that notices when the receiver has failed.

    verl's waits for an acknowledgement for ever (``socket.recv`` without a limit), also of a vLLM worker that has
    raised, and the error is never asked for.
    """
    module: Any = importlib.import_module("verl.workers.rollout.vllm_rollout.vllm_rollout")
    module.BucketedWeightSender = sender


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


def patch_vllm_cpu_experts() -> None:
    """vLLM (CPU build): weights of experts are packed after every load, as they are after the first.

    vLLM-CPU lays the weights of a mixture's experts out for its grouped kernel when a model is first loaded. After a
    weight sync, verl has vLLM process the weights again, but that branch is written for CUDA graphs and leaves out the
    packing: the kernel then reads plain weights as packed ones, silently. Call it in the vLLM worker.
    """
    from vllm.model_executor.layers.fused_moe import unquantized_fused_moe_method as module

    method = module.UnquantizedFusedMoEMethod
    set_up = method._setup_kernel

    @functools.wraps(set_up)
    def set_up_and_pack(self: Any, layer: Any, w13: torch.Tensor, w2: torch.Tensor) -> None:
        again = self.moe_kernel is not None
        set_up(self, layer, w13, w2)
        if again and self.unquantized_backend == module.UnquantizedMoeBackend.CPU:
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    if not hasattr(set_up, "__wrapped__"):  # in this process already
        method._setup_kernel = set_up_and_pack


_LOGIT_OPTIONS = ("logit_scale", "logits_scaling", "final_logit_softcapping", "lm_head_multiplier")


def _beyond_the_product(policy: torch.nn.Module) -> str | None:
    """What, besides the product with the head's weight, makes the logits of a Hugging Face model; None: nothing."""
    config, head = policy.config.get_text_config(), policy.get_output_embeddings()
    for name in _LOGIT_OPTIONS:
        if getattr(config, name, None) not in (None, 1.0):
            return f"{name}={getattr(config, name)}"
    if getattr(head, "bias", None) is not None:
        return "the head's bias"
    return "the head's adapter" if hasattr(head, "base_layer") else None


def patch_store_address() -> None:
    """torch: the store of a process group listens on the address that its ranks are told.

    torch binds it to every address of the machine, whatever host it is given, and it takes anybody's keys.
    """
    rendezvous: Any = importlib.import_module("torch.distributed.rendezvous")
    store = torch.distributed.TCPStore

    def store_at_its_host(
        host_name: str, port: int, is_master: bool = False, **options: Any
    ) -> torch.distributed.Store:
        make = functools.partial(store, host_name=host_name, port=port, is_master=is_master, **options)
        if not is_master:
            return make()
        family, *_, address = socket.getaddrinfo(host_name, port, type=socket.SOCK_STREAM)[0]
        try:
            listener = socket.create_server(address[:2], family=family)
        except OSError:  # a store of this process listens there already and is shared; or torch says what is wrong
            return make()
        return make(port=listener.getsockname()[1], master_listen_fd=listener.detach())

    rendezvous.TCPStore = store_at_its_host


def patch_actor_class_ids() -> None:
    """Ray: ids of actor classes from the system's random numbers, in the process that the others are forked from.

    ``ray.remote`` of a class, at the import of verl, takes the id from the generator of Ray's C++, which is seeded once
    a process. Forks of that process would all go on where it stood and give different objects equal ids; a Ray worker
    dies of that at its start.
    """
    import ray.actor
    from ray._raylet import ActorClassID

    def from_random() -> ActorClassID:
        return ActorClassID(os.urandom(ActorClassID.size()))

    ray.actor.ActorClassID = types.SimpleNamespace(from_random=from_random)


def patch_separate_async_logger() -> None:
    """verl: its trainer with rollout servers of their own, and none beside the ranks, gets past its own log message.

    The message is given ``flush=True``, as if it were printed, which a logger refuses with a TypeError.
    """
    from verl.trainer.ppo.v1 import trainer_separate_async

    class WithoutFlush(logging.LoggerAdapter):
        def process(self, msg: Any, kwargs: Any) -> Any:
            return msg, {name: value for name, value in kwargs.items() if name != "flush"}

    trainer_separate_async.logger = WithoutFlush(trainer_separate_async.logger, {})


def _replace(module: object, name: str, replacement: object) -> None:
    """Put ``replacement`` in ``module`` and in every loaded module that imported the original by name."""
    original = getattr(module, name)
    for loaded in list(sys.modules.values()):
        if getattr(loaded, "__dict__", {}).get(name) is original:
            setattr(loaded, name, replacement)
