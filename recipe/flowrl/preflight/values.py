"""What single options accept: those whose wrong value verl finds late, or never."""

from collections.abc import Iterable
from typing import Any

from recipe.flowrl.common.rules import (
    BOOLEAN,
    COUNT,
    COUNT_OR_ZERO,
    FINITE,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    Rule,
    number,
    one_of,
)
from recipe.flowrl.preflight import schema

_ROLLOUT, _ACTOR, _REF = (f"actor_rollout_ref.{part}" for part in ("rollout", "actor", "ref"))

_LONGEST_NAME, _LONGEST_PATH = 200, 2000
"""Bytes. Linux has 255 and 4096; a run appends names of its own."""

_SMALLEST_OBJECT_STORE = 75 * 2**20
"""Ray refuses a smaller one (``OBJECT_STORE_MINIMUM_MEMORY_BYTES``)."""


def _count_or_minus_one(meaning: str) -> Rule:
    return Rule(f"{COUNT.allowed}, or -1 ({meaning})", lambda value: COUNT.accepts(value) or value == -1)


def _parts_of(names: Iterable[str]) -> Rule:
    """A list without any other item than ``names``."""
    names = tuple(names)
    return Rule(
        f"a list of {', '.join(names)}",
        lambda value: not isinstance(value, str) and isinstance(value, Iterable) and set(value) <= set(names),
    )


def _is_path(value: Any) -> bool:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        return False
    path = value.encode(errors="replace")
    return len(path) <= _LONGEST_PATH and max(map(len, path.split(b"/"))) <= _LONGEST_NAME


