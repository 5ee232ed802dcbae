"""``preflight``: each bad input is refused in one or two lines that say what, where, and what to do."""

import json
import pickle
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from checkpoint_directories import save
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models

from recipe.flowrl import preflight
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.project import CONFIG_DIR
from recipe.flowrl.preflight import machine, options, overrides, registries
from recipe.flowrl.preflight import model_files as model
from recipe.flowrl.preflight import run_directory as checkpoint
from recipe.flowrl.preflight.options import _ALONE, _single_rollouts
from verl_ext.source import register_verl_configs

ACTOR, ROLLOUT, REF = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "ref"))
DYNAMIC = {f"{ACTOR}.use_dynamic_bsz": True} | {f"{part}.log_prob_use_dynamic_bsz": True for part in (ROLLOUT, REF)}
ONE_ROLLOUT = {f"{ROLLOUT}.n": 1, f"{ACTOR}.rollout_n": 1, f"{REF}.rollout_n": 1}  # the others follow the first
GIB = 2**30


def row(**changes: Any) -> dict[str, Any]:
    """A row in verl's schema."""
    return {
        "data_source": "countdown",
        "prompt": [{"role": "user", "content": "Make 24 from 4 6"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "24"},
        "extra_info": {"index": 0, "split": "train"},
    } | changes


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_model(path: Path, **changes: Any) -> Path:
    """A Hugging Face model's directory of 4 MiB: 2 attention heads of size 64, a vocabulary of 8 tokens."""
    path.mkdir(parents=True)
    architecture = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 128}
    architecture |= {"num_attention_heads": 2, "vocab_size": 8, "max_position_embeddings": 256}
    (path / "config.json").write_text(json.dumps(architecture | changes))
    Tokenizer(models.WordLevel({str(i): i for i in range(8)}, unk_token="0")).save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ messages }}"}))
    save_file({"embed": np.zeros((8, 128), np.float32), "mlp": np.zeros((1024, 1024), np.float32)},
              path / "model.safetensors")  # fmt: skip
    return path


