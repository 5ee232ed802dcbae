"""A rehearsal's configuration is the run's, but for what it says it changed; what is wrong with the run is refused."""

import functools
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from test_configs import options
from transformers import AutoModelForCausalLM, AutoTokenizer

from recipe.flowrl.common.errors import UserError, exit_status_of
from recipe.flowrl.models.shrink import config_of as config_of_model
from recipe.flowrl.models.shrink import shrunk
from recipe.flowrl.plan.architecture import KNOWN, load_architecture
from recipe.flowrl.preflight import machine, resolved
from recipe.flowrl.preflight.batches import check_batches
from recipe.flowrl.preflight.compose import compose_unresolved
from recipe.flowrl.preflight.options import check_options
from recipe.flowrl.preflight.separate import OWN_SOCKETS, check_mode, is_separate, servers_ranks
from recipe.flowrl.prepare.own_tasks import MAKERS
from recipe.flowrl.rehearsal import rehearsal_and_account
from recipe.flowrl.rehearsal.aftermath import check_agreement, exercised
from recipe.flowrl.rehearsal.inputs import Inputs, inputs_of
from recipe.flowrl.rehearsal.policy import PHRASES, Policy
from recipe.flowrl.rehearsal.sample import Sample
from recipe.flowrl.rehearsal.table import difference_lines
from recipe.flowrl.rehearsal.transform import changes, leaves, rehearsal_of, settings
from recipe.flowrl.tasks.math import reward as math
from verl_ext.faults import RunFault

CLUSTERS = [name for name in options("cluster") if name[0].isdigit()]
RUNS = [(experiment, cluster) for experiment in ("math_7b", "math_32b", "code_7b") for cluster in CLUSTERS]
RUNS += [("countdown_cpu", "cpu"), ("distribution", "cpu")]

