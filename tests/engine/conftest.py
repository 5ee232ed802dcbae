"""The scenarios of ``scenarios.py``, run once on one rank and once on two, for all tests of this directory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import expected
import pytest
import tiny
import torch
from launch import Failure, run_ranks


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models and the sequences that the scenarios use."""
    path = tmp_path_factory.mktemp("engine")
    for family in tiny.FAMILIES:
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
def results_1(directory: Path) -> dict[str, Any]:
    return run_ranks(directory, 1)


@pytest.fixture(scope="session")
def results_2(directory: Path, results_1: dict[str, Any]) -> dict[str, Any]:
    """After those of one rank, which wrote a file that two ranks read."""
    return run_ranks(directory, 2)


@pytest.fixture(scope="session")
def resharded(directory: Path, results_2: dict[str, Any]) -> Callable[[int], Any]:
    """What ``resharded`` returned on so many ranks, after what it loads has been written."""

    @functools.cache
    def get(ranks: int) -> Any:
        return run_ranks(directory, ranks, "resharded")["resharded"]

    return get


@pytest.fixture(params=[1, 2], ids=["1-rank", "2-rank"])
def ranks(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def result(ranks: int, request: pytest.FixtureRequest) -> Callable[[str], Any]:
    """What a scenario returned on ``ranks`` ranks."""
    results = request.getfixturevalue(f"results_{ranks}")

    def get(scenario: str) -> Any:
        if isinstance(results[scenario], Failure):
            pytest.fail(f"scenario {scenario} on {ranks} ranks:\n{results[scenario].traceback}", pytrace=False)
        return results[scenario]

    return get
