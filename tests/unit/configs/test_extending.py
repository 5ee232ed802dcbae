"""The examples of docs/extending.md: its files are written, its data made, its commands composed and checked."""

import re
import runpy
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import DictConfig

from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.preflight.compose import compose_run
from recipe.flowrl.preflight.data_files import check_data, not_looked_at, rows_by_source
from recipe.flowrl.preflight.options import check_options
from recipe.flowrl.preflight.registries import check_registered_names
from recipe.flowrl.preflight.reward import check_reward
from recipe.flowrl.run.submit import directives

PAGE = (PROJECT / "docs" / "extending.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", PAGE, flags=re.DOTALL)
TRAIN = "python -m recipe.flowrl.main_flowrl "
COMMANDS = [line.removeprefix(TRAIN) for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()]


@pytest.fixture
def compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], DictConfig]:
    """The page's files in the working directory; composes the command that has the given override."""
    monkeypatch.chdir(tmp_path)
    for kind, text in BLOCKS:
        if kind != "bash":
            path = Path(text.partition("\n")[0].removeprefix("# "))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.partition("\n")[2])

    def composed(override: str) -> DictConfig:
        (command,) = [command for command in COMMANDS if override in command.split()]
        return compose_run([word.replace("file://", f"file://{tmp_path}/") for word in shlex.split(command)])

    return composed


def test_a_task_and_its_reward(compose: Callable[[str], DictConfig]) -> None:
    runpy.run_path("mine/parity.py", run_name="__main__")
    config = compose("experiment=parity")
    assert not check_options(config) and config.prepare.data is None
    check_data(config)
    rows = rows_by_source(config)
    check_reward(config, rows, not_looked_at(config))
    assert rows["parity"][1]()["reward_model"]["ground_truth"] == "even"
    score = runpy.run_path("mine/parity_reward.py")["compute_score"]
    assert score("parity", "It is Even.", "even")["score"] == 1.0 and score("parity", "odd", "even")["solution"] == ""


def test_an_algorithm(compose: Callable[[str], DictConfig]) -> None:
    import torch
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, get_adv_estimator_fn

    config = compose("algo=sign")
    check_options(config)
    (warning,) = check_registered_names(config)
    assert "mine.sign_advantage" in warning and config.flowrl is None
    try:
        runpy.run_path("mine/sign_advantage.py")
        mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
        advantages, _ = get_adv_estimator_fn(config.algorithm.adv_estimator)(mask * torch.tensor([[1.0], [0.0]]), mask)
        assert advantages.tolist() == [[1.0, 1.0], [-1.0, 0.0]]
    finally:
        ADV_ESTIMATOR_REGISTRY.pop("sign", None)


def test_a_variant_of_flowrl(compose: Callable[[str], DictConfig]) -> None:
    config = compose("algo=flowrl_warm")
    check_options(config)
    assert FlowRLConfig.from_mapping(config.flowrl) == FlowRLConfig(beta=5.0, partition_lr=1e-3)


def test_a_model_family(compose: Callable[[str], DictConfig]) -> None:
    config = compose("+model=gemma")
    assert config.actor_rollout_ref.model.path == "google/gemma-3-1b-it"
    assert config.trainer.experiment_name == "flowrl-gemma"
    check_options(config)


def test_a_cluster(compose: Callable[[str], DictConfig]) -> None:
    config = compose("cluster=2x4")
    check_options(config)
    site = {"SITE_ACCOUNT": "", "SITE_PARTITION": "", "SITE_SBATCH": ""}
    assert {"--nodes=2", "--gpus-per-node=4", "--time=08:00:00"} <= set(directives(config, site))


def test_every_command_of_the_page_is_tried() -> None:
    tried = ("experiment=parity", "algo=sign", "algo=flowrl_warm", "+model=gemma", "cluster=2x4")
    for command in COMMANDS:
        assert command == "python mine/parity.py" or any(override in command.split() for override in tried)
