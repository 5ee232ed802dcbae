"""The base model's directory: complete, and such that the engine, vLLM and the weight sync can take it."""

import json
import os
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.models.files import architecture_of
from recipe.flowrl.models.kinds import refuse_untrainable
from recipe.flowrl.models.shrink import text_of

_KEY = "actor_rollout_ref.model.path"

VLLM_CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Sizes of an attention head that the CPU build of vLLM has kernels for (``CPUAttentionBackend``)."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
_SYNC_BYTES = 4  # the weight sync sends what the engine trains: float32


@dataclass(frozen=True)
class ModelSize:
    """Numbers of elements of a model: of all its parameters, and of the largest tensor."""

    parameters: int
    largest_tensor: int


def check_model(config: DictConfig, yet_to_be_made: Path | None = None) -> tuple[ModelSize | None, list[str]]:
    """Check ``actor_rollout_ref.model.path``.

    Args:
        config: of the run.
        yet_to_be_made: a directory in which the model may still be missing.

    Returns:
        The model's size, None where it can't be told from safetensors files; and warnings.

    Raises:
        UserError: it isn't a model's directory, or it is one that this run can't train.
    """
    name = config.actor_rollout_ref.model.path
    if not name:
        raise UserError(f"{_KEY} isn't set: give a model's directory or hub id, or choose an experiment")
    path = Path(name).expanduser()
    if not path.exists() and _is_hub_id(name):
        _check_hub(name)
        refuse_untrainable(architecture_of(name) or {}, f"{_KEY}: {name}")
        return None, []
    if "://" in name or (yet_to_be_made and path.is_relative_to(yet_to_be_made)):  # of the first, verl makes a copy
        return None, []
    if not path.is_dir():
        what = "is a file" if path.is_file() else "doesn't exist"
        raise UserError(f"{_KEY}: {name} {what}: give a model's directory or hub id, or choose an experiment")

    architecture = _read_config(path)
    refuse_untrainable(architecture, f"{_KEY}: {path}")
    architecture = dict(text_of(architecture))
    tokenizer = Path(config.actor_rollout_ref.model.tokenizer_path or path).expanduser()
    _check_tokenizer(config, tokenizer)
    size = _check_weights(path)
    _check_attention(config, path, architecture)
    _check_context(config, architecture)
    if size is not None and config.trainer.device == "cpu":
        _check_bucket(config, size)
    return size, [*_length_warnings(config, architecture), *_vocabulary_warnings(path, tokenizer, architecture)]


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not name.startswith((".", "~"))


def _check_hub(name: str) -> None:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() not in ("1", "ON", "YES", "TRUE"):
        return
    from huggingface_hub import try_to_load_from_cache

    if not isinstance(try_to_load_from_cache(name, "config.json"), str):
        raise UserError(
            f"{_KEY}: {name} is neither a directory here nor a model in the hub's cache, and HF_HUB_OFFLINE is set: "
            "give a model's directory"
        )


