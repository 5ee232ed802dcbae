"""The head stays out of the policy's state dict, weight sync and checkpoint, and no hidden state is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import expected
import pytest
import torch

Result = Callable[[str], Any]


@pytest.fixture(scope="module")
def hugging_face_keys(directory: Path) -> list[str]:
    return sorted(expected.load(directory / "qwen2").state_dict())


def test_state_dict_is_the_policys_alone(result: Result, hugging_face_keys: list[str]) -> None:
    assert result("isolation")["state dict"] == hugging_face_keys


def test_what_is_synced_to_the_rollout_is_the_policy(result: Result, hugging_face_keys: list[str]) -> None:
    isolation = result("isolation")
    assert sorted(isolation["synced"]) == hugging_face_keys
    for name, parameter in isolation["parameters"]["policy"].items():
        assert torch.equal(isolation["synced"][name], parameter), name


def test_checkpointed_weights_are_the_policys(
    result: Result, ranks: int, directory: Path, hugging_face_keys: list[str]
) -> None:
    result("checkpoint")
    for file in (directory / f"checkpoint_{ranks}").rglob("model_world_size_*.pt"):
        assert sorted(torch.load(file, weights_only=False)) == hugging_face_keys


@pytest.mark.parametrize(("kind", "captured"), [("update", True), ("forward", False)])
def test_hidden_states_live_for_one_micro_batch_of_an_update(result: Result, kind: str, captured: bool) -> None:
    seen = result("isolation")[kind]
    assert set(seen["captured"]) == {captured}
    assert seen["alive"] == 0
    assert not seen["output_hidden_states"]
    assert result("isolation")["kept"] is None


def test_a_forward_pass_computes_no_log_z(result: Result) -> None:
    assert "log_probs" in result("isolation")["forward keys"]
    assert "log_z" not in result("isolation")["forward keys"]
