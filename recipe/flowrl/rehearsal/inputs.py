"""What a rehearsal takes instead of the run's model and, where that isn't there, of its data."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.models.files import architecture_of, directory_of
from recipe.flowrl.models.shrink import positions_of, shrunk
from recipe.flowrl.plan.architecture import load_architecture
from recipe.flowrl.preflight.data_files import check_data
from recipe.flowrl.rehearsal.policy import Policy
from recipe.flowrl.rehearsal.sample import Sample

SMALL_BYTES = 20e6
"""Weights of a model that needn't be shrunk."""
RESPONSE_TOKENS = 64
"""Of the rehearsal's longest response."""

_DOMAINS = {"pkg://recipe.flowrl.tasks.math.reward": "math", "pkg://recipe.flowrl.tasks.code.reward": "code"}
_MADE = {"smollm2_135m": "llama"}
"""``model_type`` of models that the run would make first, if it isn't qwen2."""


@dataclass(frozen=True)
class Inputs:
    """``policy``: None where the run's own is small enough; ``sample``: None where the run's data is there.

    ``own_positions``: the context of the run's own small model, 0 where it isn't used or tells none.
    """

    policy: Policy | None
    sample: Sample | None
    own_positions: int = 0
    notes: tuple[str, ...] = ()
    """What a person should know about them, a line each."""

    @property
    def makers(self) -> dict[str, Callable[[Path, Callable[[str], None]], None]]:
        """Name of the directory in the cache -> makes it, as in :data:`recipe.flowrl.prepare.own_tasks.MAKERS`."""
        return {made.name: made.ensure for made in (self.policy, self.sample) if made is not None}


def inputs_of(real: DictConfig) -> Inputs:
    """Look at what is on this machine.

    Args:
        real: the run's configuration, resolved.

    Raises:
        UserError: the model isn't known, or data that the command line names isn't there.
    """
    sample, about_data = _sample(real)  # first: a missing file shows at once, a model after seconds of imports
    policy, about_policy = _policy(real)
    own = architecture_of(real.actor_rollout_ref.model.path) if policy is None else None
    return Inputs(policy, sample, positions_of(own or {}), (*about_policy, *about_data))


def _policy(real: DictConfig) -> tuple[Policy | None, list[str]]:
    name = real.actor_rollout_ref.model.path
    if not name:
        raise UserError("actor_rollout_ref.model.path isn't set: give a model's directory, or choose an experiment")
    directory = directory_of(name)
    if directory is not None and 0 < sum(file.stat().st_size for file in directory.glob("*.safetensors")) < SMALL_BYTES:
        return None, [f"model: {name} as it is; it is small"]
    architecture = _architecture(real, name, directory)
    tokenizer = _tokenizer(real, directory)
    domain = _DOMAINS.get(real.reward.custom_reward_function.path, "math")
    notes = [f"model: of the architecture of {name}, with random weights that write answers of the right form"]
    if tokenizer is None:
        notes.append(f"tokenizer and chat template: of bytes and ChatML; the tokenizer of {name} isn't on this machine")
    else:
        notes.append(f"tokenizer and chat template: the run's own, of {tokenizer}")
    small = shrunk(architecture, least_positions=longest_of(real))
    return Policy(f"rehearsal_{domain}_{Path(name).name}", small, domain, tokenizer), notes


def longest_of(real: DictConfig) -> int:
    """Tokens of the rehearsal's longest prompt and response."""
    return real.data.max_prompt_length + min(real.data.max_response_length, RESPONSE_TOKENS)


def _architecture(real: DictConfig, name: str, directory: Path | None) -> dict[str, Any]:
    if directory is None and real.prepare.model is not None:
        return {"model_type": _MADE.get(real.prepare.model, "qwen2")}
    return load_architecture(str(directory or name))


def _tokenizer(real: DictConfig, directory: Path | None) -> Path | None:
    given = real.actor_rollout_ref.model.tokenizer_path
    directory = directory_of(given) if given else directory
    has_one = directory is not None and (directory / "tokenizer.json").is_file()
    return directory if has_one else None


def _sample(real: DictConfig) -> tuple[Sample | None, list[str]]:
    files = [*_names(real.data.train_files), *_names(real.data.val_files)]
    missing = [name for name in files if not Path(name).expanduser().is_file()]
    domain = _DOMAINS.get(real.reward.custom_reward_function.path)
    if missing and _data_is_given():
        check_data(real)
    # The run makes these itself.
    if not missing or real.prepare.data is not None or domain is None:
        return None, [f"data: {real.data.train_files}"]
    return Sample(domain), [f"data: a few problems of our own; {missing[0]} isn't there"]


def _data_is_given() -> bool:
    overrides = HydraConfig.get().overrides.task if HydraConfig.initialized() else ()
    keys = {override.lstrip("+").partition("=")[0] for override in overrides}
    return bool(keys & {"data_dir", "data.train_files", "data.val_files"})


def _names(given: str | Iterable[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or [])