def _read_config(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    if not file.is_file():
        raise UserError(f"{_KEY}: {path} is no model: it has no config.json. Give a Hugging Face model directory")
    try:
        architecture = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise UserError(f"{_KEY}: {file} isn't valid JSON ({error}): download or export the model again") from error
    if not isinstance(architecture, dict) or not (architecture.get("model_type") or architecture.get("architectures")):
        raise UserError(f"{_KEY}: {file} names neither model_type nor architectures: it isn't a model's configuration")
    return architecture


def _check_tokenizer(config: DictConfig, path: Path) -> None:
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise UserError(
            f"{_KEY}: {path} has no tokenizer (tokenizer.json): save it there, or set "
            "actor_rollout_ref.model.tokenizer_path"
        )
    settings = path / "tokenizer_config.json"
    has_template = settings.is_file() and '"chat_template"' in settings.read_text()
    if not (has_template or config.actor_rollout_ref.model.custom_chat_template or any(path.glob("chat_template*"))):
        raise UserError(
            f"{_KEY}: the tokenizer in {path} has no chat template, which verl renders prompts with: "
            "set actor_rollout_ref.model.custom_chat_template"
        )


def _check_weights(path: Path) -> ModelSize | None:
    names = sorted(file.name for file in path.glob("*.safetensors"))
    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if missing := [name for name in names if not (path / name).is_file()]:
            raise UserError(f"{_KEY}: {path} lacks {missing[0]}, of the weights in {index.name}: download it again")
    if names:
        return _safetensors_size([path / name for name in names])
    if not any(path.glob("pytorch_model*.bin")):
        raise UserError(f"{_KEY}: {path} has no weights (model.safetensors): download or export the model again")
    return None


def _safetensors_size(files: list[Path]) -> ModelSize:
    from safetensors import SafetensorError, safe_open

    sizes = []
    for file in files:
        try:
            with safe_open(file, framework="np") as weights:
                sizes += [prod(weights.get_slice(name).get_shape()) for name in weights.keys()]
        except (SafetensorError, OSError) as error:
            raise UserError(f"{_KEY}: {file} is damaged or cut short ({error}): download or export it again") from error
    if not sizes:
        raise UserError(f"{_KEY}: {files[0]} holds no weights: download or export the model again")
    return ModelSize(parameters=sum(sizes), largest_tensor=max(sizes))


def _check_attention(config: DictConfig, path: Path, architecture: dict[str, Any]) -> None:
    heads, width = architecture.get("num_attention_heads"), architecture.get("hidden_size")
    rollout = config.actor_rollout_ref.rollout
    tensor_parallel = rollout.tensor_model_parallel_size
    if heads and heads % tensor_parallel:
        fitting = max(size for size in range(1, tensor_parallel) if heads % size == 0)
        raise UserError(
            f"actor_rollout_ref.rollout.tensor_model_parallel_size={tensor_parallel} doesn't divide the {heads} "
            f"attention heads of the model: set it to {fitting}"
        )
    size = architecture.get("head_dim") or (width // heads if heads and width else None)
    if config.trainer.device == "cpu" and rollout.name == "vllm" and size and size not in VLLM_CPU_HEAD_SIZES:
        raise UserError(
            f"{_KEY}: {path} has attention heads of size {size}; vLLM on a CPU takes "
            f"{', '.join(map(str, VLLM_CPU_HEAD_SIZES))}: choose another model"
        )


def _check_context(config: DictConfig, architecture: dict[str, Any]) -> None:
    """verl would raise ``max_num_batched_tokens`` to the context length, in a configuration that it has frozen."""
    rollout, positions = config.actor_rollout_ref.rollout, architecture.get("max_position_embeddings")
    if rollout.max_model_len and positions and rollout.max_model_len > positions:
        raise UserError(
            f"actor_rollout_ref.rollout.max_model_len={rollout.max_model_len}: the model takes {positions} tokens "
            "(max_position_embeddings): set it to that, with data.max_prompt_length and data.max_response_length that "
            "fit into it"
        )
    context = rollout.max_model_len or architecture.get("max_position_embeddings") or 0
    # The engine is "missing" where no cluster was chosen.
    is_vllm = OmegaConf.select(rollout, "name") == "vllm"
    if is_vllm and not rollout.enable_chunked_prefill and context > rollout.max_num_batched_tokens:
        raise UserError(
            f"actor_rollout_ref.rollout.max_num_batched_tokens={rollout.max_num_batched_tokens} is less than the "
            f"model's context of {context} tokens, and enable_chunked_prefill=false: set "
            f"actor_rollout_ref.rollout.max_model_len={_longest(config)}, which the data needs"
        )


def _check_bucket(config: DictConfig, size: ModelSize) -> None:
    key = "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"
    bucket = config.actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes
    needed = -(-size.largest_tensor * _SYNC_BYTES // 2**20)
    if needed > bucket:
        raise UserError(f"{key}={bucket}: the model's largest tensor has {needed} MiB: set it to {needed} or more")


def _length_warnings(config: DictConfig, architecture: dict[str, Any]) -> list[str]:
    longest, positions = _longest(config), architecture.get("max_position_embeddings")
    if positions is None or longest <= positions:
        return []
    return [
        f"data.max_prompt_length + data.max_response_length = {longest} tokens, but the model takes {positions}: "
        "longer responses will be cut"
    ]


def _longest(config: DictConfig) -> int:
    return config.data.max_prompt_length + config.data.max_response_length


def _vocabulary_warnings(path: Path, tokenizer: Path, architecture: dict[str, Any]) -> list[str]:
    embeddings, file = architecture.get("vocab_size"), tokenizer / "tokenizer.json"
    if embeddings is None or not file.is_file():
        return []
    from tokenizers import Tokenizer

    tokens = Tokenizer.from_file(str(file)).get_vocab_size()
    if tokens > embeddings:
        raise UserError(
            f"{_KEY}: the tokenizer in {tokenizer} has {tokens} tokens, the model in {path} has embeddings for "
            f"{embeddings}: they don't belong together"
        )
    if tokens < embeddings:
        return [
            f"the model has embeddings for {embeddings} tokens, its tokenizer {tokens}: the rollout never samples the "
            "others but the trainer counts them, so their probabilities differ"
        ]
    return []
