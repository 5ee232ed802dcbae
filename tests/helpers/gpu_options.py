"""What exercises each option of the paper's runs on GPUs: the table in ``docs/verified.md``.

``python tests/helpers/gpu_options.py`` writes it anew.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections import defaultdict
from collections.abc import Iterator

from made_tables import between
from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.preflight import resolved
from recipe.flowrl.preflight.compose import compose_unresolved
from recipe.flowrl.rehearsal.transform import leaves

CLUSTERS, EXPERIMENTS = ("1x8", "4x8"), ("math_7b", "math_32b", "code_7b")
FILES = ["cluster/gpu", *(f"cluster/{name}" for name in CLUSTERS), *(f"experiment/{name}" for name in EXPERIMENTS)]
DOCUMENT = PROJECT / "docs" / "verified.md"
BEGIN, END = "<!-- options of GPU runs: tests/helpers/gpu_options.py -->", "<!-- end of the options of GPU runs -->"

ACTOR, REF, ROLLOUT, MODEL = (f"actor_rollout_ref.{part}" for part in ("actor", "ref", "rollout", "model"))

DEFAULTS_THAT_MATTER = (
    f"{MODEL}.fused_kernel_options.impl_backend",
    f"{MODEL}.lora_rank",
    f"{ACTOR}.fsdp_config.mixed_precision",
    f"{ACTOR}.fsdp_config.reshard_after_forward",
    f"{ACTOR}.ulysses_sequence_parallel_size",
    f"{ACTOR}.use_torch_compile",
    f"{ROLLOUT}.dtype",
    f"{ROLLOUT}.enforce_eager",
    f"{ROLLOUT}.free_cache_engine",
    f"{ROLLOUT}.enable_chunked_prefill",
    f"{ROLLOUT}.checkpoint_engine.backend",
)
"""verl's own defaults that decide which code a GPU run goes through."""

_GRADIENT = "engine/test_gpu_options.py::test_the_gradient_is_that_without_the_options"
_ON = "engine/test_gpu_options.py::test_the_options_were_on"
_LOG_PROBS = "engine/test_gpu_options.py::test_log_probs_are_the_models"
_BFLOAT16 = "engine/test_gpu_options.py::test_bfloat16_points_the_same_way"
_MOVES = "engine/test_gpu_options.py::test_with_offload_everything_is_on_the_device_while_it_is_needed_and_off_it_after"
_LORA = "engine/test_gpu_options.py::test_the_gradient_of_lora_adapters"
_RUN = "stack/test_rehearsal_run.py::test_it_goes_all_the_way"
_ANSWERS = "stack/test_rehearsal_run.py::test_each_response_got_the_score_that_it_deserves"
_OPTIMIZER = "engine/test_update.py::test_the_head_follows_the_policys_schedule"
_KEPT = "unit/rehearsal/test_rehearsal.py::test_ratios_stay_and_sizes_shrink"
_SHARED = "stack/test_countdown_run.py"
_PLAN = "unit/plan/test_plan.py"

CUDA = "needs CUDA: "

