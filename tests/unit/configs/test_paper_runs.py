"""The paper's runs: they compose with every algorithm and cluster, say what was published, and could start."""

import functools
import os
import subprocess

import pytest
from omegaconf import DictConfig, OmegaConf
from test_configs import CONFIGS, composed, options

from recipe.flowrl.preflight.batches import check_batches
from recipe.flowrl.preflight.options import check_options

RECIPE = CONFIGS.parent / "recipe" / "flowrl"
RUNS = {"math_7b": "1x8", "math_32b": "4x8", "code_7b": "1x8"}
CLUSTERS = [name for name in options("cluster") if name[0].isdigit()]
SCRIPTS = {"run_qwen2.5_7b_math": "math_7b", "run_qwen2.5_32b_math": "math_32b", "run_r1_distill_7b_code": "code_7b"}

PUBLISHED = {  # arXiv 2509.15207v3, section 4, and the authors' scripts
    "math_7b": {
        "actor_rollout_ref.model.path": "Qwen/Qwen2.5-7B",
        "data.train_batch_size": 512,
        "actor_rollout_ref.rollout.temperature": 1.0,
        "trainer.save_freq": 50,
        "trainer.test_freq": 5,
    },
    "math_32b": {"actor_rollout_ref.model.path": "Qwen/Qwen2.5-32B", "data.train_batch_size": 512},
    "code_7b": {
        "actor_rollout_ref.model.path": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        "data.train_batch_size": 64,
        "actor_rollout_ref.rollout.temperature": 0.6,
        "trainer.save_freq": 25,
        "trainer.test_freq": 10,
        "trainer.total_epochs": 20,
    },
}
PUBLISHED_FOR_ALL = {
    "data.max_prompt_length": 2048,
    "data.max_response_length": 8192,
    "actor_rollout_ref.rollout.n": 8,
    "actor_rollout_ref.actor.ppo_mini_batch_size": 32,
    "actor_rollout_ref.actor.ppo_epochs": 1,
    "actor_rollout_ref.actor.optim.clip_grad": 1.0,
    "actor_rollout_ref.actor.use_dynamic_bsz": True,
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": 10240,
    "actor_rollout_ref.actor.optim.lr": 1e-6,
    "actor_rollout_ref.actor.optim.weight_decay": 0.1,
    "actor_rollout_ref.actor.optim.lr_warmup_steps": 10,
    "actor_rollout_ref.actor.optim.lr_scheduler_type": "constant",
    "actor_rollout_ref.model.enable_gradient_checkpointing": True,
    "flowrl.beta": 15.0,
}
OF_THE_CLUSTER = ("n_gpus_per_node", "nnodes", "device", "tensor_model_parallel_size", "gpu_memory_utilization")
OF_THE_CLUSTER += ("offload", "max_token_len_per_gpu", "strategy", "use_remove_padding", "use_fused_kernels")


COMBINATIONS = [(experiment, algo, RUNS[experiment]) for experiment in RUNS for algo in options("algo")]
COMBINATIONS += [("math_7b", "flowrl", cluster) for cluster in CLUSTERS if cluster != "1x8"]
COMBINATIONS += [("math_32b", "grpo", cluster) for cluster in CLUSTERS if cluster != "4x8"]


@functools.cache
def run(experiment: str, *overrides: str) -> DictConfig:
    """Not to be changed: it is the same object for the same arguments."""
    return composed(f"experiment={experiment}", f"cluster={RUNS[experiment]}", *overrides)


@pytest.mark.parametrize(("experiment", "algo", "cluster"), COMBINATIONS)
def test_a_run_composes_and_its_batches_fit(experiment: str, algo: str, cluster: str) -> None:
    config = composed(f"experiment={experiment}", f"algo={algo}", f"cluster={cluster}")
    config.cache_dir = "/cache"
    config.trainer.experiment_name = algo
    OmegaConf.resolve(config)
    check_batches(config)
    check_options(config)
    nodes, gpus = map(int, cluster.split("x"))
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node) == (nodes, gpus)
    worker = config.actor_rollout_ref
    assert worker.actor.strategy == worker.ref.strategy == worker.actor.fsdp_config.strategy == "fsdp2"
    assert worker.model.use_remove_padding and worker.model.use_fused_kernels


@pytest.mark.parametrize("experiment", RUNS)
def test_the_published_values(experiment: str) -> None:
    config = run(experiment)
    wanted = PUBLISHED_FOR_ALL | PUBLISHED[experiment]
    assert {key: OmegaConf.select(config, key) for key in wanted} == wanted


@pytest.mark.parametrize("experiment", RUNS)
def test_nothing_of_the_cluster_stands_in_an_experiment(experiment: str) -> None:
    text = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text()
    assert not [name for name in OF_THE_CLUSTER if name in text]


def test_rewards_and_data() -> None:
    math, code = run("math_7b"), run("code_7b", "reward.sandbox_fusion.url=http://h:1")
    assert math.reward.custom_reward_function.reward_kwargs.rule == "math_dapo"
    assert run("math_7b", "reward=math_verify").reward.custom_reward_function.reward_kwargs.rule == "math_verify"
    assert code.reward.custom_reward_function.reward_kwargs.sandbox_url == "http://h:1"
    moved = run("math_7b", "data_dir=/d")
    assert moved.data.train_files == "/d/train.parquet" and moved.data.val_files[0] == "/d/test_aime2024.parquet"


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_pass_knobs_and_overrides_on(name: str) -> None:
    def arguments(*given: str, **knobs: str) -> list[str]:
        environment = {"PATH": os.environ["PATH"], "PYTHON": "echo", **knobs}
        command = [RECIPE / "scripts" / f"{name}.sh", *given]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    experiment = SCRIPTS[name]
    plain = ["-m", "recipe.flowrl.main_flowrl", f"experiment={experiment}"]
    assert arguments() == [*plain, "algo=flowrl", f"cluster={RUNS[experiment]}"]
    assert arguments("trainer.save_freq=1", ALGO="grpo", CLUSTER="4x8", DATA_DIR="/d", MODEL="/m") == [
        *plain,
        "algo=grpo",
        "cluster=4x8",
        "data_dir=/d",
        "actor_rollout_ref.model.path=/m",
        "trainer.save_freq=1",
    ]


def test_the_table_of_values_is_that_of_the_configurations() -> None:
    """Each row of the documentation's table whose first column is an option agrees with the configurations."""
    rows = [line.split("|")[1:-1] for line in (CONFIGS.parent / "docs" / "paper_runs.md").read_text().splitlines()]
    table = {cells[0].strip(" `"): [c.strip(" `") for c in cells[4:7]] for cells in rows if len(cells) == 8}
    keys = [key for key in table if "." in key and " " not in key]
    assert len(keys) >= 20
    for column, experiment in enumerate(RUNS):
        config = run(experiment)
        for key in keys:
            said = table[key][column]
            assert said == str(OmegaConf.select(config, key)), f"{key} of {experiment}"