FOLLOWERS = {
    "actor_rollout_ref.nonfinite.directory",
    "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu",
    "actor_rollout_ref.rollout.n_gpus_per_node",
    "actor_rollout_ref.rollout.prometheus.served_model_name",
    "actor_rollout_ref.rollout.response_length",
    "critic.ppo_mini_batch_size",
    "distillation.teacher_models.teacher_model.inference.dtype",
    "distillation.teacher_models.teacher_model.inference.response_length",
    "ray_kwargs.ray_init.runtime_env.env_vars.MLFLOW_TRACKING_URI",
    "ray_kwargs.ray_init.runtime_env.env_vars.SWANLAB_LOG_DIR",
    "ray_kwargs.ray_init.runtime_env.env_vars.TENSORBOARD_DIR",
    "ray_kwargs.ray_init.runtime_env.env_vars.TRACKIO_DIR",
    "ray_kwargs.ray_init.runtime_env.env_vars.VERL_FILE_LOGGER_PATH",
    "ray_kwargs.ray_init.runtime_env.env_vars.WANDB_DIR",
    "stop_file",
}
"""Options that refer to one that a rehearsal sets, and change with it."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty one."""
    monkeypatch.setenv("FLOWRL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@functools.cache
def config_of(*overrides: str) -> DictConfig:
    """Not to be changed: it is the same object for the same arguments."""
    return compose_unresolved(["cache_dir=/nowhere", *overrides])


def rehearsed(*overrides: str) -> tuple[DictConfig, DictConfig]:
    """The configurations of the run and of its rehearsal, resolved; the latter's options are checked."""
    config = config_of(*overrides)
    real = resolved(config)
    inputs = inputs_of(real)
    rehearsal = resolved(rehearsal_of(config, settings(real, inputs)))
    check_options(rehearsal, {**MAKERS, **inputs.makers})
    return real, rehearsal


@pytest.mark.parametrize(("experiment", "cluster"), RUNS)
def test_what_changes_is_listed_and_nothing_else_changes(experiment: str, cluster: str) -> None:
    config = config_of(f"experiment={experiment}", f"cluster={cluster}")
    real = resolved(config)
    set_here = settings(real, inputs_of(real))
    rehearsal = rehearsal_of(config, set_here)
    before, after = (OmegaConf.to_container(side) for side in (real, resolved(rehearsal)))
    flat_before, flat_after = dict(leaves(before)), dict(leaves(after))
    differing = {
        name
        for name in flat_before.keys() | flat_after.keys()
        if (flat_before.get(name) or None) != (flat_after.get(name) or None)
    }
    listed = changes(config, rehearsal)
    told = {change.option for change in listed if change.run or change.rehearsal}
    assert {change.option for change in listed} >= differing and told <= differing
    allowed = {option for group in set_here.values() for option in group} | FOLLOWERS
    assert differing <= allowed, "an option changed that the rehearsal doesn't set"
    text = " ".join(difference_lines(listed, set_here))
    assert not [name for name in differing if name.rpartition("env_vars.")[2] not in text]


@pytest.mark.parametrize(("experiment", "cluster"), RUNS)
def test_ratios_stay_and_sizes_shrink(experiment: str, cluster: str) -> None:
    real, rehearsal = rehearsed(f"experiment={experiment}", f"cluster={cluster}")

    def updates(config: DictConfig) -> int:
        return config.data.train_batch_size // config.actor_rollout_ref.actor.ppo_mini_batch_size

    assert updates(rehearsal) == updates(real)
    worker, before = rehearsal.actor_rollout_ref, real.actor_rollout_ref
    for option in ("rollout.n", "rollout.temperature", "actor.optim", "flowrl", "actor.use_dynamic_bsz"):
        assert OmegaConf.select(worker, option) == OmegaConf.select(before, option), option
    for option in ("use_remove_padding", "use_fused_kernels", "enable_gradient_checkpointing", "lora_rank"):
        assert worker.model[option] == before.model[option], option
    assert rehearsal.reward.custom_reward_function == real.reward.custom_reward_function
    assert rehearsal.data.train_batch_size * worker.rollout.n <= 256
    assert rehearsal.data.max_response_length <= 64
    assert (rehearsal.trainer.nnodes, rehearsal.trainer.device) == (1, "cpu")
    ranks = real.trainer.nnodes * real.trainer.n_gpus_per_node
    assert rehearsal.trainer.n_gpus_per_node == (2 if real.trainer.device == "cuda" else ranks)
    assert rehearsal.run_dir == f"{real.run_dir}-rehearsal"
    assert rehearsal.trainer.default_local_dir.startswith(rehearsal.run_dir)


@pytest.mark.parametrize("algo", options("algo"))
def test_a_rehearsal_of_any_algorithm_passes_the_checks(algo: str) -> None:
    _, rehearsal = rehearsed("experiment=math_7b", f"algo={algo}", "cluster=1x8")
    check_batches(rehearsal)
    assert not OmegaConf.select(rehearsal, "algorithm.filter_groups.enable")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("experiment", [["experiment=math_7b", "cluster=1x8"], ["experiment=countdown_cpu"]])
def test_a_rehearsal_replays_as_well(experiment: list[str], share: float) -> None:
    size = "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8"
    _, rehearsal = rehearsed(*experiment, "algo=tb_replay", f"algorithm.replay.share={share}", size)
    check_batches(rehearsal)
    assert 0 < rehearsal.algorithm.replay.share < 1


def test_what_needs_cuda_itself_is_switched_off_and_said_a_line_each(cache: Path) -> None:
    model, worker = "actor_rollout_ref.model", "actor_rollout_ref"
    asked = {
        f"{model}.fused_kernel_options.impl_backend": ("triton", "torch"),
        f"{model}.use_liger": ("true", False),
        f"{worker}.actor.ulysses_sequence_parallel_size": ("2", 1),
        f"{worker}.actor.fsdp_config.offload_policy": ("true", False),
        f"{worker}.rollout.data_parallel_size": ("2", 1),
    }
    run = [f"{key}={value}" for key, (value, _) in asked.items()] + [f"{worker}.actor.ppo_max_token_len_per_gpu=5120"]
    _, rehearsal = rehearsed("experiment=math_7b", "cluster=1x8", *run)
    for key, (_, here) in asked.items():
        assert OmegaConf.select(rehearsal, key) == here, key
    check_batches(rehearsal)
    lines = rehearsal_and_account(
        compose_unresolved(["experiment=math_7b", "cluster=1x8", "dryrun=true", *run])
    ).account
    sleep, graphs = f"{worker}.rollout.free_cache_engine", f"{worker}.rollout.enforce_eager"
    for key in (*asked, sleep, graphs, f"{model}.override_config.attn_implementation"):
        assert sum(line.startswith(f"not here: {key}=") for line in lines) == 1, key


def test_offloading_fused_log_probs_and_packed_sequences_stay() -> None:
    asked = [
        "actor_rollout_ref.actor.fsdp_config.param_offload=true",
        "actor_rollout_ref.actor.fsdp_config.optimizer_offload=true",
        "actor_rollout_ref.ref.fsdp_config.param_offload=true",
    ]
    _, rehearsal = rehearsed("experiment=math_7b", "cluster=1x8", *asked)
    for key in (override.partition("=")[0] for override in asked):
        assert OmegaConf.select(rehearsal, key) is True
    model = rehearsal.actor_rollout_ref.model
    assert model.use_fused_kernels and model.use_remove_padding and model.enable_gradient_checkpointing


def test_fused_log_probs_of_other_backends_are_refused_on_a_cpu() -> None:
    model = "actor_rollout_ref.model"
    overrides = [f"{model}.use_fused_kernels=true", f"{model}.fused_kernel_options.impl_backend=triton"]
    config = resolved(compose_unresolved(["experiment=countdown_cpu", *overrides]))
    with pytest.raises(UserError, match="impl_backend=triton .*set it to torch"):
        check_options(config)


@pytest.mark.parametrize(
    ("overrides", "ranks"),
    [
        (["trainer.n_gpus_per_node=1", "trainer.nnodes=1"], 1),
        (["actor_rollout_ref.rollout.n=5"], 1),
        (["actor_rollout_ref.rollout.n=6"], 2),
    ],
)
def test_ranks_share_every_mini_batch(overrides: list[str], ranks: int) -> None:
    _, rehearsal = rehearsed("experiment=math_7b", "cluster=1x8", *overrides)
    assert rehearsal.trainer.n_gpus_per_node == ranks
    check_batches(rehearsal)


@pytest.mark.parametrize("version", ["0.24.0", "0.24.0+cu130"])
def test_an_environment_for_gpus_is_refused_in_one_line(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "version", lambda name: version)
    with pytest.raises(UserError, match=f"vllm {re.escape(version)} is for GPUs: use the CPU environment") as refused:
        rehearsal_and_account(compose_unresolved(["experiment=math_7b", "cluster=1x8", "dryrun=true"]))
    assert "\n" not in str(refused.value)


def test_micro_batches_by_sequences_divide() -> None:
    micro = [
        f"actor_rollout_ref.{name}_micro_batch_size_per_gpu=4"
        for name in ("actor.ppo", "rollout.log_prob", "ref.log_prob")
    ]
    _, rehearsal = rehearsed(
        "experiment=math_7b", "cluster=1x8", "actor_rollout_ref.actor.use_dynamic_bsz=false", *micro
    )
    check_batches(rehearsal)
    assert rehearsal.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu == 4


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (["flowrl.beta=-1"], "flowrl.beta: got -1"),
        (["dryrun=maybe"], "dryrun: got 'maybe'"),
        (["actor_rollout_ref.actor.ppo_mini_batch_size=12"], "=12 doesn't divide data.train_batch_size=512"),
        (["actor_rollout_ref.rollout.tensor_model_parallel_size=3"], "doesn't divide the 8 ranks"),
        (["actor_rollout_ref.rollout.max_model_len=4096"], "max_prompt_length + data.max_response_length = 10240"),
        (["reward.custom_reward_function.path=/nowhere.py"], "/nowhere.py doesn't exist"),
        (["data_dir=/nowhere"], "/nowhere/train.parquet doesn't exist"),
        (["data.val_files=/nowhere.parquet"], "doesn't exist"),
        (["actor_rollout_ref.model.path=/nowhere"], "/nowhere is no directory with a config.json"),
        (["actor_rollout_ref.actor.loss_agg_mode=mean"], "actor.loss_agg_mode"),
    ],
)
def test_what_the_run_would_refuse_is_refused(overrides: list[str], part: str, cache: Path) -> None:
    with pytest.raises(UserError, match="") as refused:
        rehearsal_and_account(compose_unresolved(["experiment=math_7b", "cluster=1x8", "dryrun=true", *overrides]))
    assert part in str(refused.value)
    assert not cache.exists(), "nothing is written"