ENTRIES: dict[str, tuple[str, ...]] = {
    "trainer.device": (CUDA + "the device itself and NCCL",),
    "trainer.nnodes": ("slurm/test_training.py", CUDA + "NCCL between nodes"),
    "trainer.n_gpus_per_node": (_GRADIENT, _RUN, CUDA + "more than two ranks, NCCL"),
    "trainer.project_name": (_RUN,),
    "trainer.total_training_steps": (_RUN,),
    "trainer.total_epochs": (_RUN,),
    "trainer.save_freq": (_RUN,),
    "trainer.test_freq": (_RUN,),
    "slurm.gpu": (_PLAN, "unit/run/test_submit.py"),
    "data.train_files": (_RUN,),
    "data.val_files": (_RUN,),
    "data.train_batch_size": (_KEPT, _RUN),
    "data.max_prompt_length": (_RUN,),
    "data.max_response_length": (_RUN, CUDA + "its length"),
    "data.filter_overlong_prompts": (_RUN,),
    f"{MODEL}.path": (_RUN, CUDA + "the real weights"),
    f"{MODEL}.enable_gradient_checkpointing": (_GRADIENT, _ON),
    f"{MODEL}.use_remove_padding": (_GRADIENT, _ON, CUDA + "the kernel of flash attention"),
    f"{MODEL}.use_fused_kernels": (_GRADIENT, _LOG_PROBS, _ON, _RUN),
    f"{MODEL}.fused_kernel_options.impl_backend": (_ON,),
    f"{MODEL}.lora_rank": (_LORA,),
    f"{ACTOR}.strategy": (_GRADIENT,),
    f"{ACTOR}.use_dynamic_bsz": (_GRADIENT, _ON),
    f"{ACTOR}.ppo_max_token_len_per_gpu": (_GRADIENT, _ON),
    f"{ACTOR}.fsdp_config.strategy": (_GRADIENT,),
    f"{ACTOR}.fsdp_config.param_offload": (_GRADIENT, _MOVES),
    f"{ACTOR}.fsdp_config.optimizer_offload": (_GRADIENT, _MOVES),
    f"{ACTOR}.fsdp_config.mixed_precision": (_BFLOAT16,),
    f"{ACTOR}.fsdp_config.reshard_after_forward": (_GRADIENT,),
    f"{ACTOR}.ulysses_sequence_parallel_size": (_GRADIENT, _LOG_PROBS),
    f"{ACTOR}.use_torch_compile": (CUDA + "of the entropy, compiled with Triton",),
    f"{ACTOR}.ppo_mini_batch_size": (_KEPT, _RUN),
    f"{ACTOR}.ppo_epochs": (_RUN,),
    f"{ACTOR}.optim.clip_grad": ("engine/test_update.py",),
    f"{ACTOR}.clip_ratio": (_GRADIENT,),
    f"{ACTOR}.entropy_coeff": (_RUN,),
    f"{ACTOR}.optim.lr": (_RUN,),
    f"{ACTOR}.optim.lr_warmup_steps": (_OPTIMIZER,),
    f"{ACTOR}.optim.lr_scheduler_type": (_RUN,),
    f"{ACTOR}.optim.betas": (_RUN,),
    f"{ACTOR}.optim.weight_decay": (_RUN,),
    f"{REF}.strategy": (_LOG_PROBS,),
    f"{REF}.fsdp_config.strategy": (_LOG_PROBS,),
    f"{REF}.fsdp_config.param_offload": (CUDA + "FSDP2 keeps the reference in pinned memory",),
    f"{REF}.fsdp_config.model_dtype": (_RUN,),
    f"{REF}.log_prob_max_token_len_per_gpu": (_LOG_PROBS,),
    f"{ROLLOUT}.name": (_RUN,),
    f"{ROLLOUT}.tensor_model_parallel_size": (_SHARED, CUDA + "NCCL inside vLLM"),
    f"{ROLLOUT}.gpu_memory_utilization": (_PLAN, CUDA + "the KV cache's memory"),
    f"{ROLLOUT}.max_num_seqs": (_PLAN, CUDA + "so many at once"),
    f"{ROLLOUT}.max_num_batched_tokens": (_PLAN, CUDA + "so many at once"),
    f"{ROLLOUT}.log_prob_max_token_len_per_gpu": (_LOG_PROBS,),
    f"{ROLLOUT}.n": (_KEPT, _RUN),
    f"{ROLLOUT}.temperature": (_RUN,),
    f"{ROLLOUT}.top_p": (_RUN,),
    f"{ROLLOUT}.val_kwargs.n": (_RUN,),
    f"{ROLLOUT}.val_kwargs.temperature": (_RUN,),
    f"{ROLLOUT}.val_kwargs.top_p": (_RUN,),
    f"{ROLLOUT}.val_kwargs.do_sample": (_RUN,),
    f"{ROLLOUT}.dtype": (CUDA + "bfloat16 kernels of vLLM",),
    f"{ROLLOUT}.enforce_eager": (CUDA + "CUDA graphs",),
    f"{ROLLOUT}.free_cache_engine": (CUDA + "vLLM's sleep mode",),
    f"{ROLLOUT}.enable_chunked_prefill": (CUDA + "vLLM's CPU build can't seed such a request",),
    f"{ROLLOUT}.checkpoint_engine.backend": ("unit/verl_ext/test_weight_sync.py", CUDA + "weights over CUDA IPC"),
    "critic.strategy": (_GRADIENT,),
    "critic.ppo_max_token_len_per_gpu": (_GRADIENT,),
    "critic.forward_max_token_len_per_gpu": (_GRADIENT,),
    "critic.fsdp.strategy": (_GRADIENT,),
    "critic.fsdp.param_offload": (_GRADIENT,),
    "critic.fsdp.optimizer_offload": (_GRADIENT,),
    "reward": (_ANSWERS,),
}
"""Option -> a test file, or a test, under ``tests/``, and what of it needs CUDA."""


