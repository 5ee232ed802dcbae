"""No option of verl's is accepted and ignored: what each does under FlowRL and under verl's losses."""

import fnmatch
import functools
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.common.project import CONFIG_DIR
from recipe.flowrl.preflight import loss_options
from recipe.flowrl.preflight.compose import compose_run
from recipe.flowrl.preflight.loss_options import (
    BESIDE_THE_LOSS,
    LOSS_OPTIONS,
    check_loss_options,
    read_by_verls_losses,
)
from verl_ext.source import verl_directory

ALGORITHMS = sorted(path.stem for path in (CONFIG_DIR / "algo").glob("*.yaml"))
ACTOR = "actor_rollout_ref.actor"

ENGINE, WORKERS = "workers/engine/fsdp/transformer_impl.py", "workers/engine_workers.py"
TRAINER = "trainer/ppo/v1/trainer_base.py"
CORE, CORRECTION = "trainer/ppo/core_algos.py", "trainer/ppo/rollout_corr_helper.py"
CONFIGS, PROFILER, FSDP = "workers/config", "utils/profiler", "utils/fsdp_utils.py"

USED: dict[str, str | tuple[str, ...]] = {
    f"{ACTOR}.optim.*": (ENGINE, "workers/config/optimizer.py"),
    f"{ACTOR}.strategy": WORKERS,
    f"{ACTOR}.use_dynamic_bsz": WORKERS,
    f"{ACTOR}.ppo_mini_batch_size": TRAINER,
    f"{ACTOR}.ppo_micro_batch_size": CONFIGS,  # an old name, which verl refuses
    f"{ACTOR}.ppo_micro_batch_size_per_gpu": WORKERS,
    f"{ACTOR}.ppo_max_token_len_per_gpu": WORKERS,
    f"{ACTOR}.ppo_epochs": TRAINER,
    f"{ACTOR}.shuffle": TRAINER,
    f"{ACTOR}.data_loader_seed": TRAINER,
    f"{ACTOR}.calculate_entropy": TRAINER,
    f"{ACTOR}.checkpoint.*": ("utils/checkpoint/checkpoint_manager.py", TRAINER),
    f"{ACTOR}.qat.*": ("workers/rollout", "utils/qat"),  # rollout.qat follows it
    f"{ACTOR}.router_replay.*": WORKERS,
    "algorithm.adv_estimator": TRAINER,
    "algorithm.norm_adv_by_std_in_grpo": TRAINER,
    "algorithm.filter_groups.*": TRAINER,
    "algorithm.use_kl_in_reward": TRAINER,
    "algorithm.kl_penalty": TRAINER,
    "algorithm.kl_ctrl.*": CORE,
    "algorithm.rollout_correction.*": (TRAINER, CORE, CORRECTION),  # for FlowRL: test_rollout_correction.py
    "algorithm.pass_k": "OURS",
    "algorithm.kl_matched_beta": "OURS",  # refused for FlowRL
    "algorithm.dmpo_*": "OURS",  # refused for FlowRL
    "algorithm.reference_reset_steps": "OURS",  # refused for FlowRL
    "algorithm.replay.*": "OURS",  # refused for verl's
    "actor_rollout_ref.ref.strategy": WORKERS,
    "actor_rollout_ref.ref.log_prob_*": ("utils/config.py", WORKERS),
}
"""Key -> where verl's V1 trainer and FSDP engine read it, whatever the loss."""

for role in (ACTOR, "actor_rollout_ref.ref"):
    USED |= {
        f"{role}.fsdp_config.turbo_config.*": "WARNED",
        f"{role}.fsdp_config.qat.*": (ENGINE, "utils/qat"),
        f"{role}.fsdp_config.*": (ENGINE, FSDP),
        f"{role}.profiler.*": (PROFILER, WORKERS, "workers/config", "utils/memory_utils.py"),
        f"{role}.ulysses_sequence_parallel_size": CONFIGS,  # verl hands it to fsdp_config, if it is above 1
        **{  # fsdp_config follows these
            f"{role}.{name}": ENGINE
            for name in (
                "entropy_from_logits_with_chunking",
                "entropy_from_logits_chunk_size",
                "entropy_checkpointing",
                "pad_to_length",
            )
        },
    }

OTHER_VALUE = {
    str: "another",
    bool: True,
    int: 7,
    float: 0.123,
    type(None): 3,
}