def test_the_account_says_what_stands_in(cache: Path) -> None:
    lines = rehearsal_and_account(compose_unresolved(["experiment=code_7b", "cluster=1x8", "dryrun=true"])).account
    text = "\n".join(lines)
    assert "rehearsal of code_7b, flowrl" in lines[0]
    assert "of bytes and ChatML; the tokenizer of deepseek-ai/DeepSeek-R1-Distill-Qwen-7B isn't on this machine" in text
    assert "a few problems of our own" in text and f"{cache}/code/train.parquet isn't there" in text


def test_data_that_is_there_is_used(tmp_path: Path) -> None:
    Sample("math").ensure(tmp_path / "math", print)
    real = resolved(config_of("experiment=math_7b", "cluster=1x8", f"data_dir={tmp_path / 'math'}"))
    inputs = inputs_of(real)
    assert inputs.sample is None
    assert "data.train_files" not in settings(real, inputs)["what goes in"]


def test_a_small_model_stays_as_it_is(tmp_path: Path) -> None:
    policy("math", load_architecture("Qwen/Qwen2.5-7B")).ensure(tmp_path / "small", print)
    config = config_of("experiment=math_7b", "cluster=1x8", f"actor_rollout_ref.model.path={tmp_path / 'small'}")
    inputs = inputs_of(resolved(config))
    assert inputs.policy is None
    assert "actor_rollout_ref.model.path" not in settings(resolved(config), inputs)["what goes in"]


