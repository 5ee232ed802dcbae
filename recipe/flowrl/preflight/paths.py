"""The paths of a run's models that are right for their family: attention, packed or padded sequences, fused log-probs.

What a family can do is tried on a small copy of the model (:mod:`recipe.flowrl.models.trial`), so it holds for families
that nobody has looked at. A path that is wrong is left for one that is right, and the run says so.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.models.files import architecture_of
from recipe.flowrl.models.rollout_adapters import fault_in_vllm
from recipe.flowrl.models.trial import EAGER, FLASH, SDPA, Trial, trial_of

_WORKERS = {"actor_rollout_ref": "actor_rollout_ref.actor", "critic": "critic"}
"""Section with a model -> where the options of its engine are."""
_VERLS_ATTENTION = "flash_attention_2"


@dataclass(frozen=True)
class Choice:
    """A path that is left: the options that leave it, and why."""

    options: Mapping[str, Any]
    why: str

    def __str__(self) -> str:
        option, value = next(iter(self.options.items()))
        return f"{option}={value}: {self.why}"


def settle_paths(config: DictConfig) -> list[str]:
    """Set what :func:`choose_paths` chooses in the run's configuration; returns what to tell the user."""
    choices, said = choose_paths(config)
    with open_dict(config):
        for choice in choices:
            for option, value in choice.options.items():
                OmegaConf.update(config, option, value, force_add=True)
    return [*map(str, choices), *said]


def choose_paths(config: DictConfig) -> tuple[list[Choice], list[str]]:
    """Try the run's models, as far as they are there. Imports torch and transformers.

    Args:
        config: of the run, resolved, its attention chosen.

    Returns:
        The paths to leave, and what else the user should know.

    Raises:
        UserError: no path is right for a model, or the run asks for sequence parallelism, which has the wrong one only.
    """
    choices: list[Choice] = []
    said: list[str] = []
    for section in _WORKERS if _has_critic(config) else list(_WORKERS)[:1]:
        architecture = _architecture(config, section)
        if architecture is None:
            continue
        trial = trial_of(architecture)
        try:
            trial.expected  # noqa: B018
        except UserError as error:
            said.append(f"{section}.model: attention and packing can't be tried beforehand ({error})")
            continue
        family = str(architecture["model_type"])
        choices += _of_model(config, section, family, trial)
        _check_adapters(config, section, architecture, trial)
    return choices, said


def _of_model(config: DictConfig, section: str, family: str, trial: Trial) -> Iterator[Choice]:
    model, worker = config[section].model, _WORKERS[section]
    key = f"{section}.model.override_config.attn_implementation"
    attention = OmegaConf.select(config, key) or _VERLS_ATTENTION
    sequence_parallel = OmegaConf.select(config, f"{worker}.ulysses_sequence_parallel_size") or 1
    if fault := trial.attention(attention):
        right = next((name for name in (SDPA, EAGER) if not trial.attention(name)), None)
        if right is None or sequence_parallel > 1:
            raise UserError(f"{key}={attention}: {fault}; {_way_out(worker, sequence_parallel)}")
        yield Choice({key: right}, f"of {family}, with {attention}, {fault}")
        attention = right
    here = EAGER if attention.startswith(FLASH) else attention  # flash attention needs CUDA
    packed = bool(model.use_remove_padding)
    if packed and (fault := trial.packed(here)):
        if sequence_parallel > 1:
            raise UserError(
                f"{worker}.ulysses_sequence_parallel_size={sequence_parallel}: it packs sequences, and those of "
                f"{family} see one another ({fault}): set it to 1"
            )
        both = {f"{section}.model.use_remove_padding": False, f"{worker}.use_remove_padding": False}
        yield Choice(_there(config, both), f"packed sequences of {family} see one another ({fault}); padded costs time")
        packed = False
    if not packed and (fault := trial.padded(here)):
        raise UserError(
            f"{section}.model.path: padded sequences of {family} don't come out right ({fault}): it can't be trained "
            "here"
        )
    if section == "actor_rollout_ref" and model.use_fused_kernels and (fault := trial.fused()):
        both = {f"{section}.model.use_fused_kernels": False, f"{worker}.use_fused_kernels": False}
        yield Choice(
            _there(config, both), f"of {family}, fused log-probs are wrong ({fault}); unfused ones cost memory"
        )


def _check_adapters(config: DictConfig, section: str, architecture: Mapping[str, Any], trial: Trial) -> None:
    model = config[section].model
    if not model.lora_rank:
        return
    in_vllm = section == "actor_rollout_ref" and config[section].rollout.name == "vllm"

    def fault_of(**lora: Any) -> str | None:
        fault = trial.adapters(r=model.lora_rank, **lora)
        if fault is None and in_vllm:
            fault = fault_in_vllm(architecture.get("architectures") or (), trial.adapted_layers(**lora))
        return fault

    names = ("target_modules", "target_parameters", "exclude_modules")
    given = OmegaConf.to_container(OmegaConf.create({name: model.get(name) for name in names}))
    fault = fault_of(lora_alpha=model.lora_alpha, **given)
    if fault is None:
        return
    key, attention = f"{section}.model.target_modules", trial.attention_layers
    works = attention and fault_of(target_modules=attention) is None
    way_out = f"set it to [{','.join(attention)}]" if works else "LoRA can't be used with it"
    raise UserError(f"{key}={model.target_modules}: LoRA on {architecture['model_type']}: {fault}: {way_out}")


def _there(config: DictConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that the configuration has: a critic's engine has no copy of the model's options."""
    return {option: value for option, value in options.items() if OmegaConf.select(config, option) is not None}


def _way_out(worker: str, sequence_parallel: int) -> str:
    if sequence_parallel > 1:
        return f"{worker}.ulysses_sequence_parallel_size={sequence_parallel} needs flash attention: set it to 1"
    return "no other attention works for this model either: it can't be trained here"


def _has_critic(config: DictConfig) -> bool:
    return config.critic.enable or (config.critic.enable is None and config.algorithm.adv_estimator == "gae")


def _architecture(config: DictConfig, section: str) -> dict[str, Any] | None:
    """The model's configuration, with what the run overrides in it."""
    model = config[section].model
    architecture = architecture_of(model.hf_config_path or model.path) if model.path else None
    overridden = OmegaConf.to_container(model.override_config)
    overridden = overridden.get("model_config", overridden)
    return architecture and architecture | {k: v for k, v in overridden.items() if k != "attn_implementation"}
