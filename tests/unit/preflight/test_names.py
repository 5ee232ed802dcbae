"""Names that verl looks up in its registries, and files that it loads by path: wrong ones are refused early."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.preflight.compose import compose_run
from recipe.flowrl.preflight.options import check_options
from recipe.flowrl.preflight.registries import check_registered_names, registered_names, rejection_criteria
from recipe.flowrl.preflight.separate import check_mode
from recipe.flowrl.preflight.user_modules import check_user_modules

ROLLOUT, CORRECTION = "actor_rollout_ref.rollout", "algorithm.rollout_correction"
RUN = ["experiment=countdown_cpu", "algo=grpo"]
ON_GPUS = ["experiment=math_7b", "cluster=1x8", "data_dir=DATA"]


@pytest.mark.parametrize(
    ("key", "value", "meant"),
    [
        (f"{ROLLOUT}.agent.default_agent_loop", "single_turn_agnet", "single_turn_agent"),
        (f"{ROLLOUT}.multi_turn.format", "hermse", "hermes"),
        (f"{ROLLOUT}.checkpoint_engine.backend", "ncl", "nccl"),
        (f"{ROLLOUT}.name", "vlm", "vllm"),
        ("reward.reward_manager.name", "dappo", "dapo"),
        (f"{CORRECTION}.rollout_is", "tokn", "token"),
        (f"{CORRECTION}.rollout_rs", "seq_mean_k4", "seq_mean_k3"),
        (f"{CORRECTION}.rollout_rs", "'seq_sum_k1,seq_men_k3'", "seq_mean_k3"),
        (f"{CORRECTION}.loss_type", "ppo_clp", "ppo_clip"),
    ],
)
def test_an_unknown_name(key: str, value: str, meant: str) -> None:
    with pytest.raises(UserError, match=rf"^{key}=.*unknown; did you mean {meant}\?|^{key}=.*unknown.*{meant}"):
        check_registered_names(compose_run([*RUN, f"{key}={value}"]))


@pytest.mark.parametrize(
    "override",
    [
        f"{ROLLOUT}.agent.default_agent_loop=tool_agent",
        f"{ROLLOUT}.multi_turn.format=qwen3_coder",
        "reward.reward_manager.name=dapo",
        f"{CORRECTION}.rollout_is=sequence",
        f"{CORRECTION}.rollout_rs='seq_sum_k1,token_k3'",
    ],
)
def test_a_known_name(override: str) -> None:
    assert check_registered_names(compose_run([*RUN, override])) == []


def test_a_name_of_the_users_own(tmp_path: Path) -> None:
    loops = tmp_path / "loops.yaml"
    loops.write_text("[]")
    config = compose_run(
        [*RUN, f"{ROLLOUT}.agent.default_agent_loop=mine", f"{ROLLOUT}.agent.agent_loop_config_path={loops}"]
    )
    assert check_registered_names(config) == []


def test_names_are_those_of_the_installed_verl() -> None:
    from verl.experimental.agent_loop.tool_parser import ToolParser
    from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER
    from verl.trainer.ppo.rollout_corr_helper import SUPPORTED_ROLLOUT_RS_OPTIONS

    assert set(registered_names(f"{ROLLOUT}.multi_turn.format")) == {
        name for name, parser in ToolParser._registry.items() if parser.__module__.startswith("verl.")
    }
    assert set(registered_names("reward.reward_manager.name")) == set(REWARD_MANAGER)
    assert set(rejection_criteria()) == SUPPORTED_ROLLOUT_RS_OPTIONS


@pytest.mark.parametrize("role", ["actor_rollout_ref.actor", "actor_rollout_ref.ref", "critic"])
def test_an_engine_that_is_not_ours(role: str) -> None:
    config = compose_run([*ON_GPUS, "algo=ppo"])
    for strategy in ("fdsp2", "megatron", "veomni", "torchtitan"):
        OmegaConf.select(config, role).strategy = strategy
        with pytest.raises(UserError, match=rf"^{role}\.strategy: got '{strategy}' .*allowed: 'fsdp' \| 'fsdp2'"):
            check_options(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([f"{ROLLOUT}.nnodes=0"], "rollout.nnodes=0"),
        ([f"{ROLLOUT}.nnodes=1", f"{ROLLOUT}.n_gpus_per_node=0"], "rollout.n_gpus_per_node=0"),
        ([f"{ROLLOUT}.nnodes=1"], "backend=naive"),
    ],
)
def test_a_rollout_of_its_own(overrides: list[str], message: str) -> None:
    config = compose_run([*ON_GPUS, "trainer.v1.trainer_mode=separate_async", *overrides])
    with pytest.raises(UserError, match=message):
        check_mode(config)


FILES = {
    "data.custom_cls": "class Mine:\n    pass\n",
    "trainer.v1.sampler.custom_sampler": "class Mine:\n    pass\n",
    "reward.reward_manager.module": "class Mine:\n    pass\n",
}


@pytest.mark.parametrize("section", FILES)
def test_a_class_of_the_users_own(section: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    given = [*RUN, f"++{section}.path={file}", f"++{section}.name=Mine"]
    with pytest.raises(UserError, match=rf"^{section}\.path={file}: there is no such file"):
        check_user_modules(compose_run(given))
    file.write_text(FILES[section])
    check_user_modules(compose_run(given))
    file.write_text("class Other:\n    pass\n")
    with pytest.raises(UserError, match=rf"^{section}\.name=Mine: .*defines Other"):
        check_user_modules(compose_run(given))
    file.write_text("from elsewhere import Mine\n")
    check_user_modules(compose_run(given))
    file.write_text("class Mine(:\n")
    with pytest.raises(UserError, match=rf"^{section}\.path={file}: isn't Python"):
        check_user_modules(compose_run(given))


def test_a_module_of_the_users_own() -> None:
    given = [*RUN, "data.custom_cls.path=pkg://no.such.module", "data.custom_cls.name=Mine"]
    with pytest.raises(UserError, match="there is no module no.such.module"):
        check_user_modules(compose_run(given))
    given[-2] = "data.custom_cls.path=pkg://recipe.flowrl.tasks.sft_dataset"
    with pytest.raises(UserError, match="it defines TokenizedDataset"):
        check_user_modules(compose_run(given))
    check_user_modules(compose_run([*given[:-1], "data.custom_cls.name=TokenizedDataset"]))


@pytest.mark.parametrize("name", ["multi_turn.tool_config_path", "multi_turn.function_tool_path"])
def test_a_tool_file(name: str, tmp_path: Path) -> None:
    file = tmp_path / "tools"
    given = [*RUN, f"{ROLLOUT}.{name}={file}"]
    with pytest.raises(UserError, match=rf"^{ROLLOUT}\.{name}={file}: there is no such file"):
        check_user_modules(compose_run(given))
    file.write_text("")
    check_user_modules(compose_run(given))


@pytest.fixture
def no_wandb_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_wandb_without_a_key(no_wandb_key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = compose_run([*RUN, "trainer.logger=[console,wandb]"])
    with pytest.raises(UserError, match="wandb has no key: .*WANDB_MODE=offline"):
        check_registered_names(config)
    no_wandb_key.write_text("machine api.example.org login user password x\n")
    with pytest.raises(UserError, match="wandb has no key"):
        check_registered_names(config)
    no_wandb_key.write_text("machine api.wandb.ai login user password x\n")
    assert check_registered_names(config) == []
    no_wandb_key.unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert check_registered_names(config) == []


def test_loggers_write_into_the_run_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As verl's own classes read it: a writer of each that needs no network."""
    from verl.utils.tracking import FileLogger, _TensorboardAdapter

    monkeypatch.setenv("TRACKIO_DIR", "mine")
    run_dir = tmp_path / "run"
    config = compose_run([*RUN, f"run_dir={run_dir}"])
    variables = config.ray_kwargs.ray_init.runtime_env.env_vars
    assert variables.TRACKIO_DIR == "mine", "what the user says wins"
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    _TensorboardAdapter("project", "run").log({"a": 1.0}, 1)
    FileLogger("project", "run").log({"a": 1.0}, 1)
    assert not list(elsewhere.iterdir())
    assert {path.name for path in run_dir.iterdir()} == {"tensorboard", "metrics_by_verl.jsonl"}