def policy(domain: str, architecture: dict, tokenizer: Path | None = None) -> Policy:
    return Policy(f"rehearsal_{domain}", shrunk(architecture), domain, tokenizer)


def test_the_architecture_is_the_runs() -> None:
    for file in KNOWN.glob("*.json"):
        architecture = json.loads(file.read_text())
        small, large = config_of_model(shrunk(architecture)), config_of_model(architecture)
        for name in (
            "architectures",
            "model_type",
            "tie_word_embeddings",
            "rope_parameters",
            "rms_norm_eps",
            "hidden_act",
        ):
            assert getattr(small, name) == getattr(large, name)
        assert small.hidden_size < large.hidden_size


@pytest.mark.parametrize("domain", PHRASES)
@pytest.mark.parametrize("model_type", ["qwen2", "llama"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_policy_writes_its_phrases(tmp_path: Path, domain: str, model_type: str, tied: bool) -> None:
    made = policy(domain, {"model_type": model_type, "tie_word_embeddings": tied})
    made.ensure(tmp_path / "model", print)
    tokenizer, model = (kind.from_pretrained(tmp_path / "model") for kind in (AutoTokenizer, AutoModelForCausalLM))
    assert model.config.vocab_size == len(tokenizer) and model.num_parameters() < 200_000
    assert model.get_input_embeddings().weight.nbytes <= made.largest_tensor_megabytes * 2**20
    messages = [{"role": "user", "content": "Any text, and then more of it. " * 20}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    torch.manual_seed(0)
    written = model.generate(**prompt, max_new_tokens=40, do_sample=True, num_return_sequences=32)
    texts = tokenizer.batch_decode(written[:, prompt["input_ids"].shape[1] :], skip_special_tokens=True)
    assert sum(text in PHRASES[domain] for text in texts) >= 24
    assert len(set(texts)) >= 3


def test_the_runs_own_tokenizer_is_taken(tmp_path: Path) -> None:
    from recipe.flowrl.tasks.tiny_qwen2 import build_tokenizer

    own = tmp_path / "own"
    build_tokenizer().save_pretrained(own)
    (own / "config.json").write_text(json.dumps(load_architecture("Qwen/Qwen2.5-7B")))
    real = resolved(config_of("experiment=math_7b", "cluster=1x8", f"actor_rollout_ref.model.path={own}"))
    inputs = inputs_of(real)
    assert inputs.policy.tokenizer == own and any("the run's own" in note for note in inputs.notes)
    inputs.policy.ensure(tmp_path / "model", print)
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "model").get_vocab() == AutoTokenizer.from_pretrained(own).get_vocab()
    )


def test_the_weight_sync_has_room_for_a_large_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Policy, "largest_tensor_megabytes", 40)
    _, rehearsal = rehearsed("experiment=math_7b", "cluster=1x8")
    assert rehearsal.actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes == 40


def test_a_model_that_cannot_be_shrunk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="can't be built"):
        policy("math", {"model_type": "no_such_model"}).ensure(tmp_path / "model", print)


