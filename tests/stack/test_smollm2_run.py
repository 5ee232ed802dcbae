"""``model=smollm2_135m``: the converted model, and a run on it through the real stack."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import Run
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipe.flowrl.tasks.arithmetic import smollm2
from recipe.flowrl.tasks.arithmetic.data import problems
from recipe.flowrl.tasks.arithmetic.reward import compute_score

CACHE = Path(os.environ.get("FLOWRL_CACHE", "~/.cache/flowrl")).expanduser()


@pytest.fixture(scope="module")
def directory() -> Path:
    return smollm2.ensure_model(CACHE / "smollm2_135m")


@pytest.fixture(scope="module")
def tokenizer(directory: Path) -> AutoTokenizer:
    return AutoTokenizer.from_pretrained(directory)


@pytest.fixture(scope="module")
def model(directory: Path) -> AutoModelForCausalLM:
    model, loading = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not any(loading.values()), loading
    return model


def test_it_is_made_once(directory: Path) -> None:
    before = (directory.stat().st_ino, (directory / "model.safetensors").stat().st_mtime_ns)
    assert smollm2.ensure_model(directory) == directory
    assert (directory.stat().st_ino, (directory / "model.safetensors").stat().st_mtime_ns) == before


def test_configuration(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    assert config["model_type"] == "llama" and config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert config["vocab_size"] == 49152
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
    assert not {"unk_token_id", "_model_name_or_path", "_name_or_path", "quantization_config"} & config.keys()
    generation = json.loads((directory / "generation_config.json").read_text())
    assert generation.keys() == {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}, "vLLM samples"
    tokenizer = json.loads((directory / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (tokenizer["eos_token"], tokenizer["pad_token"]) == ("<|im_end|>", "<|im_end|>")


def test_weights(directory: Path, model: AutoModelForCausalLM) -> None:
    with safe_open(directory / "model.safetensors", framework="pt") as weights:
        assert "lm_head.weight" not in weights.keys(), "tied"
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008


@pytest.mark.parametrize("text", ["12 + 345 = 357", "a\n\nb\n", " two  spaces", "naïve 🙂 数", "1,000.50"])
def test_text_round_trip(tokenizer: AutoTokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tokens(tokenizer: AutoTokenizer) -> None:
    assert len(tokenizer) == 49152
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("12 + 345")) == ["1", "2", "Ġ+", "Ġ", "3", "4", "5"]
    assert tokenizer.encode("<|im_start|>user<|im_end|>") == [1, *tokenizer.encode("user"), 2]


def test_chat_template(tokenizer: AutoTokenizer) -> None:
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 2 + 3?"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt.endswith("<|im_end|>\n<|im_start|>user\nWhat is 2 + 3?<|im_end|>\n<|im_start|>assistant\n")
    assert prompt.startswith("<|im_start|>system\n")


def test_it_can_add(model: AutoModelForCausalLM, tokenizer: AutoTokenizer) -> None:
    """Greedily, on word problems of the test split; a model with a wrong weight or token gets none right."""
    members = problems()["test"][:16]
    right = [
        compute_score("", smollm2.greedy_answer(model, tokenizer, text), answer)["acc"] for text, answer in members
    ]
    assert sum(right) >= 3, right


def test_a_wrong_tokenizer_is_noticed(directory: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(directory, tmp_path / "broken")
    file = broken / "tokenizer.json"
    content = json.loads(file.read_text())
    content["decoder"] = None  # tokens are no longer put together as they were taken apart
    file.write_text(json.dumps(content))
    with pytest.raises(RuntimeError, match="tokenizer"):
        smollm2.verify(broken)


@pytest.mark.slow(
    reason="a model of 135 M parameters on two cores, four minutes; its engine and its conversion are tested without"
)
def test_run(launch: Callable[..., Run]) -> None:
    """Two steps of two prompts: it answers, is scored, and both policy and log Z train."""
    run = launch(
        "model=smollm2_135m",
        "data.train_batch_size=2",
        "data.val_max_samples=4",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.rollout.n=4",
        "actor_rollout_ref.rollout.val_kwargs.n=1",
        "trainer.total_training_steps=2",
        "trainer.test_freq=2",
        "trainer.save_freq=-1",
    )
    for step in (1, 2):
        metrics = run.metrics[step]
        assert metrics["training/rollout_probs_diff_max"] < 1e-4, "vLLM samples from what the actor holds"
        assert metrics["actor/grad_norm"] > 0
        assert metrics["actor/flowrl/log_partition_grad_norm"] > 0
    assert run.metrics[1]["actor/flowrl/ref_kl"] == pytest.approx(0.0, abs=1e-5)
    answers = [json.loads(line)["output"] for line in (run.run_dir / "rollouts" / "1.jsonl").read_text().splitlines()]
    assert len(answers) == 8
    assert sum(bool(re.search(r"\d \+ \d", answer)) for answer in answers) >= 4, answers
