"""The scenarios of ``scenarios.py``, run once on one rank and once on two, for all tests of this directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import expected
import pytest
import tiny
import torch
from launch import Failure, run_ranks

RANKS = (1, 2)


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models and the sequences that all scenarios use."""
    path = tmp_path_factory.mktemp("engine")
    for family in ("qwen2", "llama"):
        tiny.make_model(path / family, family)
    model = expected.load(path / "qwen2")
    drawn = tiny.make_sequences(rows=48, vocabulary=model.config.vocab_size)
    with torch.no_grad():
        log_probs = [
            expected.response_log_probs(model, *pair)[0] for pair in zip(drawn.prompts, drawn.responses, strict=True)
        ]
    torch.save(tiny.recenter(drawn, log_probs), path / "sequences.pt")
    return path


@pytest.fixture(scope="session")
def sequences(directory: Path) -> tiny.Sequences:
    return torch.load(directory / "sequences.pt", weights_only=False)


@pytest.fixture(scope="session")
def all_results(directory: Path) -> dict[int, dict[str, Any]]:
    # In this order: two ranks read a file that one rank wrote.
    return {ranks: run_ranks(directory, ranks) for ranks in RANKS}


@pytest.fixture(params=RANKS, ids=lambda ranks: f"{ranks}-rank")
def ranks(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def result(all_results: dict[int, dict[str, Any]], ranks: int) -> Callable[[str], Any]:
    """What a scenario returned on ``ranks`` ranks."""

    def get(scenario: str) -> Any:
        value = all_results[ranks][scenario]
        if isinstance(value, Failure):
            pytest.fail(f"scenario {scenario} on {ranks} ranks:\n{value.traceback}", pytrace=False)
        return value

    return get
