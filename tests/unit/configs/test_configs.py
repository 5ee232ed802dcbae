"""The Hydra configurations: they compose, and say what the code says."""

import importlib
import inspect
from dataclasses import asdict

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from recipe.flowrl.common.project import PROJECT
from recipe.flowrl.config import FlowRLConfig
from recipe.flowrl.preflight.options import check_options
from recipe.flowrl.preflight.registries import check_registered_names
from verl_ext.source import register_verl_configs

CONFIGS = PROJECT / "configs"


def composed(*overrides: str) -> DictConfig:
    register_verl_configs()
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose("flowrl", overrides=list(overrides))


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def test_the_default_algorithm_is_the_paper_preset() -> None:
    config = composed()
    assert asdict(FlowRLConfig.from_mapping(config.flowrl)) == asdict(FlowRLConfig.preset("paper"))
    assert config.actor_rollout_ref.flowrl == config.flowrl, "workers see only actor_rollout_ref"
    assert config.algorithm.adv_estimator == "grpo"


VARIANTS_OF_FLOWRL = {name for name in options("algo") if name.startswith(("flowrl", "gflowrl", "tb_"))}


@pytest.mark.parametrize("algo", options("algo"))
def test_only_the_variants_of_flowrl_have_its_options(algo: str) -> None:
    config = composed(f"algo={algo}")
    assert (config.actor_rollout_ref.flowrl is not None) == (algo in VARIANTS_OF_FLOWRL)


@pytest.mark.parametrize("algo", options("algo"))
def test_every_algorithm_names_its_paper_and_passes_the_checks(algo: str) -> None:
    """As ``experiment=countdown_cpu`` runs it."""
    text = (CONFIGS / "algo" / f"{algo}.yaml").read_text()
    assert "arXiv " in text or algo == "flowrl_as_released", "no source"
    config = composed("experiment=countdown_cpu", f"algo={algo}", "trainer.experiment_name=x")
    OmegaConf.resolve(config)
    assert check_options(config) == []
    assert check_registered_names(config) == []


def test_the_released_recipe_is_the_preset() -> None:
    assert FlowRLConfig.from_mapping(composed("algo=flowrl_as_released").flowrl) == FlowRLConfig.preset("as_released")


@pytest.mark.parametrize("model", options("model"))
@pytest.mark.parametrize("experiment", [name for name in options("experiment") if name.endswith("_cpu")])
def test_experiments_combine_with_models(experiment: str, model: str) -> None:
    config = composed(f"experiment={experiment}", f"model={model}")
    assert config.prepare.model == model
    assert config.actor_rollout_ref.model.path.endswith(model)
    assert config.prepare.data in config.data.train_files
    assert config.data.train_batch_size % config.actor_rollout_ref.actor.ppo_mini_batch_size == 0


@pytest.mark.parametrize("rule", options("reward"))
def test_a_reward_names_a_function_that_takes_its_options(rule: str) -> None:
    reward = composed(f"reward={rule}").reward
    assert reward.num_workers == composed().reward.num_workers, "the group is verl's: its other options must stay"
    chosen = reward.custom_reward_function
    function = getattr(importlib.import_module(chosen.path.removeprefix("pkg://")), chosen.name)
    assert set(chosen.reward_kwargs) <= set(inspect.signature(function).parameters)


def test_a_model_of_ones_own() -> None:
    config = composed("experiment=countdown_cpu", "actor_rollout_ref.model.path=/any/hf/dir")
    assert config.actor_rollout_ref.model.path == "/any/hf/dir"


def test_cpu_cluster_is_fsdp2_in_float32_everywhere() -> None:
    worker = composed("cluster=cpu").actor_rollout_ref
    for engine in (worker.actor, worker.ref, worker.actor.fsdp_config, worker.ref.fsdp_config):
        assert engine.strategy == "fsdp2"
        assert engine.use_torch_compile is False
    assert worker.rollout.dtype == "float32"
    assert worker.actor.fsdp_config.mixed_precision == worker.ref.fsdp_config.mixed_precision
    assert OmegaConf.select(worker, "actor.fsdp_config.mixed_precision.param_dtype") == "fp32"