def options() -> list[str]:
    """Those that the shipped GPU configurations set, and verl's defaults that matter, in order."""
    found = dict.fromkeys(["reward"])
    for name in FILES:
        section = OmegaConf.to_container(OmegaConf.load(PROJECT / "configs" / f"{name}.yaml"), resolve=False)
        section.pop("defaults", None)
        section.pop("data_dir", None)
        found |= dict.fromkeys(option for option, _ in leaves(section))
    return sorted([*found, *(option for option in DEFAULTS_THAT_MATTER if option not in found)])


@functools.cache
def values() -> dict[tuple[str, str], DictConfig]:
    """The resolved configuration of each experiment on each cluster."""
    return {
        (experiment, cluster): resolved(
            compose_unresolved(["cache_dir=CACHE", f"experiment={experiment}", f"cluster={cluster}"])
        )
        for experiment in EXPERIMENTS
        for cluster in CLUSTERS
    }


def value_of(option: str) -> str:
    """Its value, or each with the experiments, or the clusters, that have it."""
    key = "reward.custom_reward_function.path" if option == "reward" else option
    found = {run: _shown(OmegaConf.select(config, key)) for run, config in values().items()}
    for part in range(2):
        having = defaultdict(list)
        for run, value in found.items():
            if run[part] not in having[value]:
                having[value].append(run[part])
        if len(having) == 1:
            return f"`{next(iter(having))}`"
        if sum(map(len, having.values())) == len({run[part] for run in found}):
            return "; ".join(f"`{value}` ({', '.join(names)})" for value, names in having.items())
    return "; ".join(f"`{value}` ({' on '.join(run)})" for run, value in found.items())


def _shown(value: object) -> str:
    text = str(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value)
    return text.replace("|", "\\|")


def exists(place: str) -> bool:
    """Whether there is such a test, or a test file."""
    file, _, name = place.partition("::")
    path = PROJECT / "tests" / file
    if not path.is_file():
        return False
    functions = {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
    return name in functions if name else any(function.startswith("test_") for function in functions)


def table() -> Iterator[str]:
    """The lines of the table. Raises KeyError for an option without an entry."""
    yield "| option | value | exercised by |"
    yield "| --- | --- | --- |"
    for option in options():
        cells = [
            place if place.startswith(CUDA) else f"`{place.partition('::')[2] or place}`" for place in ENTRIES[option]
        ]
        yield f"| `{option}` | {value_of(option)} | {'; '.join(cells)} |"


def document(text: str) -> str:
    """``text`` with the table between its two marks."""
    return between(text, BEGIN, table(), END)


if __name__ == "__main__":
    DOCUMENT.write_text(document(DOCUMENT.read_text()))
    sys.exit(0)
