"""The launches of ``gpu_acceptance``, and what they leave."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.acceptance_models import exported_parameters, shapes
from benchmarks.children import PROJECT, ChildError, call
from benchmarks.launches import Launch, launch, launch_together

STEPS, MEMORY_SHARE = 3, 0.4
"""Of a launch; of the GPU, vLLM's, but for the two runs at once."""

_ACTOR, _MODEL, _ROLLOUT = (f"actor_rollout_ref.{part}" for part in ("actor", "model", "rollout"))

_EVERY_RUN = (
    "experiment=countdown_cpu",
    "trainer.n_gpus_per_node=1",
    "prepare.model=null",
    f"trainer.total_training_steps={STEPS}",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.save_freq=-1",
    # The policy has to move in two steps by more than bfloat16's rounding, or a lost weight sync wouldn't show.
    f"{_ACTOR}.optim.lr=5e-4",
    f"{_ROLLOUT}.n=4",
    f"{_ROLLOUT}.calculate_log_probs=true",
)

_ON = {
    "cuda": (
        "cluster=1x8",
        f"{_ACTOR}.fsdp_config.param_offload=true",
        f"{_ACTOR}.fsdp_config.optimizer_offload=true",
        f"{_ROLLOUT}.free_cache_engine=true",
        f"{_ROLLOUT}.gpu_memory_utilization={MEMORY_SHARE}",
        f"{_ROLLOUT}.max_num_seqs=64",
        # One mini-batch a step: the clip fraction of a step is that of its first mini-batch.
        "data.train_batch_size=16",
        f"{_ACTOR}.ppo_mini_batch_size=16",
        "data.max_response_length=512",
        f"{_ROLLOUT}.max_model_len=1024",
    ),
    "cpu": (
        "cluster=cpu",
        f"{_MODEL}.enable_gradient_checkpointing=true",
        f"{_MODEL}.use_remove_padding=true",
        f"{_MODEL}.use_fused_kernels=true",
        f"{_ACTOR}.use_dynamic_bsz=true",
        "data.train_batch_size=4",
        f"{_ACTOR}.ppo_mini_batch_size=4",
    ),
}
"""Both have fused log-probs, packed sequences, dynamic batches and gradient checkpointing; on GPUs by the cluster's
file, with parameters and optimizer offloaded, bfloat16 and sleep mode besides."""


@dataclass(frozen=True)
class Run:
    """A launch: of a model, with what is its own; ``directory``: of the run, where it isn't the launch's name."""

    model: str
    overrides: tuple[str, ...] = ()
    directory: str | None = None


_UNFUSED = (
    f"{_MODEL}.use_fused_kernels=false",
    # The cluster's 32768 tokens would take 40 GB of logits.
    f"{_ROLLOUT}.log_prob_max_token_len_per_gpu=10240",
    "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu=10240",
)
_SHARING = (f"{_ROLLOUT}.gpu_memory_utilization=0.15", f"{_ROLLOUT}.enforce_eager=true")
PAIR = ("pair-1", "pair-2")
_FUSED = Run("qwen2.5-0.5b-untied", (f"trainer.save_freq={STEPS}",))
RUNS: Mapping[str, Run] = MappingProxyType(
    {
        "fused": _FUSED,
        "resumed": Run(_FUSED.model, (*_FUSED.overrides, f"trainer.total_training_steps={STEPS + 1}"), "fused"),
        "grpo": Run("qwen2.5-0.5b-untied", ("algo=grpo",)),
        "large": Run("qwen2.5-1.5b"),
        "unfused": Run("qwen2.5-0.5b-untied", _UNFUSED),
        "pair-1": Run("tiny-1", _SHARING),
        "pair-2": Run("tiny-2", _SHARING),
    }
)


def overrides_of(run: Run, device: str, models: Path) -> list[str]:
    """What ``main_flowrl`` is given, but for the run's directory."""
    own = [*_EVERY_RUN, *_ON[device], *run.overrides, f"{_MODEL}.path={models / run.model}"]
    return list({override.partition("=")[0]: override for override in own}.values())


