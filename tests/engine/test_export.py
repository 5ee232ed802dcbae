"""Export: a plain Hugging Face model that computes what the actor computes, and bad input refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import expected
import pytest
import torch
from peft import PeftModel
from tiny import Sequences
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from recipe.flowrl.__main__ import main

Result = Callable[[str], Any]


def export(checkpoint: Path, output: Path, *options: str) -> Path:
    assert main(["export", str(checkpoint), str(output), *options]) == 0
    return output


def load(directory: Path) -> PreTrainedModel:
    """Load a model that has exactly the weights that it needs."""
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


@torch.no_grad()
def assert_computes(model: torch.nn.Module, sequences: Sequences, ranks: int, log_probs: list[torch.Tensor]) -> None:
    """``log_probs`` are those that the actor on rank 0 gave to its share of the sequences, one for each next token."""
    for row in range(len(sequences) // ranks):
        prompt, response = sequences.prompts[row], sequences.responses[row]
        exported, _ = expected.response_log_probs(model, prompt, response)
        torch.testing.assert_close(exported, log_probs[row][len(prompt) - 1 : -1], rtol=1e-5, atol=1e-5)


@pytest.fixture
def checkpoint(result: Result, ranks: int, directory: Path) -> Path:
    result("checkpoint")
    return directory / f"checkpoint_{ranks}" / "global_step_1"


def test_exported_model_is_the_actor(
    checkpoint: Path, result: Result, ranks: int, sequences: Sequences, tmp_path: Path
) -> None:
    output = export(checkpoint, tmp_path / "model")
    model, outcome = load(output), result("checkpoint")
    weights = outcome["saved"]["parameters"]["policy"]
    assert {name: parameter.dtype for name, parameter in model.named_parameters()} == dict.fromkeys(
        weights, torch.float32
    )
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name]), name
    assert_computes(model, sequences, ranks, outcome["log_probs"])
    assert AutoTokenizer.from_pretrained(output)("a b").input_ids
    assert list(tmp_path.iterdir()) == [output], "nothing else is left behind"


def test_actor_directory_and_dtype(checkpoint: Path, tmp_path: Path, result: Result) -> None:
    (tmp_path / "empty").mkdir()
    model = load(export(checkpoint / "actor", tmp_path / "empty", "dtype=bfloat16"))
    weights = result("checkpoint")["saved"]["parameters"]["policy"]
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights[name].bfloat16()), name


def test_lora_checkpoint_becomes_base_model_and_adapter(
    result: Result, ranks: int, directory: Path, sequences: Sequences, tmp_path: Path
) -> None:
    outcome = result("lora")
    output = export(directory / f"lora_{ranks}" / "global_step_2", tmp_path / "model")
    base = load(output)
    original = dict(expected.load(directory / "qwen2").named_parameters())
    assert all(torch.equal(parameter, original[name].float()) for name, parameter in base.named_parameters())
    adapted = PeftModel.from_pretrained(base, output / "lora_adapter")
    assert_computes(adapted, sequences, ranks, outcome["log_probs"])


def without(name: str) -> Callable[[Path], None]:
    return lambda actor: (actor / name).unlink()


def adapters_only(actor: Path) -> None:
    for file in actor.glob("model_world_size_*.pt"):
        state = torch.load(file, weights_only=False)
        torch.save({f"lora_{name}": tensor for name, tensor in state.items()}, file)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without("fsdp_config.json"), "is not a checkpoint"),
        (without("model_world_size_2_rank_1.pt"), "model_world_size_2_rank_1.pt missing"),
        (without("huggingface/config.json"), "huggingface/config.json missing"),
        (lambda actor: (actor / "fsdp_config.json").write_text(json.dumps({})), "is damaged"),
        (adapters_only, "LoRA adapters only"),
    ],
    ids=["no checkpoint", "no shard", "no config", "no world size", "adapters only"],
)
def test_bad_checkpoints_leave_one_line_and_nothing_else(
    damage: Callable[[Path], None],
    words: str,
    results_2: dict,
    directory: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    copy = tmp_path / "global_step_1"
    shutil.copytree(directory / "checkpoint_2" / "global_step_1", copy)
    damage(copy / "actor")
    capsys.readouterr()
    assert main(["export", str(copy), str(tmp_path / "model")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert words in lines[0]
    assert list(tmp_path.iterdir()) == [copy]


def test_an_output_with_something_in_it_is_refused(
    results_1: dict, directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    assert main(["export", str(directory / "checkpoint_1" / "global_step_1"), str(tmp_path / "model")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'model'} exists already")
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