@pytest.fixture(scope="session")
def composed() -> bytes:
    """``experiment=countdown_cpu`` as the entry point composes it, resolved; pickled: that copies ten times faster."""
    register_verl_configs()
    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        config = compose("flowrl", overrides=["experiment=countdown_cpu"], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    OmegaConf.resolve(config)
    HydraConfig.instance().cfg = None
    return pickle.dumps(config)


Configure = Callable[..., DictConfig]


@pytest.fixture
def configure(composed: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:
    """A sound configuration on files in ``tmp_path``, with the given options changed, on a machine of 64 GB."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(machine, "available_memory", lambda: 64e9)

    def change(changes: dict[str, Any] | None = None) -> DictConfig:
        config = pickle.loads(composed)
        sound = {
            "run_dir": str(tmp_path / "run"),
            "trainer.default_local_dir": str(tmp_path / "run" / "checkpoints"),
            "prepare": {"data": None, "model": None},
            "data.train_files": str(tmp_path / "train.parquet"),
            "data.val_files": str(tmp_path / "val.parquet"),
            "actor_rollout_ref.model.path": str(tmp_path / "model"),
            "reward.custom_reward_function": {"path": str(tmp_path / "reward.py"), "name": "compute_score"},
        }
        for key, value in (sound | (changes or {})).items():
            OmegaConf.update(config, key, value, merge=False, force_add=True)
        return config

    write_parquet(tmp_path / "train.parquet", [row()] * 40)
    write_parquet(tmp_path / "val.parquet", [row()] * 4)
    write_model(tmp_path / "model")
    (tmp_path / "reward.py").write_text("def compute_score(data_source, solution_str, ground_truth, extra_info):\n"
                                        "    return float(solution_str == ground_truth)\n")  # fmt: skip
    return change


def refusal(check: Callable[[DictConfig], Any], config: DictConfig) -> str:
    with pytest.raises(UserError) as refused:
        check(config)
    return str(refused.value)


def assert_clear(message: str, *parts: str) -> None:
    assert message.count("\n") <= 1 and len(message) < 480, message
    for part in parts:
        assert part in message, message


# ---- the command line ---------------------------------------------------------------------------------------------


def explained(*command_line: str) -> str:
    """What the person is told about a command line that Hydra refuses."""
    register_verl_configs()
    with pytest.raises(HydraException) as refused:
        with initialize_config_dir(str(CONFIG_DIR), version_base=None):
            compose("flowrl", overrides=list(command_line))
    return str(preflight.explain(refused.value, command_line, CONFIG_DIR))


BAD_OVERRIDES = {
    "algo=grop": ["algo=grop", "did you mean 'grpo'?", "algo is one of cispo, clip_cov"],
    "trainer.nnodez=2": ["trainer.nnodez=2", "did you mean trainer.nnodes?"],
    "actor.optim.lr=1": ["no key actor.optim.lr", "did you mean actor_rollout_ref.actor.optim.lr?"],
    "clustr=cpu": ["no key clustr", "did you mean cluster?"],
    "qqqqqq=1": ["no key qqqqqq", "'+'"],
    "+trainer.nnodes=2": ["trainer.nnodes is there already", "leave out the '+'"],
}


@pytest.fixture(scope="session")
def problems() -> dict[str, str]:
    """Override -> what is wrong with it, of all in one composition."""
    register_verl_configs()
    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        found = list(overrides.problems(list(BAD_OVERRIDES), CONFIG_DIR))
    return dict(zip(BAD_OVERRIDES, found, strict=True))


@pytest.mark.parametrize("override", BAD_OVERRIDES)
def test_overrides(override: str, problems: dict[str, str]) -> None:
    assert_clear(problems[override], *BAD_OVERRIDES[override])


@pytest.mark.parametrize(
    ("command_line", "parts"),
    [
        (["algo=grpo", "flowrl.beta=3"], ["flowrl.beta=3", "choose algo=flowrl"]),
        (["cluster=cpu", "algo=x", "data.batch=2"], ["algo=x: no such option", "\n", "data.batch=2: there is no key"]),
        (["data.train_files=[a"], ["'data.train_files=[a' can't be read", "quotes"]),
        (["data.train_batch_size"], ["write data.train_batch_size=VALUE"]),
        (["hydra.nothing=1"], ["can't be composed", "hydra.nothing"]),
    ],
)
def test_command_lines(command_line: list[str], parts: list[str]) -> None:
    assert_clear(explained(*command_line), *parts)


@pytest.mark.parametrize("override", ["+flowrl.beta=3", "flowrl={beta: 3}", "~flowrl"])
def test_flowrl_is_not_switched_by_its_options(override: str, configure: Configure) -> None:
    """These compose, and would run FlowRL with another algorithm's settings."""
    hydra = {"hydra": {"overrides": {"task": ["algo=grpo", override]}}}
    HydraConfig.instance().cfg = OmegaConf.create(hydra)
    try:
        assert_clear(refusal(preflight.check, configure()), override, "algo=flowrl")
    finally:
        HydraConfig.instance().cfg = None


def test_sweeps_are_refused() -> None:
    preflight.check_arguments(["experiment=countdown_cpu", "--cfg", "job"])
    with pytest.raises(UserError, match="--multirun"):
        preflight.check_arguments(["-m", "flowrl.beta=1,2"])


def test_composing_and_checking_imports_neither_verl_nor_torch() -> None:
    """The import takes seconds, and would come before the configuration says on which platform verl is to run."""
    program = (
        "import sys; from hydra import compose, initialize_config_dir;"
        "from recipe.flowrl import main_flowrl, preflight; main_flowrl.register_verl_configs()\n"
        "with initialize_config_dir(str(main_flowrl.CONFIG_DIR), version_base=None):\n"
        "    config = compose('flowrl', overrides=['experiment=countdown_cpu', 'trainer.experiment_name=x',"
        "'run_dir=/nonexistent/run'])\n"
        "try: preflight.check(config)\n"
        "except preflight.UserError as error: print(error)\n"
        "sys.exit(bool({'verl', 'torch', 'ray', 'transformers'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.returncode == 0, finished


# ---- the configuration --------------------------------------------------------------------------------------------


def test_a_sound_configuration_passes(configure: Configure) -> None:
    assert preflight.check(configure()) == []
    assert preflight.check_files(configure()) == []


def test_a_saturated_target_is_named(configure: Configure) -> None:
    (line,) = preflight.saturated_target(configure())
    assert_clear(
        line, "flowrl.beta=15: the target is saturated", "max_response_length=32", "beta=0.0", "choosing_beta.md"
    )
    raw = {"algorithm.adv_estimator": "raw_reward", "flowrl.length_normalization": "residual"}
    assert preflight.saturated_target(configure(raw | {"flowrl.beta": 3.0})) == []
    assert preflight.saturated_target(configure({"flowrl": None})) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer.n_gpus_per_node": 2, f"{ROLLOUT}.tensor_model_parallel_size": 2},
        DYNAMIC | {f"{ACTOR}.ppo_micro_batch_size_per_gpu": None},
        {"trainer.v1.trainer_mode": "colocate_async"},
        {"actor_rollout_ref.model.lora_rank": 8},
        {"flowrl": None, "algorithm.adv_estimator": "rloo", f"{REF}.log_prob_micro_batch_size_per_gpu": None},
    ],
)
def test_what_is_supported_passes(changes: dict[str, Any], configure: Configure) -> None:
    assert preflight.check(configure(changes)) == []


BAD_OPTIONS = [
    ({"flowrl.beta": -1}, ["flowrl.beta: got -1 (int)", "> 0"]),
    ({"flowrl.betta": 1}, ["flowrl.betta", "did you mean 'beta'?"]),
    ({"algorithm.adv_estimator": "rloo"}, ["algorithm.adv_estimator=rloo", "grpo", "algo=NAME"]),
    ({"flowrl": None, "algorithm.adv_estimator": "grop"}, ["adv_estimator=grop", "did you mean 'grpo'?", "rloo"]),
    ({f"{ACTOR}.policy_loss.loss_mode": "vanila"}, ["loss_mode=vanila", "did you mean 'vanilla'?", "gspo"]),
    ({"trainer.v1.trainer_mode": "async"}, ["trainer.v1.trainer_mode=async", "colocate_async", "sync"]),
    ({"trainer.v1.trainer_mode": "separate_async"}, ["rollout.nnodes=0", "set mode=async"]),
    ({"trainer.logger": ["console", "wandbb"]}, ["'wandbb'", "did you mean 'wandb'?"]),
    ({"trainer.logger": "mlflow"}, ["'mlflow' isn't installed", "pip install mlflow"]),
    ({"prepare.data": "countdwn"}, ["prepare.data=countdwn", "did you mean 'countdown'?", "arithmetic"]),
    ({"trainer.resume_mode": "yes"}, ["trainer.resume_mode: got 'yes' (str)", "'auto' | 'disable' | 'resume_path'"]),
    ({"data.train_batch_size": "many"}, ["data.train_batch_size: got 'many' (str)", "an integer >= 1"]),
    ({f"{ROLLOUT}.n": 0}, [f"{ROLLOUT}.n: got 0 (int)", "an integer >= 1"]),
    ({f"{ACTOR}.optim.lr": -1e-6}, [f"{ACTOR}.optim.lr: got -1e-06", ">= 0"]),
    ({"actor_rollout_ref.model.lora_rank": -1}, ["model.lora_rank: got -1", "an integer >= 0"]),
    ({"actor_rollout_ref.model.lora_rank": 1024}, ["lora_rank=1024", "up to 512"]),
    ({"custom_reward_function.path": "r.py"}, ["custom_reward_function.path=r.py has no effect", "under reward."]),
    ({"reward_model.model.path": "/m"}, ["reward_model.model.path=/m has no effect", "under reward"]),
    ({f"{ACTOR}.strategy": "fsdp"}, [f"{ACTOR}.strategy=fsdp doesn't work with trainer.device=cpu", "to fsdp2"]),
    ({f"{ROLLOUT}.name": "sglang"}, [f"{ROLLOUT}.name=sglang", "set it to vllm"]),
    ({f"{ROLLOUT}.free_cache_engine": True}, ["free_cache_engine=True", "set it to False"]),
    ({"ray_kwargs.ray_init.runtime_env.env_vars": {}}, ["VERL_PLATFORM=None", "cluster=cpu"]),
    ({"flowrl": None, "algorithm.adv_estimator": "pass_at_k"}, ["algorithm.pass_k=None", "rollout.n="]),
    (
        {"flowrl": None, "algorithm.adv_estimator": "pass_at_k", "algorithm.pass_k": 999},
        ["algorithm.pass_k=999", "rollout.n="],
    ),
    ({"flowrl": None, "algorithm.reference_reset_steps": 5}, ["no reference to reset", "use_kl_loss=true"]),
    (
        {
            "flowrl": None,
            "algorithm.reference_reset_steps": 5,
            f"{ACTOR}.use_kl_loss": True,
            "actor_rollout_ref.model.lora_rank": 8,
        },
        ["reference_reset_steps=5", "LoRA"],
    ),
    ({"algorithm.kl_matched_beta": 15.0}, ["algorithm.kl_matched_beta=15.0", "not for FlowRL"]),
    ({"algorithm.kl_matched_beta": -1.0}, ["algorithm.kl_matched_beta: got -1.0", "> 0"]),
]


@pytest.mark.parametrize(("changes", "parts"), BAD_OPTIONS, ids=[str(changes) for changes, _ in BAD_OPTIONS])
def test_options(changes: dict[str, Any], parts: list[str], configure: Configure) -> None:
    assert_clear(refusal(preflight.check, configure(changes)), *parts)


def test_a_value_that_cannot_be_resolved(configure: Configure) -> None:
    """Names the option at fault, not those that refer to it."""
    changes = {"trainer.experiment_name": "${missing}", "run_dir": "/tmp/${trainer.experiment_name}"}
    assert_clear(refusal(preflight.check, configure(changes)), "trainer.experiment_name: ", "'missing' not found")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        (ONE_ROLLOUT, "rollout.n=1"),
        ({"algorithm.use_kl_in_reward": True}, "use_kl_in_reward"),
        ({f"{ACTOR}.use_kl_loss": True}, "use_kl_loss"),
    ],
)
def test_what_does_not_suit_flowrl_is_a_warning(changes: dict[str, Any], part: str, configure: Configure) -> None:
    changes |= {f"{section}.log_prob_micro_batch_size_per_gpu": 1 for section in (ROLLOUT, REF)}
    changes |= {f"{ACTOR}.ppo_micro_batch_size_per_gpu": 1}
    (warning,) = preflight.check(configure(changes))
    assert part in warning
    others = preflight.check(configure(changes | {"flowrl": None}))
    assert others == [] or ("n=1" in part and len(others) == 1 and "the reward as it is" in others[0])


