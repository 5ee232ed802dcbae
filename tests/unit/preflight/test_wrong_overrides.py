"""Wrong and contradictory overrides over every group of the configuration, each as a person would type it.

Each is refused by the checks that run before Ray starts, in seconds, with a message that names the key, the value and a
way out. ``{tmp}`` stands for a directory with a sound model, sound data and wrong files of every kind.
"""

import pickle
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict
from test_preflight import row, write_model, write_parquet

from recipe.flowrl import preflight
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.project import CONFIG_DIR
from recipe.flowrl.preflight import machine, overrides
from verl_ext.source import register_verl_configs

ACTOR, ROLLOUT, REF, MODEL = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "ref", "model"))
RAY = "ray_kwargs.ray_init"
REWARD = "reward.custom_reward_function"

# What is typed -> what the message must hold: key, value, way out.
NAMES = {
    "algo=flowr": ["algo=flowr", "did you mean 'flowrl'?"],
    "model=tiny_quen2": ["model=tiny_quen2", "did you mean 'tiny_qwen2'?"],
    "experiment=countdown": ["experiment=countdown", "countdown_cpu"],
    "cluster=2x9": ["cluster=2x9", "1x8"],
    "data.train_file=x": ["data.train_file=x", "did you mean data.train_files?"],
    "optim.lr=1": ["optim.lr=1", "actor_rollout_ref.actor.optim.lr"],
    "trainer.total_steps=5": ["trainer.total_steps=5", "did you mean"],
    "+data.train_batch_size=4": ["+data.train_batch_size=4", "leave out the '+'"],
    "slurm.tim=1": ["slurm.tim=1", "did you mean slurm.time?"],
}
VALUES = {
    # the run itself
    "run_dir={tmp}/file/run": ["run_dir", "{tmp}/file is a file", "choose another"],
    "deterministic=maybe": ["deterministic", "'maybe'", "true | false"],
    "dryrun=maybe": ["dryrun", "'maybe'", "true | false"],
    "slurm.gpu=h100": ["slurm.gpu", "'h100'", "'h100_80gb'", "or null"],
    "stop_deadline=-5": ["stop_deadline", "-5", "> 0"],
    "watchdog_s=0": ["watchdog_s", "0", "> 0", "null (no limit)"],
    "max_skipped_updates=0": ["max_skipped_updates", "0", "an integer >= 1"],
    "max_ungraded_steps=0": ["max_ungraded_steps", "0", "an integer >= 1"],
    "slurm.time=2days": ["slurm.time", "'2days'", "24:00:00"],
    "slurm.time=00:00:00": ["slurm.time", "'00:00:00'", "hours:minutes:seconds"],
    "slurm.notice_s=60": ["slurm.notice_s: got 60", "above the 60 that the end of a job takes"],
    "slurm.notice_s=90000": ["slurm.notice_s=90000", "slurm.time=24:00:00", "less notice or more time"],
    "prepare.model=tiny": ["prepare.model=tiny", "tiny_qwen2"],
    # data
    "data.train_files=/nonexistent.parquet": ["data.train_files", "/nonexistent.parquet doesn't exist", "give a"],
    "data.train_files=null": ["data.train_files", "no file given", "set it to a parquet file"],
    "data.train_files={tmp}": ["data.train_files", "is a directory", "give a parquet file"],
    "data.val_files={tmp}/cut.parquet": ["data.val_files", "cut.parquet can't be read", "make it again"],
    "data.val_files={tmp}/data.csv": ["data.val_files", "data.csv", "convert it"],
    "data.prompt_key=question": ["'question'", "it has data_source, prompt"],
    "data.train_batch_size=2.5": ["data.train_batch_size", "2.5 (float)", "an integer >= 1"],
    "data.train_batch_size=1000": ["data.train_batch_size=1000", "40 rows", "set it to 40 or less"],
    "data.train_max_samples=8": ["data.train_batch_size=32", "8 rows", "set it to 8 or less"],
    "data.train_max_samples=0": ["data.train_max_samples", "0 (int)", "or -1 (all)"],
    "data.val_max_samples=some": ["data.val_max_samples", "'some'", "or -1 (all)"],
    "data.max_prompt_length=0": ["data.max_prompt_length", "0 (int)", "an integer >= 1"],
    "data.max_response_length=-1": ["data.max_response_length", "-1 (int)", "an integer >= 1"],
    "data.truncation=cut": ["data.truncation", "'cut'", "'error' | 'left'"],
    "data.shuffle=1": ["data.shuffle", "1 (int)", "true | false"],
    "data.dataloader_num_workers=-2": ["data.dataloader_num_workers", "-2", ">= 0"],
    # model
    f"{MODEL}.path=null": [f"{MODEL}.path", "isn't set", "choose an experiment"],
    f"{MODEL}.path=/nonexistent": [f"{MODEL}.path", "/nonexistent doesn't exist", "give a model's directory"],
    f"{MODEL}.path={{tmp}}": [f"{MODEL}.path", "{tmp} is no model", "Give a Hugging Face model directory"],
    f"{MODEL}.lora_rank=2000": [f"{MODEL}.lora_rank=2000", "up to 512"],
    f"{MODEL}.lora_alpha=0": [f"{MODEL}.lora_alpha", "0 (int)", "an integer >= 1"],
    # actor and reference
    f"{ACTOR}.strategy=megatron": [f"{ACTOR}.strategy", "'megatron'", "'fsdp2'"],
    f"{ACTOR}.strategy=fsdp": [f"{ACTOR}.strategy=fsdp", "set it to fsdp2"],
    f"{ACTOR}.optim.lr=fast": [f"{ACTOR}.optim.lr", "'fast'", ">= 0"],
    f"{ACTOR}.optim.lr=nan": [f"{ACTOR}.optim.lr", "nan", "finite"],
    f"{ACTOR}.optim.weight_decay=-0.1": [f"{ACTOR}.optim.weight_decay", "-0.1", ">= 0"],
    f"{ACTOR}.optim.lr_scheduler_type=linear": [f"{ACTOR}.optim.lr_scheduler_type", "'linear'", "'cosine'"],
    f"{ACTOR}.optim.lr_warmup_steps_ratio=10": [f"{ACTOR}.optim.lr_warmup_steps_ratio", "10", "[0, 1]"],
    f"{ACTOR}.optim.clip_grad=0": [f"{ACTOR}.optim.clip_grad", "0 (int)", "> 0"],
    f"{ACTOR}.clip_ratio=1.5": [f"{ACTOR}.clip_ratio", "1.5", "[0, 1)"],
    f"{ACTOR}.loss_agg_mode=mean": [f"{ACTOR}.loss_agg_mode", "'mean'", "'token-mean'"],
    f"{ACTOR}.policy_loss.loss_mode=ppo": [f"{ACTOR}.policy_loss.loss_mode=ppo", "vanilla"],
    f"{ACTOR}.kl_loss_type=k4": [f"{ACTOR}.kl_loss_type", "'k4'", "'k3'"],
    f"{ACTOR}.kl_loss_coef=-1": [f"{ACTOR}.kl_loss_coef", "-1", ">= 0"],
    f"{ACTOR}.entropy_coeff=none": [f"{ACTOR}.entropy_coeff", "'none'", "a finite number"],
    f"{ACTOR}.ppo_epochs=0": [f"{ACTOR}.ppo_epochs", "0 (int)", "an integer >= 1"],
    f"{ACTOR}.ppo_mini_batch_size=64": [f"{ACTOR}.ppo_mini_batch_size=64", "set it to 32"],
    f"{ACTOR}.ppo_micro_batch_size_per_gpu=7": [f"{ACTOR}.ppo_micro_batch_size_per_gpu=7", "set it to 8"],
    f"{ACTOR}.ppo_micro_batch_size=8": [f"{ACTOR}.ppo_micro_batch_size=8", "ppo_micro_batch_size_per_gpu"],
    f"{ACTOR}.ulysses_sequence_parallel_size=2": [f"{ACTOR}.ulysses_sequence_parallel_size=2", "set it to 1"],
    f"{ACTOR}.checkpoint.save_contents=[weights]": [f"{ACTOR}.checkpoint.save_contents", "'weights'", "optimizer"],
    f"{REF}.log_prob_micro_batch_size_per_gpu=null": [
        f"{REF}.log_prob_micro_batch_size_per_gpu",
        "isn't set",
        "set it",
    ],
    f"{REF}.strategy=fsdp": [f"{REF}.strategy=fsdp", "set it to fsdp2"],
    # rollout
    f"{ROLLOUT}.name=hf": [f"{ROLLOUT}.name=hf", "set it to vllm"],
    f"{ROLLOUT}.mode=sync": [f"{ROLLOUT}.mode", "'sync'", "'async'"],
    f"{ROLLOUT}.n=0": [f"{ROLLOUT}.n", "0 (int)", "an integer >= 1"],
    f"{ROLLOUT}.temperature=-1": [f"{ROLLOUT}.temperature", "-1", ">= 0"],
    f"{ROLLOUT}.top_p=0": [f"{ROLLOUT}.top_p", "0 (int)", "(0, 1]"],
    f"{ROLLOUT}.top_k=0": [f"{ROLLOUT}.top_k", "0 (int)", "-1 (all tokens)"],
    f"{ROLLOUT}.val_kwargs.top_p=2": [f"{ROLLOUT}.val_kwargs.top_p", "2 (int)", "(0, 1]"],
    f"{ROLLOUT}.val_kwargs.n=many": [f"{ROLLOUT}.val_kwargs.n", "'many'", "an integer >= 1"],
    f"{ROLLOUT}.gpu_memory_utilization=90": [f"{ROLLOUT}.gpu_memory_utilization", "90 (int)", "(0, 1]"],
    f"{ROLLOUT}.max_model_len=32": [f"{ROLLOUT}.max_model_len=32", "set it to 96 or more"],
    f"{ROLLOUT}.max_num_batched_tokens=64": [f"{ROLLOUT}.max_num_batched_tokens=64", "set it to 96 or more"],
    f"{ROLLOUT}.tensor_model_parallel_size=3": [f"{ROLLOUT}.tensor_model_parallel_size=3", "set it to 2"],
    f"{ROLLOUT}.free_cache_engine=true": [f"{ROLLOUT}.free_cache_engine=True", "set it to False"],
    f"{ROLLOUT}.checkpoint_engine.update_weights_bucket_megabytes=1": ["update_weights_bucket_megabytes=1", "to 4"],
    # FlowRL
    "flowrl.beta=0": ["flowrl.beta", "0 (int)", "> 0"],
    "flowrl.beta=large": ["flowrl.beta", "'large'", "a finite number"],
    "flowrl.clip_low=1": ["flowrl.clip_low", "1 (int)", "[0, 1)"],
    "flowrl.importance_weight=clamp": ["flowrl.importance_weight", "'clamp'", "'clamp_max'"],
    "flowrl.partition=fixed": ["flowrl.partition", "'fixed'", "'constant'"],
    "flowrl.partition_depth=0": ["flowrl.partition_depth", "0 (int)", "an integer >= 1"],
    "flowrl.partition_detach=no_": ["flowrl.partition_detach", "'no_'", "true | false"],
    # algorithm
    "algorithm.adv_estimator=gae": ["algorithm.adv_estimator=gae", "grpo", "algo=NAME"],
    "algorithm.gamma=1.1": ["algorithm.gamma", "1.1", "[0, 1]"],
    "algorithm.lam=-1": ["algorithm.lam", "-1", "[0, 1]"],
    "algorithm.kl_penalty=js": ["algorithm.kl_penalty", "'js'", "'kl'"],
    "algorithm.kl_ctrl.type=linear": ["algorithm.kl_ctrl.type", "'linear'", "'fixed' | 'adaptive'"],
    "algorithm.reference_reset_steps=5": ["algorithm.reference_reset_steps=5", "unset it"],
    # reward
    f"{REWARD}.path=/nonexistent.py": [f"{REWARD}.path", "/nonexistent.py doesn't exist", "pkg://"],
    f"{REWARD}.name=score": [f"{REWARD}.name", "'score'", "compute_score"],
    f"{REWARD}.path={{tmp}}/signature.py": ["signature.py", "can't be called", "data_source, solution_str"],
    f"{REWARD}.path={{tmp}}/text.py": ["text.py returned 'good'", "must return a finite number"],
    "reward.num_workers=0": ["reward.num_workers", "0 (int)", "an integer >= 1"],
    # trainer
    "trainer.nnodes=0": ["trainer.nnodes", "0 (int)", "an integer >= 1"],
    "trainer.n_gpus_per_node=two": ["trainer.n_gpus_per_node", "'two'", "an integer >= 1"],
    "trainer.n_gpus_per_node=3": ["3 data-parallel ranks", "set"],
    "trainer.device=gpu": ["trainer.device", "'gpu'", "'cuda'"],
    "trainer.total_training_steps=0": ["trainer.total_training_steps", "0 (int)", "all epochs"],
    "trainer.save_freq=0": ["trainer.save_freq", "0 (int)", "-1 (never)"],
    "trainer.test_freq=often": ["trainer.test_freq", "'often'", "-1 (never)"],
    "trainer.max_actor_ckpt_to_keep=0": ["trainer.max_actor_ckpt_to_keep", "0 (int)", "null (all)"],
    "trainer.logger=[tensorbord]": ["trainer.logger", "'tensorbord'", "did you mean 'tensorboard'?"],
    "trainer.resume_mode=resume_path": ["trainer.resume_mode=resume_path", "trainer.resume_from_path", "set it"],
    "trainer.resume_from_path=/a/global_step_3": ["/a/global_step_3 has no effect", "trainer.resume_mode=resume_path"],
    "trainer.v1.trainer_mode=async": ["trainer.v1.trainer_mode=async", "colocate_async"],
    "trainer.val_only=true trainer.val_before_train=false": ["trainer.val_only=true", "val_before_train=true"],
    # Ray and its queue
    f"{RAY}.num_cpus=2": [f"{RAY}.num_cpus=2", "set it to 5 or more"],
    f"{RAY}.address=127.0.0.1:1": [f"{RAY}.address=127.0.0.1:1", "set num_cpus and num_gpus to null"],
    f"{RAY}.object_store_memory=1000": [f"{RAY}.object_store_memory", "1000", "at least 78643200 bytes"],
    f"{RAY}.runtime_env.env_vars.VERL_PLATFORM=cuda": ["VERL_PLATFORM=cuda", "set it to cpu"],
    "transfer_queue.backend.SimpleStorage.num_data_storage_units=0": ["num_data_storage_units", "0", ">= 1"],
}