@pytest.mark.parametrize("domain", ["math", "code"])
def test_the_sample_is_in_the_papers_schema(tmp_path: Path, domain: str) -> None:
    Sample(domain).ensure(tmp_path / "sample", print)
    rows = pq.read_table(tmp_path / "sample" / "train.parquet").to_pylist()
    assert len(rows) >= 32, "two batches"
    assert json.loads((tmp_path / "sample" / "manifest.json").read_text())["files"]["train.parquet"]["rows"] == len(
        rows
    )
    experiment = {"math": "math_7b", "code": "code_7b"}[domain]
    real, rehearsal = rehearsed(f"experiment={experiment}", "cluster=1x8")
    given = [rehearsal.data.val_files] if domain == "code" else rehearsal.data.val_files
    assert all((tmp_path / "sample" / Path(name).name).is_file() for name in given)
    assert [Path(name).name for name in given] == [Path(name).name for name in given]
    if domain == "math":
        answers = {row["reward_model"]["ground_truth"] for row in rows}
        assert {"3", "7"} < answers
        for row in rows:
            truth = row["reward_model"]["ground_truth"]
            assert math.compute_score(row["data_source"], f"Answer: {truth}", truth, rule="math_dapo")["score"] == 1.0


def test_without_a_sample_nothing_is_said_to_be_made() -> None:
    assert Inputs(policy=None, sample=None).makers == {}
    assert set(Inputs(policy=None, sample=Sample("math")).makers) == {"rehearsal_math"}


def test_the_account_afterwards(tmp_path: Path) -> None:
    metrics = {
        "response_length/mean": 3.2,
        "training/rollout_probs_diff_max": 2e-6,
        "train/solve_rate": 0.125,
        "train/extraction_failed": 0.25,
        "train/timed_out": 0.0,
        "train/grader_failed": 0.0,
        "actor/grad_norm": 0.5,
        "actor/flowrl/log_z": -1.5,
        "val-core/aime2024/acc/mean@2": 0.25,
    }

    def account(**changed: float) -> str:
        (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 2} | metrics | changed) + "\n")
        return "\n".join(exercised(rehearsal, tmp_path, 108_608))

    _, rehearsal = rehearsed("experiment=math_7b", "cluster=1x8")
    text = account()
    for part in (
        "2 steps of 128 responses, 3 tokens on average",
        "right 12.5%, no answer 25.0%, timed out 0.0%, grader failed 0.0%",
        "16 a step, gradient norm 0.5, log Z -1.500",
        "trainer agree (largest difference 2e-06)",
        "aime2024",
        "108,608 parameters",
        "not rehearsed",
    ):
        assert part in text
    check_agreement(rehearsal, tmp_path)
    for difference in (0.1, float("nan")):
        assert "DIFFER" in account(**{"training/rollout_probs_diff_max": difference})
        with pytest.raises(RunFault, match="probabilities of rollout and trainer differ by up to") as fault:
            check_agreement(rehearsal, tmp_path)
        assert exit_status_of(fault.value) == 1


def test_servers_of_their_own_stay_so() -> None:
    """The engine that sends the weights is another, since a GPU's is needed for the run's."""
    _, rehearsal = rehearsed("experiment=math_7b", "cluster=1x8", "mode=async")
    check_mode(rehearsal)
    check_batches(rehearsal)
    machine.check_ray_slots(rehearsal)
    assert is_separate(rehearsal) and servers_ranks(rehearsal) == 1
    assert rehearsal.actor_rollout_ref.rollout.checkpoint_engine.backend == OWN_SOCKETS


def test_data_of_earlier_weights_are_not_compared(tmp_path: Path) -> None:
    name = "training/rollout_probs_diff_max"
    (tmp_path / "metrics.jsonl").write_text(
        "".join(f'{{"step": {s}, "{name}": {d}}}\n' for s, d in ((1, 1e-6), (2, 0.1)))
    )
    _, rehearsal = rehearsed("experiment=math_7b", "cluster=1x8", "mode=async")
    check_agreement(rehearsal, tmp_path)
    with pytest.raises(RunFault, match="differ by up to 0.1"):
        check_agreement(rehearsed("experiment=math_7b", "cluster=1x8")[1], tmp_path)


def test_a_run_that_compares_no_probabilities_is_told_so(tmp_path: Path) -> None:
    """As with rollout_correction.bypass_mode, which takes the rollout's."""
    metrics = {"step": 2, "response_length/mean": 3.0, "actor/grad_norm": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    bypass = "algorithm.rollout_correction.bypass_mode=true"
    _, rehearsal = rehearsed("experiment=math_7b", "cluster=1x8", bypass)
    assert "not compared" in "\n".join(exercised(rehearsal, tmp_path, 1))
    check_agreement(rehearsal, tmp_path)