def test_one_rollout_of_a_reward_that_is_not_normalised_is_as_good_as_many(configure: Configure) -> None:
    changes = {f"{section}.log_prob_micro_batch_size_per_gpu": 1 for section in (ROLLOUT, REF)}
    changes |= ONE_ROLLOUT | {f"{ACTOR}.ppo_micro_batch_size_per_gpu": 1}
    (warning,) = preflight.check(configure(changes))
    assert "r_hat is the reward as it is, times flowrl.beta=15" in warning
    assert preflight.check(configure(changes | {"algorithm.adv_estimator": "raw_reward"})) == []


@pytest.mark.parametrize("estimator", _ALONE)
def test_what_an_advantage_is_without_others_to_compare_with(estimator: str) -> None:
    """By verl's own functions."""
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    scores = torch.tensor([1.0, 0.0, 0.5, -1.0])
    rewards = torch.nn.functional.pad(scores.unsqueeze(1), (2, 0))
    arguments = {"token_level_rewards": rewards, "response_mask": torch.ones(4, 3), "index": np.array([*"abcd"])}
    extra = {"f_norm": 1.0} if estimator == "gpg" else {}
    advantages = get_adv_estimator_fn(estimator)(**arguments, config=OmegaConf.create({}), **extra)[0][:, -1]
    scaled = {"gpg": 4 / 3, "rloo_vectorized": 0.0}.get(estimator, 1.0)
    torch.testing.assert_close(advantages, scaled * scores, atol=1e-5, rtol=0)


