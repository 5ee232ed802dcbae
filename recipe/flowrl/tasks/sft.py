"""Fine-tunes the tiny Qwen2 model on solutions of puzzles with verl's own SFT trainer."""

import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from recipe.flowrl.common import cache
from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.files import open_own, replacing
from recipe.flowrl.common.jsonl import JsonLines
from recipe.flowrl.tasks.puzzles import Puzzle, PuzzleFamily
from recipe.flowrl.tasks.tiny_qwen2 import TinyQwen2Config, build

VERSION = 2
"""To be raised with every change of this module that makes another model from the same configuration."""


@dataclass(frozen=True)
class SFTConfig:
    """Fine-tuning. Stops where RL still has something to do: a solve rate of 15% to 50% on unseen puzzles."""

    puzzles: PuzzleFamily
    model: TinyQwen2Config = field(default_factory=TinyQwen2Config)
    steps: int = 1100
    batch_size: int = 64
    lr: float = 2e-3
    min_solutions: int = 3
    seed: int = 0

    def key(self) -> str:
        """Names the model in the cache: equal keys, equal model (up to rounding)."""
        return cache.fingerprint(self, VERSION, self.puzzles.VERSION)


def train(target: Path, config: SFTConfig, say: Callable[[str], None]) -> None:
    """Train the base policy into the empty directory ``target``, which becomes a Hugging Face model directory.

    Args:
        target: the directory; its neighbour ``<target>.work`` stays after a failure, with the trainer's log.
        config: what to train.
        say: told of the progress, a line at a time.

    Raises:
        UserError: verl's SFT trainer failed; the message names its log.
    """
    work = target.with_name(f"{target.name}.work")
    work.mkdir()
    start = work / "start"
    build(start, config.model)
    test, rest = config.puzzles.split()
    say(f"base policy: {len(rest)} puzzles to train on, {len(test)} for tests; enumerating solutions")
    _write_examples(work / "train.parquet", start, config, exclude=set(test))
    shutil.copytree(_run_verl_sft(work, start, config, say), target, dirs_exist_ok=True)
    shutil.rmtree(work)


def _write_examples(path: Path, tokenizer_dir: Path, config: SFTConfig, exclude: set[Puzzle]) -> None:
    """One row a sample, ``steps * batch_size`` of them: a puzzle, and one of its solutions at random."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    examples: list[tuple[list[int], list[list[int]]]] = []
    for puzzle, solutions in config.puzzles.lessons(config.min_solutions, exclude):
        turn = [{"role": "user", "content": puzzle.prompt}]
        prompt = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        answers = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in solutions]
        examples.append((tokenizer(prompt)["input_ids"], answers))

    draw = random.Random(config.seed)
    drawn = draw.choices(examples, k=config.steps * config.batch_size)
    columns = {
        "input_ids": [prompt + draw.choice(answers) for prompt, answers in drawn],
        "prompt_length": [len(prompt) for prompt, _ in drawn],
    }
    with replacing(path) as temporary:
        pd.DataFrame(columns).to_parquet(temporary)


def _run_verl_sft(work: Path, start: Path, config: SFTConfig, say: Callable[[str], None]) -> Path:
    """Train in a process of its own; returns the Hugging Face directory of the last checkpoint."""
    log_path, metrics_path = work / "sft.log", work / "sft.jsonl"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "VERL_PLATFORM": "cpu",
        "VERL_USE_EXTERNAL_MODULES": "verl_ext.cpu",
        "VERL_FILE_LOGGER_PATH": str(metrics_path),
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": str(os.cpu_count()),
        "OMP_WAIT_POLICY": "PASSIVE",
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, "-m", "verl.trainer.sft_trainer", *_sft_overrides(work, start, config)]
    with os.fdopen(open_own(log_path, os.O_TRUNC), "w") as log:
        with subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=work) as process:
            try:
                _tell_progress(process, metrics_path, config.steps, say)
            finally:
                process.terminate()  # does nothing to a process that has ended
    if process.returncode:
        raise UserError(f"base policy: verl's SFT trainer failed with status {process.returncode}; see {log_path}")
    return work / "checkpoints" / f"global_step_{config.steps}" / "huggingface"


def _sft_overrides(work: Path, start: Path, config: SFTConfig) -> list[str]:
    return [
        f"model.path={start}",
        "model.external_lib=verl_ext.cpu.register",
        "+model.override_config.attn_implementation=sdpa",
        "model.use_remove_padding=false",
        "model.enable_gradient_checkpointing=false",
        "engine.strategy=fsdp2",
        "engine.use_torch_compile=false",
        "+engine.mixed_precision={param_dtype: fp32, reduce_dtype: fp32}",
        f"data.train_files={work / 'train.parquet'}",
        "data.custom_cls.path=pkg://recipe.flowrl.tasks.sft_dataset",
        "data.custom_cls.name=TokenizedDataset",
        f"data.train_batch_size={config.batch_size}",
        f"data.micro_batch_size_per_gpu={config.batch_size}",
        "data.use_dynamic_bsz=false",
        "data.num_workers=0",
        f"optim.lr={config.lr}",
        "optim.betas=[0.9,0.95]",
        "optim.lr_scheduler_type=cosine",
        "optim.min_lr_ratio=0.05",
        "optim.lr_warmup_steps=30",
        "trainer.device=cpu",
        "trainer.total_epochs=1",
        f"trainer.total_training_steps={config.steps}",
        "trainer.logger=[file]",
        "trainer.resume_mode=disable",
        f"trainer.default_local_dir={work / 'checkpoints'}",
        "checkpoint.save_contents=[model,hf_model]",
        f"hydra.run.dir={work}",
        "hydra.output_subdir=null",
    ]


def _tell_progress(
    process: subprocess.Popen, metrics_path: Path, steps: int, say: Callable[[str], None], every_s: float = 10.0
) -> None:
    """A line every ``every_s`` seconds until the process ends."""
    first: tuple[float, int] | None = None
    while True:
        try:
            process.wait(timeout=every_s)
            return
        except subprocess.TimeoutExpired:
            lines = JsonLines(metrics_path).read()
        if not lines:
            continue
        now, last = time.monotonic(), lines[-1]
        line = f"base policy: step {last['step']}/{steps}, loss {last['data']['train/loss']:.3f}"
        if first:
            pace = (now - first[0]) / max(1, last["step"] - first[1])
            line += f", ETA {pace * (steps - last['step']):.0f} s"
        first = first or (now, last["step"])
        say(line)