@pytest.fixture(scope="module")
def composed() -> Iterator[bytes]:
    """``experiment=countdown_cpu``, not resolved, pickled: that copies fast."""
    register_verl_configs()
    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        config = compose("flowrl", overrides=["experiment=countdown_cpu"], return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    yield pickle.dumps(config)
    HydraConfig.instance().cfg = None


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp = tmp_path_factory.mktemp("files")
    write_model(tmp / "model")
    truth = {"style": "rule", "ground_truth": '{"numbers": [4, 6], "target": 24, "n_solutions": 1}'}
    data = write_parquet(tmp / "data.parquet", [row(reward_model=truth)] * 40)
    (tmp / "cut.parquet").write_bytes(data.read_bytes()[:200])
    (tmp / "data.csv").write_text("prompt,answer\n")
    (tmp / "file").touch()
    (tmp / "signature.py").write_text("def compute_score(prompt, response):\n    return 1.0\n")
    (tmp / "text.py").write_text("def compute_score(data_source, solution_str, ground_truth, extra_info):\n"
                                 "    return 'good'\n")  # fmt: skip
    return tmp


def configured(composed: bytes, files: Path, typed: str) -> DictConfig:
    """The experiment on ``files``, with the overrides of ``typed`` (apart by spaces)."""
    config = pickle.loads(composed)
    sound = [
        f"run_dir={files}/run",
        f"data.train_files={files}/data.parquet",
        f"data.val_files={files}/data.parquet",
        f"actor_rollout_ref.model.path={files}/model",
        "prepare.data=null",
        "prepare.model=null",
    ]
    for override in OverridesParser.create().parse_overrides([*sound, *typed.split()]):
        OmegaConf.update(config, override.key_or_group, override.value(), force_add=True)
    return config


def assert_refused_clearly(message: str, seconds: float, parts: list[str], files: Path) -> None:
    assert seconds < 10
    assert message.count("\n") <= 1 and len(message) < 420, message
    for part in parts:
        assert part.replace("{tmp}", str(files)) in message, message


def test_there_are_enough() -> None:
    assert len(NAMES) + len(VALUES) >= 60


def test_without_a_wrong_override_nothing_is_refused(
    composed: bytes, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 64e9)
    config = configured(composed, files, "")
    preflight.check(config)
    OmegaConf.resolve(config)
    preflight.check_files(config)


@pytest.fixture(scope="module")
def problems() -> dict[str, str]:
    """Of all names in one composition, which costs a second."""
    register_verl_configs()
    with initialize_config_dir(str(CONFIG_DIR), version_base=None):
        return dict(zip(NAMES, overrides.problems(list(NAMES), CONFIG_DIR), strict=True))


@pytest.mark.parametrize("typed", NAMES)
def test_a_name_that_is_wrong(typed: str, problems: dict[str, str], files: Path) -> None:
    assert_refused_clearly(problems[typed], 0, NAMES[typed], files)


@pytest.mark.parametrize("typed", VALUES)
def test_a_value_that_is_wrong(typed: str, composed: bytes, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 64e9)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = configured(composed, files, typed.replace("{tmp}", str(files)))
    began = time.process_time()
    with pytest.raises(UserError) as refused:
        preflight.check(config)
        OmegaConf.resolve(config)
        preflight.check_files(config)
    assert_refused_clearly(str(refused.value), time.process_time() - began, VALUES[typed], files)