def test_estimators_that_compare_nothing_are_not_warned_of(configure: Configure) -> None:
    config = configure({f"{ROLLOUT}.n": 1, "flowrl": None, "algorithm.adv_estimator": "reinforce_plus_plus"})
    assert _single_rollouts(config) == []


def test_a_name_that_another_module_may_register_is_a_warning(configure: Configure) -> None:
    changes = {f"{ACTOR}.policy_loss.loss_mode": "mine", "actor_rollout_ref.model.external_lib": ["my.losses"]}
    warnings = preflight.check(configure(changes))
    assert any("loss_mode=mine" in warning and "my.losses" in warning for warning in warnings)


def test_registered_names_are_those_of_verl_and_ours() -> None:
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    from verl.utils.tracking import Tracking

    import recipe.flowrl.advantages  # noqa: F401  (registers)

    registered = {key: set(registries.registered_names(key)) for key in registries._REGISTRIES}
    assert registered["algorithm.adv_estimator"] == set(ADV_ESTIMATOR_REGISTRY)
    assert registered[f"{ACTOR}.policy_loss.loss_mode"] == set(POLICY_LOSS_REGISTRY)
    assert registered["trainer.v1.trainer_mode"] == set(TRAINER_REGISTRY)
    assert registries.supported_loggers() == Tracking.supported_backend


def test_limits_are_those_of_the_installed_vllm() -> None:
    source = Path(sys.modules["vllm"].__path__[0]) if "vllm" in sys.modules else _package("vllm")
    backend = (source / "v1" / "attention" / "backends" / "cpu_attn.py").read_text()
    sizes = re.search(r"def get_supported_head_sizes.*?return (\[.*?\])", backend, re.DOTALL).group(1)
    assert model.VLLM_CPU_HEAD_SIZES == tuple(json.loads(sizes))
    ranks = re.search(r"MaxLoRARanks = Literal(\[.*?\])", (source / "config" / "lora.py").read_text()).group(1)
    assert max(json.loads(ranks)) == options.LARGEST_LORA_RANK


def _package(name: str) -> Path:
    from importlib.util import find_spec

    return Path(find_spec(name).submodule_search_locations[0])