_PATH = Rule("a path of printable characters, names in it of up to 200 bytes, 2000 in all", _is_path)
_NAME = Rule("a name of printable characters, up to 200", lambda value: _is_path(value) and len(value) <= _LONGEST_NAME)
_UNSET = COUNT.or_none("not set")
_UP_TO_ONE = number("in [0, 1]", lambda value: 0 <= value <= 1)
_STRATEGY = one_of(("fsdp", "fsdp2"))  # verl's other engines are not extended, and have configurations of their own
_SHARE = number("in (0, 1]", lambda value: 0 < value <= 1)
_KL_NAMES = ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3")
_KL = one_of([*_KL_NAMES, *(f"{name}+" for name in _KL_NAMES)])
_OBJECT_STORE = Rule(
    f"at least {_SMALLEST_OBJECT_STORE} bytes",
    lambda value: COUNT.accepts(value) and value >= _SMALLEST_OBJECT_STORE,
).or_none("Ray's default")
RULES = {
    **schema.RULES,
    "run_dir": _PATH,
    "cache_dir": _PATH,
    "trainer.default_local_dir": _PATH,
    "trainer.project_name": _NAME,
    "trainer.experiment_name": _NAME,
    "trainer.nnodes": COUNT,
    "trainer.n_gpus_per_node": COUNT,
    "trainer.device": one_of(("cpu", "cuda", "npu")),
    "trainer.total_epochs": COUNT,
    "trainer.total_training_steps": COUNT.or_none("all epochs"),
    "trainer.resume_mode": one_of(("auto", "disable", "resume_path")),
    "trainer.val_before_train": BOOLEAN,
    "trainer.val_only": BOOLEAN,
    "trainer.save_freq": _count_or_minus_one("never"),
    "trainer.test_freq": _count_or_minus_one("never"),
    "trainer.max_actor_ckpt_to_keep": COUNT.or_none("all"),
    "trainer.critic_warmup": COUNT_OR_ZERO,
    "data.train_batch_size": COUNT,
    "data.val_batch_size": COUNT.or_none("all at once"),
    "data.train_max_samples": _count_or_minus_one("all"),
    "data.val_max_samples": _count_or_minus_one("all"),
    "data.dataloader_num_workers": COUNT_OR_ZERO,
    "data.shuffle": BOOLEAN,
    "data.filter_overlong_prompts": BOOLEAN,
    "data.truncation": one_of(("error", "left", "right", "middle")),
    "data.gen_batch_size": COUNT.or_none("data.train_batch_size"),
    "data.max_prompt_length": COUNT,
    "data.max_response_length": COUNT,
    "reward.num_workers": COUNT,
    f"{_ROLLOUT}.n": COUNT,
    f"{_ROLLOUT}.temperature": NOT_NEGATIVE,
    f"{_ROLLOUT}.tensor_model_parallel_size": COUNT,
    f"{_ROLLOUT}.data_parallel_size": COUNT,
    f"{_ROLLOUT}.pipeline_model_parallel_size": COUNT,
    f"{_ROLLOUT}.agent.num_workers": COUNT,
    f"{_ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes": COUNT,
    f"{_ROLLOUT}.log_prob_use_dynamic_bsz": BOOLEAN,
    f"{_ROLLOUT}.log_prob_micro_batch_size_per_gpu": _UNSET,
    f"{_ROLLOUT}.log_prob_max_token_len_per_gpu": COUNT,
    f"{_REF}.log_prob_use_dynamic_bsz": BOOLEAN,
    f"{_REF}.log_prob_micro_batch_size_per_gpu": _UNSET,
    f"{_REF}.log_prob_max_token_len_per_gpu": COUNT,
    f"{_ACTOR}.strategy": _STRATEGY,
    f"{_REF}.strategy": _STRATEGY,
    "critic.strategy": _STRATEGY,
    f"{_ACTOR}.use_dynamic_bsz": BOOLEAN,
    f"{_ACTOR}.ppo_mini_batch_size": COUNT,
    f"{_ACTOR}.ppo_micro_batch_size_per_gpu": _UNSET,
    f"{_ACTOR}.ppo_max_token_len_per_gpu": COUNT,
    f"{_ACTOR}.ppo_epochs": COUNT,
    f"{_ACTOR}.ulysses_sequence_parallel_size": COUNT,
    f"{_ACTOR}.optim.lr": NOT_NEGATIVE,
    f"{_ACTOR}.optim.weight_decay": NOT_NEGATIVE,
    f"{_ACTOR}.optim.clip_grad": POSITIVE,
    f"{_ACTOR}.clip_ratio": FRACTION,
    f"{_ACTOR}.optim.lr_scheduler_type": one_of(("constant", "cosine")),
    f"{_ACTOR}.optim.lr_warmup_steps_ratio": _UP_TO_ONE,
    f"{_ACTOR}.optim.min_lr_ratio": _UP_TO_ONE.or_none("0"),
    f"{_ACTOR}.loss_agg_mode": one_of(
        ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")
    ),
    f"{_ACTOR}.entropy_coeff": FINITE,
    f"{_ACTOR}.use_kl_loss": BOOLEAN,
    f"{_ACTOR}.kl_loss_type": _KL,
    f"{_ACTOR}.kl_loss_coef": NOT_NEGATIVE,
    f"{_ACTOR}.checkpoint.save_contents": _parts_of(("model", "optimizer", "extra", "hf_model")),
    f"{_ROLLOUT}.top_p": _SHARE,
    f"{_ROLLOUT}.top_k": _count_or_minus_one("all tokens"),
    f"{_ROLLOUT}.do_sample": BOOLEAN,
    f"{_ROLLOUT}.gpu_memory_utilization": _SHARE,
    f"{_ROLLOUT}.max_num_seqs": COUNT,
    f"{_ROLLOUT}.max_num_batched_tokens": COUNT,
    f"{_ROLLOUT}.max_model_len": _UNSET,
    f"{_ROLLOUT}.mode": one_of(("async",)),
    f"{_ROLLOUT}.calculate_log_probs": BOOLEAN,
    f"{_ROLLOUT}.val_kwargs.n": COUNT,
    f"{_ROLLOUT}.val_kwargs.temperature": NOT_NEGATIVE,
    f"{_ROLLOUT}.val_kwargs.top_p": _SHARE,
    f"{_ROLLOUT}.val_kwargs.top_k": _count_or_minus_one("all tokens"),
    f"{_ROLLOUT}.val_kwargs.do_sample": BOOLEAN,
    "actor_rollout_ref.model.lora_rank": COUNT_OR_ZERO,
    "actor_rollout_ref.model.lora_alpha": COUNT,
    "algorithm.gamma": _UP_TO_ONE,
    "algorithm.lam": _UP_TO_ONE,
    "algorithm.use_kl_in_reward": BOOLEAN,
    "algorithm.kl_penalty": _KL,
    "algorithm.kl_ctrl.type": one_of(("fixed", "adaptive")),
    "algorithm.kl_ctrl.kl_coef": NOT_NEGATIVE,
    "ray_kwargs.ray_init.num_cpus": _UNSET,
    "ray_kwargs.ray_init.object_store_memory": _OBJECT_STORE,
    "transfer_queue.backend.SimpleStorage.num_data_storage_units": COUNT,
    "algorithm.norm_adv_by_std_in_grpo": BOOLEAN,
}
"""Option -> what it accepts: those whose wrong value verl finds late, or never."""