@dataclass
class Evidence:
    """What the actions have left so far."""

    device: str
    work: Path
    gpu_bytes: float = 0.0
    launches: dict[str, Launch] = field(default_factory=dict)
    steps: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    """Run -> step -> metrics, of the steps that this launch took."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Action -> how long it took; those that didn't end well are in ``failures``."""
    failures: dict[str, str] = field(default_factory=dict)
    parameters: dict[str, int] = field(default_factory=dict)
    exported: int = 0
    gpu_memory: list[tuple[float, float]] = field(default_factory=list)
    """Seconds since the epoch, bytes in use on the GPU by anyone."""

    @property
    def models(self) -> Path:
        return self.work / "models"

    def directory(self, name: str) -> Path:
        """Of a run."""
        return self.work / (RUNS[name].directory or name)

    def overrides(self, name: str) -> list[str]:
        """Of a run."""
        return overrides_of(RUNS[name], self.device, self.models)


def make_models(evidence: Evidence, limit_s: float) -> None:
    """Make all models."""
    sizes = {name: asdict(shape) for name, shape in shapes(evidence.device).items()}
    given = {"shapes": sizes, "directory": str(evidence.models)}
    evidence.parameters = call("acceptance_models", given, {}, limit_s)


def carry_out(evidence: Evidence, name: str, limit_s: float) -> None:
    """One launch."""
    keep(evidence, name, launch(evidence.overrides(name), evidence.directory(name), limit_s))


def carry_out_pair(evidence: Evidence, limit_s: float) -> None:
    """Two launches at once."""
    together = launch_together({evidence.directory(name): evidence.overrides(name) for name in PAIR}, limit_s)
    for name, launched in zip(PAIR, together, strict=True):
        keep(evidence, name, launched)


def keep(evidence: Evidence, name: str, launched: Launch) -> None:
    """Keep a finished launch; a later one may continue its directory."""
    evidence.launches[name] = launched
    evidence.steps[name] = {
        step: metrics for step, metrics in sorted(launched.metrics.items()) if metrics["time"] >= launched.started
    }


def export(evidence: Evidence, limit_s: float) -> None:
    """Export the first launch's checkpoint."""
    checkpoint, output = evidence.directory("fused") / "checkpoints" / f"global_step_{STEPS}", evidence.work / "export"
    command = [sys.executable, "-m", "recipe.flowrl", "export", str(checkpoint), str(output)]
    environment = os.environ | ({"VERL_PLATFORM": "cpu"} if evidence.device == "cpu" else {})
    try:
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise ChildError(f"export: no end after {limit_s:.0f} s") from error
    if done.returncode != 0:
        raise ChildError(f"export: {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
    evidence.exported = exported_parameters(output)


def drop_weights(work: Path) -> None:
    """Remove what takes space; records and logs stay."""
    for directory in (work / "models", work / "export", *work.glob("*/checkpoints")):
        shutil.rmtree(directory, ignore_errors=True)


def gpu_facts() -> dict[str, Any]:
    """Name, bytes and driver of the GPU that a run would get, without a CUDA context in this process.

    Raises:
        ChildError: there is none.
    """
    query = ["--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(["nvidia-smi", "-i", _index(), *query], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise ChildError(f"nvidia-smi shows no GPU ({error}): use --device cpu") from error
    name, mebibytes, driver = (part.strip() for part in output.stdout.strip().splitlines()[0].split(","))
    return {"name": name, "memory_bytes": float(mebibytes) * 2**20, "driver": driver}


class GpuMemoryRecorder:
    """While the block lasts, appends what is in use on the GPU to ``samples`` twice a second."""

    def __init__(self, samples: list[tuple[float, float]]):
        self._samples = samples

    def __enter__(self) -> None:
        query = ["--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "500"]
        self._process = subprocess.Popen(["nvidia-smi", "-i", _index(), *query], stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            if line.strip().isdigit():
                self._samples.append((time.time(), float(line) * 2**20))

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()
        self._thread.join()


def _index() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0] or "0"