# The configuration has train_batch_size 32, ppo_mini_batch_size 16, n 8; micro-batches of 32 and 64 sequences.
BAD_BATCHES = [
    ({f"{ACTOR}.ppo_mini_batch_size": 12}, [f"{ACTOR}.ppo_mini_batch_size=12", "data.train_batch_size=32", "to 8"]),
    ({f"{ACTOR}.ppo_mini_batch_size": 64}, ["ppo_mini_batch_size=64", "data.train_batch_size=32", "set it to 32"]),
    (
        {"trainer.n_gpus_per_node": 3, f"{ROLLOUT}.n": 8},
        ["ppo_mini_batch_size=16", f"{ROLLOUT}.n=8", "3 data-parallel ranks", "data.train_batch_size to 3"],
    ),
    (
        {"trainer.n_gpus_per_node": 4, f"{ROLLOUT}.n": 2, f"{ACTOR}.ppo_mini_batch_size": 1},
        ["ppo_mini_batch_size=1", "4 data-parallel ranks", f"set {ACTOR}.ppo_mini_batch_size to 2"],
    ),
    ({f"{ROLLOUT}.tensor_model_parallel_size": 2}, ["tensor_model_parallel_size=2", "1 ranks", "to 1"]),
    (
        {"trainer.n_gpus_per_node": 3, f"{ROLLOUT}.tensor_model_parallel_size": 2},
        [f"{ROLLOUT}.tensor_model_parallel_size=2", "the 3 ranks", "trainer.n_gpus_per_node", "to 1"],
    ),
    ({f"{ACTOR}.ppo_micro_batch_size_per_gpu": None}, ["ppo_micro_batch_size_per_gpu isn't set", "divisor of 128"]),
    ({f"{ACTOR}.ppo_micro_batch_size_per_gpu": 48}, ["ppo_micro_batch_size_per_gpu=48", "128 sequences", "to 32"]),
    ({f"{ACTOR}.ppo_micro_batch_size": 32}, ["ppo_micro_batch_size=32 is no longer used", "_per_gpu"]),
    ({f"{REF}.log_prob_micro_batch_size_per_gpu": None}, [f"{REF}.log_prob_micro_batch_size_per_gpu isn't set"]),
    ({f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu": 100}, ["log_prob_micro_batch_size_per_gpu=100", "to 128"]),
    (
        DYNAMIC | {f"{ACTOR}.ppo_max_token_len_per_gpu": 50},
        ["ppo_max_token_len_per_gpu=50", "one sequence", "set it to 96 or more"],
    ),
    ({f"{ACTOR}.use_dynamic_bsz": True}, ["log_prob_use_dynamic_bsz=False differs from", "leave it out"]),
]


@pytest.mark.parametrize(("changes", "parts"), BAD_BATCHES, ids=[str(changes) for changes, _ in BAD_BATCHES])
def test_batches(changes: dict[str, Any], parts: list[str], configure: Configure) -> None:
    assert_clear(refusal(preflight.check, configure(changes)), *parts)


def test_the_advice_on_batches_works(configure: Configure) -> None:
    """What is suggested for a size that doesn't divide is accepted."""
    for key, wrong in [
        (f"{ACTOR}.ppo_mini_batch_size", 12),
        (f"{ACTOR}.ppo_micro_batch_size_per_gpu", 48),
        (f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu", 100),
    ]:
        advice = re.search(r"set it to (\d+)", refusal(preflight.check, configure({key: wrong}))).group(1)
        preflight.check(configure({key: int(advice)}))


# ---- data ---------------------------------------------------------------------------------------------------------


def _without(*columns: str) -> dict[str, Any]:
    return {name: value for name, value in row().items() if name not in columns}


BAD_ROWS = [
    ([], ["has no rows"]),
    ([_without("data_source")] * 40, ["no column 'data_source'", "it has prompt", "schema"]),
    ([_without("prompt") | {"promt": "x"}] * 40, ["no column 'prompt'", "did you mean 'promt'?"]),
    ([_without("reward_model")] * 40, ["no column 'reward_model'", "ground_truth"]),
    ([row(prompt="Make 24")] * 40, ["row 0: prompt is 'Make 24'", "list of messages"]),
    ([row(), row(prompt=[])] * 20, ["row 1: prompt is []", "list of messages"]),
    ([row(prompt=[{"role": "user"}])] * 40, ["row 0: prompt has the message {'role': 'user'}"]),
    ([row(reward_model={"style": "rule"})] * 40, ["row 0: reward_model is {'style': 'rule'}", "ground_truth"]),
    ([row(reward_model={"ground_truth": None})] * 40, ["row 0: reward_model is", "ground_truth"]),
    ([row(data_source=3)] * 40, ["row 0: data_source is 3", "text"]),
]


@pytest.mark.parametrize("key", ["data.train_files", "data.val_files"])
@pytest.mark.parametrize(("rows", "parts"), BAD_ROWS, ids=[parts[0] for _, parts in BAD_ROWS])
def test_rows(key: str, rows: list[dict[str, Any]], parts: list[str], configure: Configure, tmp_path: Path) -> None:
    table = pa.Table.from_pylist(rows or [row()])
    pq.write_table(table.slice(0, len(rows)), tmp_path / "bad.parquet")
    message = refusal(preflight.check, configure({key: str(tmp_path / "bad.parquet")}))
    assert_clear(message, f"{key}: {tmp_path / 'bad.parquet'}", *parts)


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("missing.parquet", None, ["doesn't exist", "give a parquet file", "experiment=countdown_cpu"]),
        ("", None, ["is a directory, not a file"]),
        ("text.parquet", b"not parquet, but long enough", ["can't be read as parquet", "make it again"]),
        ("empty.parquet", b"", ["is an empty file"]),
        ("rows.csv", b"a,b", ["verl reads .parquet, .json and .jsonl"]),
    ],
)
def test_files(name: str, content: bytes | None, parts: list[str], configure: Configure, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    message = refusal(preflight.check, configure({"data.val_files": [str(tmp_path / name)]}))
    assert_clear(message, f"data.val_files: {tmp_path / name}", *parts)


def test_a_file_that_is_cut_short(configure: Configure, tmp_path: Path) -> None:
    content = (tmp_path / "train.parquet").read_bytes()
    config = configure()
    (tmp_path / "train.parquet").write_bytes(content[: len(content) // 2])
    assert_clear(refusal(preflight.check, config), "data.train_files", "can't be read as parquet")


@pytest.mark.parametrize("files", [None, []])
def test_no_file_given(files: list | None, configure: Configure) -> None:
    assert_clear(refusal(preflight.check, configure({"data.train_files": files})), "data.train_files: no file given")


def test_fewer_rows_than_a_batch(configure: Configure, tmp_path: Path) -> None:
    few = str(write_parquet(tmp_path / "few.parquet", [row()] * 10))
    advice = ["data.train_batch_size=32", "10 rows", "set it to 10 or less"]
    assert_clear(refusal(preflight.check, configure({"data.train_files": few})), *advice)
    assert_clear(refusal(preflight.check, configure({"data.train_max_samples": 10})), *advice)
    preflight.check(configure({"data.train_files": [few] * 4}))


def test_a_data_set_class_of_ones_own_has_its_own_columns(configure: Configure, tmp_path: Path) -> None:
    rows = str(write_parquet(tmp_path / "own.parquet", [{"question": "?"}] * 40))
    (tmp_path / "my_dataset.py").write_text("class MyDataset:\n    pass\n")
    own = {"path": str(tmp_path / "my_dataset.py"), "name": "MyDataset"}
    changes = {"data.train_files": rows, "data.custom_cls": own}
    preflight.check(configure(changes))
    preflight.check_files(configure(changes))


def test_what_the_run_makes_itself_may_still_be_missing(configure: Configure, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    changes = {
        "cache_dir": str(cache),
        "prepare": {"data": "countdown", "model": "tiny_qwen2"},
        "data.train_files": str(cache / "countdown" / "train.parquet"),
        "actor_rollout_ref.model.path": str(cache / "tiny_qwen2"),
    }
    assert preflight.check(configure(changes)) == []
    assert_clear(refusal(preflight.check_files, configure(changes)), "data.train_files", "doesn't exist")
    changes["data.train_files"] = str(tmp_path / "train.parquet")
    assert_clear(refusal(preflight.check_files, configure(changes)), "actor_rollout_ref.model.path", "doesn't exist")
    for other in (cache / "tiny_qwen", Path("/nonexistent/model")):
        config = configure(changes | {"actor_rollout_ref.model.path": str(other)})
        assert_clear(refusal(preflight.check, config), f"{other} doesn't exist")


# ---- model --------------------------------------------------------------------------------------------------------


def _damage(path: Path, file: str, content: str | None) -> None:
    if content is None:
        (path / file).unlink()
    else:
        (path / file).write_text(content)


BAD_MODELS = [
    ("config.json", None, ["is no model", "config.json"]),
    ("config.json", "{", ["config.json isn't valid JSON"]),
    ("config.json", "{}", ["names neither model_type nor architectures"]),
    ("tokenizer_config.json", "{}", ["has no chat template", "set actor_rollout_ref.model.custom_chat_template"]),
    ("model.safetensors", None, ["has no weights", "model.safetensors"]),
    ("model.safetensors", "damaged", ["model.safetensors is damaged or cut short"]),
    (
        "model.safetensors.index.json",
        '{"weight_map": {"mlp": "model-00002.safetensors"}}',
        ["lacks model-00002.safetensors", "download it again"],
    ),
]


@pytest.mark.parametrize(("file", "content", "parts"), BAD_MODELS, ids=[parts[0] for _, _, parts in BAD_MODELS])
def test_models(file: str, content: str | None, parts: list[str], configure: Configure, tmp_path: Path) -> None:
    config = configure()
    _damage(tmp_path / "model", file, content)
    assert_clear(refusal(preflight.check, config), "actor_rollout_ref.model.path", *parts)


def test_weights_that_are_cut_short(configure: Configure, tmp_path: Path) -> None:
    config, weights = configure(), tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert_clear(refusal(preflight.check, config), str(weights), "damaged or cut short")


def test_no_tokenizer(configure: Configure, tmp_path: Path) -> None:
    config = configure()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "model" / name).unlink()
    assert_clear(refusal(preflight.check, config), "has no tokenizer", "set actor_rollout_ref.model.tokenizer_path")


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        (None, ["isn't set", "experiment"]),
        ("/nonexistent/model", ["/nonexistent/model doesn't exist"]),
        ("./nonexistent", ["doesn't exist"]),
        (__file__, ["is a file"]),
        ("nobody/no-such-model", ["nobody/no-such-model", "HF_HUB_OFFLINE"]),
    ],
)
def test_model_paths(path: str | None, parts: list[str], configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refusal(preflight.check, configure({"actor_rollout_ref.model.path": path}))
    assert_clear(message, "actor_rollout_ref.model.path", *parts)


def test_a_hub_id_is_left_to_transformers(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert preflight.check(configure({"actor_rollout_ref.model.path": "Qwen/Qwen2.5-0.5B"})) == []


@pytest.mark.parametrize(
    ("architecture", "changes", "parts"),
    [
        ({"num_attention_heads": 8}, {}, ["attention heads of size 16", "32, 64, 80"]),
        ({"head_dim": 48}, {}, ["attention heads of size 48"]),
        (
            {"num_attention_heads": 2},
            {"trainer.n_gpus_per_node": 4, f"{ROLLOUT}.tensor_model_parallel_size": 4},
            ["tensor_model_parallel_size=4", "the 2 attention heads", "set it to 2"],
        ),
        ({"vocab_size": 4}, {}, ["8 tokens", "embeddings for 4", "don't belong together"]),
        ({}, {f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes": 3}, ["megabytes=3", "4 MiB", "to 4"]),
    ],
)
def test_architectures(
    architecture: dict, changes: dict, parts: list[str], configure: Configure, tmp_path: Path
) -> None:
    path = write_model(tmp_path / "other", **architecture)
    message = refusal(preflight.check, configure(changes | {"actor_rollout_ref.model.path": str(path)}))
    assert_clear(message, *parts)


def test_a_context_that_vllm_cannot_prefill_whole(configure: Configure, tmp_path: Path) -> None:
    """verl fails on it with a frozen field, once vLLM loads."""
    path = write_model(tmp_path / "other", max_position_embeddings=131072)
    changes = {"actor_rollout_ref.model.path": str(path)}
    message = refusal(preflight.check, configure(changes))
    assert_clear(message, "max_num_batched_tokens=8192", "131072 tokens", "actor_rollout_ref.rollout.max_model_len=96")
    assert preflight.check(configure(changes | {"actor_rollout_ref.rollout.max_model_len": 96})) == []
    assert preflight.check(configure(changes | {"actor_rollout_ref.rollout.enable_chunked_prefill": True})) == []


@pytest.mark.parametrize(
    ("architecture", "part"),
    [({"vocab_size": 16}, "16 tokens, its tokenizer 8"), ({"max_position_embeddings": 64}, "96 tokens, but the model")],
)
def test_doubtful_models_are_a_warning(architecture: dict, part: str, configure: Configure, tmp_path: Path) -> None:
    path = {"actor_rollout_ref.model.path": str(write_model(tmp_path / "other", **architecture))}
    (warning,) = preflight.check(configure(path))
    assert part in warning
    assert preflight.check_files(configure(path), [warning]) == [], "said before"
    (tmp_path / "other").rename(tmp_path / "tiny_qwen2")
    path["actor_rollout_ref.model.path"] = str(tmp_path / "tiny_qwen2")
    made_by_the_run = path | {"prepare": {"data": None, "model": "tiny_qwen2"}, "cache_dir": str(tmp_path)}
    assert preflight.check(configure(made_by_the_run)) == []
    assert preflight.check_files(configure(made_by_the_run)) == [warning]


# ---- reward -------------------------------------------------------------------------------------------------------

SIGNATURE = "def compute_score(data_source, solution_str, ground_truth, extra_info):\n    "
BAD_REWARDS = [
    (SIGNATURE + "return 'right'", ["returned 'right' (str)", "a finite number"]),
    (SIGNATURE + "return None", ["returned None (NoneType)"]),
    (SIGNATURE + "return float('nan')", ["returned nan (float)"]),
    (SIGNATURE + "return {'acc': 1.0}", ["a dict with the keys acc", "under 'score'"]),
    (SIGNATURE + "return {'score': '1'}", ["returned '1' (str) under 'score'"]),
    (SIGNATURE + "return 1 / 0", ["failed on a row of 'countdown'", "ZeroDivisionError: division by zero", "line 2"]),
    ("def compute_score(text):\n    return 1.0", ["can't be called", "solution_str", "extra_info"]),
    ("def score(**kwargs):\n    return 1.0", ["no function 'compute_score'", "it has score"]),
    ("import nothing_of_this_name", ["can't be imported", "ModuleNotFoundError", "nothing_of_this_name"]),
]


@pytest.mark.parametrize(("source", "parts"), BAD_REWARDS, ids=[parts[0] for _, parts in BAD_REWARDS])
def test_rewards(source: str, parts: list[str], configure: Configure, tmp_path: Path) -> None:
    config = configure()
    (tmp_path / "reward.py").write_text(source)
    assert_clear(refusal(preflight.check_files, config), str(tmp_path / "reward.py"), *parts)


@pytest.mark.parametrize(
    "body",
    ["return True", "return {'score': 1, 'acc': 0.0}", "import numpy\n    return numpy.float32(0.5)"],
)
@pytest.mark.parametrize("prefix", ["", "async "])
def test_rewards_that_verl_takes(body: str, prefix: str, configure: Configure, tmp_path: Path) -> None:
    config = configure()
    (tmp_path / "reward.py").write_text(prefix + SIGNATURE + body)
    preflight.check_files(config)


def test_what_scores_what_is_said(configure: Configure, tmp_path: Path) -> None:
    said: list[str] = []
    preflight.check_files(configure(), say=said.append)
    assert said == [f"scored by compute_score of {tmp_path / 'reward.py'}: countdown"]


def test_the_reward_gets_what_verl_gives_it(configure: Configure, tmp_path: Path) -> None:
    source = f"def compute_score(**given):\n    open({str(tmp_path / 'given')!r}, 'a').write(repr(given) + '\\n')\n"
    config = configure({"reward.custom_reward_function.reward_kwargs": {"bonus": 3}})
    (tmp_path / "reward.py").write_text(source + "    return 0.0\n")
    rows = [row()] * 3 + [row(data_source="other", reward_model={"style": "rule", "ground_truth": "7"})] * 37
    write_parquet(tmp_path / "train.parquet", rows)
    preflight.check_files(config)
    first, second = map(eval, (tmp_path / "given").read_text().splitlines())
    assert (first["data_source"], second["data_source"]) == ("countdown", "other")
    assert (first["ground_truth"], second["ground_truth"], first["bonus"]) == ("24", "7", 3)
    assert first["extra_info"]["split"] == "train" and isinstance(first["solution_str"], str)


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        ("/nonexistent/reward.py", ["/nonexistent/reward.py doesn't exist", "pkg://"]),
        ("syntax.py", ["isn't Python", "line 1"]),
    ],
)
def test_reward_files(path: str, parts: list[str], configure: Configure, tmp_path: Path) -> None:
    """Found before the run makes its inputs."""
    (tmp_path / "syntax.py").write_text("def compute_score(:")
    config = configure({"reward.custom_reward_function.path": str(tmp_path / path)})
    assert_clear(refusal(preflight.check, config), "reward.custom_reward_function.path", *parts)


def test_a_reward_in_a_package(configure: Configure) -> None:
    changes = {"path": "pkg://recipe.flowrl.no_such_module", "name": "compute_score"}
    config = configure({"reward.custom_reward_function": changes})
    assert_clear(refusal(preflight.check_files, config), "pkg://recipe.flowrl.no_such_module can't be imported")


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("nobody/knows", ["verl's own reward function", "NotImplementedError", "nobody/knows"]),
        ("numina_olympiads", ["numina_olympiads", "CVE-2026-6878", "set reward.custom_reward_function.path"]),
    ],
)
def test_verls_own_reward(source: str, parts: list[str], configure: Configure, tmp_path: Path) -> None:
    config = configure({"reward.custom_reward_function": {"path": None, "name": "compute_score"}})
    write_parquet(tmp_path / "train.parquet", [row(data_source=source)] * 40)
    assert_clear(refusal(preflight.check_files, config), *parts)


# ---- run directory and checkpoints --------------------------------------------------------------------------------


def test_a_run_dir_that_is_a_file(configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    assert_clear(refusal(preflight.check, configure()), f"run_dir: {tmp_path / 'run'} is a file")


def test_a_run_dir_that_cannot_be_written(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.os, "access", lambda path, mode: False)  # root may write anywhere
    assert_clear(refusal(preflight.check, configure()), "run_dir", "can't be written", "choose another")


def test_a_full_disk(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: SimpleNamespace(free=GIB // 10))
    assert_clear(refusal(preflight.check, configure()), "run_dir: 0.1 GiB left", "1.0 GiB needed", "make room")


def test_no_room_for_a_checkpoint(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: SimpleNamespace(free=2 * GIB))
    config = configure({"trainer.save_freq": 1})
    checkpoint.check_checkpoint_space(config, parameters=100_000_000)
    message = refusal(lambda config: checkpoint.check_checkpoint_space(config, 200_000_000), config)
    assert_clear(message, "trainer.default_local_dir: 2.0 GiB left", "2.2 GiB needed")
    checkpoint.check_checkpoint_space(configure({"trainer.save_freq": -1}), parameters=200_000_000)


@pytest.mark.parametrize("mode", ["auto", "resume_path"])
def test_a_checkpoint_that_is_not_whole(mode: str, configure: Configure, tmp_path: Path) -> None:
    """What of it, and what then: test_resume.py."""
    file = save(tmp_path / "run" / "checkpoints", 3) / "actor" / "model_world_size_1_rank_0.pt"
    given = str(tmp_path / "run" / "checkpoints" / "global_step_3") if mode == "resume_path" else None
    changes = {"trainer.resume_mode": mode, "trainer.resume_from_path": given}
    assert preflight.check(configure(changes)) == []
    file.write_bytes(b"")
    assert_clear(refusal(preflight.check, configure(changes)), str(file), "0 bytes", "trainer.resume_mode=disable")
    preflight.check(configure({"trainer.resume_mode": "disable"}))


# ---- machine ------------------------------------------------------------------------------------------------------


@pytest.fixture
def listening() -> Iterator[int]:
    """A port of this machine on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def unused() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_a_dashboard_port_in_use(configure: Configure, listening: int, unused: int) -> None:
    dashboard = {"ray_kwargs.ray_init.include_dashboard": True}
    key = "ray_kwargs.ray_init.dashboard_port"
    assert preflight.check(configure(dashboard | {key: unused})) == []
    assert preflight.check(configure({key: listening})) == [], "no dashboard, no port"
    message = refusal(preflight.check, configure(dashboard | {key: listening}))
    assert_clear(message, f"{key}={listening}", "in use", "choose another port")
    for wrong in (70000, "x"):
        assert_clear(refusal(preflight.check, configure(dashboard | {key: wrong})), f"{key}={wrong}", "another port")


def test_a_ray_cluster_that_does_not_answer(
    configure: Configure, listening: int, unused: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = {"ray_kwargs.ray_init.num_cpus": None, "ray_kwargs.ray_init.num_gpus": None}
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused}")
    assert_clear(refusal(preflight.check, configure(connect)), f"RAY_ADDRESS=127.0.0.1:{unused}", "no Ray cluster")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{listening}")
    assert preflight.check(configure(connect)) == []
    given = connect | {"ray_kwargs.ray_init.address": f"ray://127.0.0.1:{unused}"}
    assert_clear(refusal(preflight.check, configure(given)), "ray_kwargs.ray_init.address=ray://127.0.0.1")


def test_a_ray_cluster_beside_the_runs_own(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert_clear(refusal(preflight.check, configure()), "RAY_ADDRESS=10.0.0.1:6379", "unset RAY_ADDRESS")
    assert preflight.check(configure({"ray_kwargs.ray_init.address": "local"})) == []


def test_too_few_slots_for_the_ranks(configure: Configure) -> None:
    changes = {"ray_kwargs.ray_init.num_cpus": 4, f"{ROLLOUT}.tensor_model_parallel_size": 1}
    assert_clear(refusal(preflight.check, configure(changes)), "num_cpus=4", "1 rank(s)", "set it to 5 or more")


@pytest.mark.parametrize(
    ("ranks", "tensor_parallel", "gigabytes", "enough"),
    [(1, 1, 3.8, False), (1, 1, 4.0, True), (2, 1, 6.5, False), (2, 1, 6.7, True), (2, 2, 5.1, True)],
)
def test_memory(
    ranks: int,
    tensor_parallel: int,
    gigabytes: float,
    enough: bool,
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: gigabytes * 1e9)
    config = configure({"trainer.n_gpus_per_node": ranks, f"{ROLLOUT}.tensor_model_parallel_size": tensor_parallel})
    if enough:
        preflight.check(config)
    else:
        message = refusal(preflight.check, config)
        assert_clear(message, f"{gigabytes} GB of memory are available", "GB needed", "free memory")
        assert ("use fewer ranks" in message) == (ranks > 1)


def test_memory_for_a_large_model(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 8e9)
    machine.check_memory(configure(), parameters=135_000_000)
    message = refusal(lambda config: machine.check_memory(config, 500_000_000), configure())
    assert_clear(message, "8.0 GB of memory are available", "17.5 GB needed", "500M parameters")


def test_memory_in_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("1000000000\n")
    (tmp_path / "memory.current").write_text("900000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 300000000\n")
    monkeypatch.setattr(machine, "own_groups", lambda: [tmp_path / "missing", tmp_path])
    assert machine.available_memory() == 400_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_memory() > 400_000_000


def test_a_small_dev_shm(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=64 * 2**20))
    monkeypatch.setattr(checkpoint, "_check_free", lambda *args: None)
    message = refusal(preflight.check, configure())
    assert_clear(message, "/dev/shm has 64 MiB free", "302 MiB needed", "--shm-size=1g")


def test_no_gpu(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.Path, "exists", lambda path: str(path).startswith("/dev") is False)
    gpu = {"trainer.device": "cuda"}
    message = refusal(machine.check_machine, configure(gpu))
    assert_clear(message, "trainer.device=cuda", "no GPU", "choose cluster=cpu")
    machine.check_machine(configure(gpu | {"trainer.nnodes": 2}))


def test_nothing_is_written(configure: Configure, tmp_path: Path) -> None:
    config = configure()
    before = sorted(tmp_path.rglob("*"))
    preflight.check(config)
    preflight.check_files(config)
    assert sorted(tmp_path.rglob("*")) == before