@pytest.fixture(scope="module")
def composed() -> Callable[..., DictConfig]:
    made: dict[str, str] = {}

    def compose(algo: str, **changes: Any) -> DictConfig:
        if algo not in made:
            made[algo] = OmegaConf.to_yaml(compose_run(["experiment=countdown_cpu", f"algo={algo}"]))
        config = OmegaConf.create(made[algo])
        for key, value in changes.items():
            OmegaConf.update(config, key.replace("__", "."), value)
        return config

    return compose


def leaves(section: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, DictConfig) and len(value):
            yield from leaves(value, f"{path}.{name}")
        elif name != "_target_":
            yield f"{path}.{name}", value


def every_key(config: DictConfig) -> list[str]:
    """Of the actor, the reference, the algorithm and the rollout correction."""
    sections = (ACTOR, "actor_rollout_ref.ref", "algorithm")
    return [key for section in sections for key, _ in leaves(OmegaConf.select(config, section), section)]


def mentioned(key: str) -> bool:
    """Whether a warning names the key where it is set in vain."""
    of_the_loss = key.removeprefix(f"{ACTOR}.") in {**LOSS_OPTIONS, **BESIDE_THE_LOSS}
    tables = loss_options._ADVANTAGE_OPTIONS.keys() | loss_options._UNUSED.keys() | loss_options._READ_INSTEAD.keys()
    return of_the_loss or key in tables


def read_in(key: str) -> str | tuple[str, ...]:
    """The first pattern of :data:`USED` that fits."""
    return next((places for pattern, places in USED.items() if fnmatch.fnmatch(key, pattern)), ())


@functools.cache
def source_of(places: tuple[str, ...]) -> str:
    paths = [verl_directory() / place for place in places]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*.py")))]
    assert files
    return "\n".join(file.read_text() for file in files)


@pytest.mark.parametrize("flowrl", [True, False], ids=["flowrl", "verl's losses"])
def test_every_key_of_verls_is_used_or_warned_of_or_refused(composed: Callable[..., DictConfig], flowrl: bool) -> None:
    """A key that no table has, or that isn't read where it is said to be, fails here."""
    unknown, unread = [], []
    for key in every_key(composed("flowrl" if flowrl else "grpo")):
        if mentioned(key):
            continue
        places = read_in(key)
        if not places:
            unknown.append(key)
        elif places not in ("OURS", "WARNED"):
            text = source_of((places,) if isinstance(places, str) else places)
            if not re.search(rf"\b{key.rpartition('.')[2]}\b", text):
                unread.append(key)
    assert (unknown, unread) == ([], [])


def test_the_tables_have_no_key_that_verl_has_not(composed: Callable[..., DictConfig]) -> None:
    keys = every_key(composed("flowrl"))
    for pattern in USED:
        optional = "router_replay" in pattern or "rollout_correction" in pattern
        assert optional or any(fnmatch.fnmatch(key, pattern) for key in keys), pattern
    own = [*loss_options._UNUSED, *loss_options._READ_INSTEAD, *loss_options._ADVANTAGE_OPTIONS]
    assert not [key for key in own if not key.startswith("actor_rollout_ref.rollout.") and key not in keys]


@pytest.mark.parametrize(("key", "entry"), loss_options._READ_INSTEAD.items())
@pytest.mark.parametrize("algo", ["flowrl", "grpo"])
def test_an_option_beside_the_one_that_is_read_is_named(
    composed: Callable[..., DictConfig], algo: str, key: str, entry: tuple[str, Any]
) -> None:
    read, _ = entry
    value = OmegaConf.select(composed(algo), read)
    assert isinstance(value, bool | int | float)
    other = (not value) if isinstance(value, bool) else value + 1
    if "torch_compile" in key:  # on a CPU both are off, and verl's default says nothing
        (warning,) = check_loss_options(composed(algo, **{key: False, read: True}))
    else:
        (warning,) = check_loss_options(composed(algo, **{key: other}))
    assert warning.startswith(f"{key}=") and f"has no effect: verl reads {read}, which is" in warning
    same = check_loss_options(composed(algo, **{key: other, read: other}))
    assert not [warning for warning in same if warning.startswith(f"{key}=")]


@pytest.mark.parametrize("role", ["actor", "ref"])
def test_options_of_another_engine_are_named(composed: Callable[..., DictConfig], role: str) -> None:
    key = f"actor_rollout_ref.{role}.fsdp_config.turbo_config.distributed"
    (warning,) = check_loss_options(composed("grpo", **{f"{key}.fsdp_plan.reduce_dtype": "bf16"}))
    assert warning.startswith(f"{key} has no effect: it belongs to verl's fsdp_turbo")


