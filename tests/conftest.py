"""The environment of a CPU run, from before the first test imports torch or verl; which tests run side by side."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from xdist.scheduler import LoadScopeScheduling

from recipe.flowrl.common.environment import export_environment

# What OmegaConf takes its parser from. The tests compose a configuration hundreds of times, and this one is in C.
yaml.SafeLoader = yaml.CSafeLoader

PROJECT = Path(__file__).resolve().parents[1]
CPU = OmegaConf.load(PROJECT / "configs" / "cluster" / "cpu.yaml")
export_environment(CPU)
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(scope="session")
def prepared() -> None:
    """The data and the base policy of ``experiment=countdown_cpu``, made once a machine: minutes."""
    command = [sys.executable, "-m", "recipe.flowrl", "prepare", "countdown", "tiny_qwen2"]
    subprocess.run(command, cwd=PROJECT, check=True, timeout=1500)


@pytest.fixture(autouse=True)
def _environment_is_the_tests_own() -> Iterator[None]:
    """Commands that a test calls in its own process set the environment of the run, as they should."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


class OneStackAtATime(LoadScopeScheduling):
    """The tests of the stack in one process, those of the engine in one, any others file by file.

    A stack takes gigabytes, and its starts are shared by many tests; so are the ranks of the engine.
    """

    def _split_scope(self, nodeid: str) -> str:
        kind = Path(nodeid).parts[1]
        return kind if kind in ("stack", "engine") else nodeid.split("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling | None:
    return OneStackAtATime(config, log) if config.getvalue("dist") == "loadscope" else None
