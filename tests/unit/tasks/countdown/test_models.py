"""The tiny Qwen2 base policy and the data it is fine-tuned on."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipe.flowrl.tasks import base_policy, sft, tiny_qwen2
from recipe.flowrl.tasks.base_policy import BasePolicy
from recipe.flowrl.tasks.change.base_policy import BASE_POLICY as OF_CHANGE
from recipe.flowrl.tasks.countdown.base_policy import BASE_POLICY
from recipe.flowrl.tasks.countdown.data import CountdownConfig, Puzzle, generate
from recipe.flowrl.tasks.countdown.reward import COUNTDOWN, compute_score
from recipe.flowrl.tasks.sft import SFTConfig
from recipe.flowrl.tasks.sft_dataset import TokenizedDataset
from recipe.flowrl.tasks.tiny_qwen2 import TinyQwen2Config

SMALL = SFTConfig(puzzles=CountdownConfig(max_value=5, train_size=30, test_size=10), steps=5, batch_size=16)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tiny") / "model"
    tiny_qwen2.build(directory, TinyQwen2Config())
    return directory


def test_model_is_a_plain_directory_that_verl_and_vllm_can_use(model_dir: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_dir), AutoTokenizer.from_pretrained(model_dir)
    assert 1e6 < model.num_parameters() < 5e6
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.hidden_size // model.config.num_attention_heads in (32, 64)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert len(tokenizer("\n")["input_ids"]) == 1


def test_tokenizer_round_trip(model_dir: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    for text in ("(3+5)*4-2/1", "1 2 3 9 -> 10", "a\nb", "é 数"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_head_sizes_that_vllm_refuses_are_refused() -> None:
    with pytest.raises(ValueError, match="hidden_size=96 over heads=6"):
        TinyQwen2Config(hidden_size=96)


def test_the_same_seed_gives_the_same_weights(model_dir: Path, tmp_path: Path) -> None:
    def weights(seed: int) -> torch.Tensor:
        tokenizer = tiny_qwen2.build_tokenizer()
        return tiny_qwen2.build_model(TinyQwen2Config(seed=seed), tokenizer).get_input_embeddings().weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_fine_tuning_examples_are_right_answers_to_other_puzzles(model_dir: Path, tmp_path: Path) -> None:
    tests = set(list(generate(SMALL.puzzles))[: SMALL.puzzles.test_size])
    sft._write_examples(tmp_path / "train.parquet", model_dir, SMALL, exclude=tests)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    asked = set()
    for tokens, prompt_length in pd.read_parquet(tmp_path / "train.parquet").itertuples(index=False):
        prompt, answer = tokenizer.decode(tokens[:prompt_length]), tokenizer.decode(tokens[prompt_length:])
        numbers, target = prompt.split("\n")[1].removesuffix("<|im_end|>").split(" -> ")
        asked.add((tuple(map(int, numbers.split())), int(target)))
        truth = json.dumps({"numbers": list(map(int, numbers.split())), "target": int(target), "n_solutions": 1})
        assert compute_score("countdown", answer, truth)["acc"] == 1.0
        assert answer.endswith("<|im_end|>")
    assert len(asked) > 10
    assert not asked & {(puzzle.numbers, puzzle.target) for puzzle in tests}


def test_loss_is_on_the_answer_only(tmp_path: Path) -> None:
    pd.DataFrame({"input_ids": [[5, 6, 7, 8]], "prompt_length": [3]}).to_parquet(tmp_path / "x.parquet")
    (row,) = TokenizedDataset(tmp_path / "x.parquet", None, None, None)
    assert row["loss_mask"].tolist() == [0, 0, 0, 1]
    assert row["position_ids"].tolist() == [0, 1, 2, 3]


def test_cache_key_depends_on_everything() -> None:
    keys = {
        config.key()
        for config in (
            SMALL,
            replace(SMALL, lr=1e-3),
            replace(SMALL, model=TinyQwen2Config(layers=2)),
            replace(SMALL, puzzles=replace(SMALL.puzzles, seed=3)),
        )
    }
    assert len(keys) == 4


def test_a_base_policy_of_another_configuration_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the trainer, which hands back its start: what is cached, replaced and left behind."""
    trained = []

    def no_training(work: Path, start: Path, config: SFTConfig, say: object) -> Path:
        trained.append(config.key())
        return start

    monkeypatch.setattr(sft, "_run_verl_sft", no_training)
    directory, lines = tmp_path / "policy", []
    for config in (SMALL, SMALL, replace(SMALL, lr=1e-3)):
        assert BASE_POLICY.ensure(directory, lines.append, config) == directory
        assert json.loads((directory / base_policy.REPORT).read_text())["key"] == config.key()
    assert trained == [SMALL.key(), replace(SMALL, lr=1e-3).key()]
    directories = sorted(path.name for path in tmp_path.iterdir())
    assert directories == sorted(["policy", f"policy-{SMALL.key()}", f"policy-{replace(SMALL, lr=1e-3).key()}"])
    assert "solves" in lines[-1]


@pytest.mark.parametrize("policy", [BASE_POLICY, OF_CHANGE], ids=["countdown", "change"])
def test_the_recipes_own_base_policy_is_that_of_the_default_configuration(policy: BasePolicy, tmp_path: Path) -> None:
    """It fails when the configuration, or the code behind ``VERSION``, changed and the weights weren't made anew."""
    lines: list[str] = []
    directory = policy.ensure(tmp_path / "policy", lines.append)
    report = json.loads((directory / base_policy.REPORT).read_text())
    assert report["key"] == policy.config.key()
    assert report["config"] == json.loads(json.dumps(asdict(policy.config)))
    assert [line.split(",")[0] for line in lines] == ["base policy: the recipe's own"], "nothing was trained"
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.dtype == torch.float32
    assert model.num_parameters() == report["parameters"]
    assert (policy.shipped / base_policy.WEIGHTS).stat().st_size < 3e6
    test, _ = policy.config.puzzles.split()
    measured = policy.task.solve_rate(directory, test[:100], samples=2)["solve_rate"]
    assert abs(measured - report["test"]["solve_rate"]) < 0.12, "four standard errors"


def test_solve_rate_of_a_random_model_is_nil(model_dir: Path) -> None:
    result = COUNTDOWN.solve_rate(model_dir, [Puzzle((1, 2, 3, 4), 10, 5)], samples=3)
    assert result == {"puzzles": 1, "solve_rate": 0.0, "distinct_solutions": 0.0}