@pytest.mark.parametrize("name", [*LOSS_OPTIONS, *BESIDE_THE_LOSS])
def test_a_loss_option_of_verls_is_named_under_flowrl(composed: Callable[..., DictConfig], name: str) -> None:
    default = {**LOSS_OPTIONS, **BESIDE_THE_LOSS}[name]
    other = not default if isinstance(default, bool) else OTHER_VALUE[type(default)]
    config = composed("flowrl", **{f"{ACTOR}.{name}": other})
    (warning,) = check_loss_options(config)
    assert warning.startswith(f"{ACTOR}.{name}={other} has no effect on FlowRL's objective")


def test_the_defaults_here_are_verls() -> None:
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer")
    for name, default in {**LOSS_OPTIONS, **BESIDE_THE_LOSS}.items():
        assert OmegaConf.select(config.actor_rollout_ref.actor, name) == default, name
    tables = {key: default for key, (default, _) in loss_options._ADVANTAGE_OPTIONS.items()}
    tables |= {key: default for key, (default, _) in loss_options._UNUSED.items()}
    for key, default in tables.items():
        assert OmegaConf.select(config, key) == default, key


@pytest.mark.parametrize("algo", ALGORITHMS)
def test_our_own_algorithms_set_nothing_in_vain(composed: Callable[..., DictConfig], algo: str) -> None:
    assert check_loss_options(composed(algo)) == []


@pytest.mark.parametrize(
    ("algo", "key", "value", "words"),
    [
        ("grpo", f"{ACTOR}.clip_ratio", 0.3, "set those two"),
        ("grpo", f"{ACTOR}.tau_pos", 2.0, "the loss vanilla"),
        ("gspo", f"{ACTOR}.clip_ratio_c", 5.0, "the loss gspo"),
        ("gmpo", f"{ACTOR}.loss_agg_mode", "seq-mean-token-sum", "the loss geo_mean"),
        ("kl_cov", f"{ACTOR}.clip_ratio_high", 0.28, "the loss kl_cov"),
        ("dapo", f"{ACTOR}.kl_loss_coef", 0.1, "use_kl_loss=true"),
        ("grpo", f"{ACTOR}.loss_scale_factor", 512, "seq-mean-token-sum-norm"),
        ("grpo", "algorithm.gamma", 0.9, "adv_estimator=grpo"),
        ("grpo", "algorithm.kl_ctrl.kl_coef", 0.1, "use_kl_in_reward"),
        ("grpo", f"{ACTOR}.use_prefix_grouper", True, "V1 trainer"),
        ("ppo", "algorithm.use_pf_ppo", True, "V1 trainer"),
        ("grpo", f"{ACTOR}.fsdp_config.dtype", "float16", "mixed_precision"),
        ("flowrl", "actor_rollout_ref.ref.fsdp_config.optimizer_offload", True, "no optimizer"),
        ("flowrl", f"{ACTOR}.grad_clip", 0.5, "optim.clip_grad, which is 1.0"),
        ("flowrl", "algorithm.lam", 0.9, "adv_estimator=grpo"),
    ],
)
def test_an_option_that_the_loss_does_not_read(
    composed: Callable[..., DictConfig], algo: str, key: str, value: Any, words: str
) -> None:
    (warning,) = check_loss_options(composed(algo, **{key: value}))
    assert warning.startswith(f"{key}={value} has no effect") and words in warning


@pytest.mark.parametrize(
    ("algo", "key", "value"),
    [
        ("grpo", f"{ACTOR}.clip_ratio_high", 0.28),
        ("grpo", f"{ACTOR}.clip_ratio_c", 10.0),
        ("grpo", f"{ACTOR}.entropy_coeff", 0.01),
        ("ppo", "algorithm.lam", 0.95),
        ("rloo", "algorithm.kl_ctrl.kl_coef", 0.1),
        ("kl_cov", f"{ACTOR}.policy_loss.kl_cov_ratio", 0.01),
    ],
)
def test_an_option_that_the_loss_reads(composed: Callable[..., DictConfig], algo: str, key: str, value: Any) -> None:
    assert check_loss_options(composed(algo, **{key: value})) == []


def test_what_verls_losses_read_is_found_in_their_source() -> None:
    reads = read_by_verls_losses()
    assert {"clip_ratio_c", "loss_agg_mode"} <= reads["vanilla"]
    assert reads["sapo"] == {"tau_pos", "tau_neg"}
    assert "clip_ratio" not in reads["kl_cov"]
