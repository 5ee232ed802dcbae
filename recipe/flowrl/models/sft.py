"""The base policy of the Countdown job: the tiny Qwen2 model, fine-tuned on solutions by verl's own SFT trainer."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import combinations_with_replacement, product
from pathlib import Path

import pandas as pd

from recipe.flowrl import cache
from recipe.flowrl.data import countdown
from recipe.flowrl.data.countdown import CountdownConfig, Puzzle, generate
from recipe.flowrl.data.expressions import enumerate_solutions
from recipe.flowrl.errors import UserError
from recipe.flowrl.models.evaluate import solve_rate
from recipe.flowrl.models.tiny_qwen2 import TinyQwen2Config, build

REPORT = "base_policy.json"
"""Written last into the model directory: what it was made from, and how good it is."""

VERSION = 1
"""To be raised with every change of this package that makes another model from the same configuration."""


@dataclass(frozen=True)
class SFTConfig:
    """Fine-tuning. Stops where RL still has something to do: a solve rate of 15% to 50% on unseen puzzles."""

    puzzles: CountdownConfig = field(default_factory=CountdownConfig)
    model: TinyQwen2Config = field(default_factory=TinyQwen2Config)
    steps: int = 1100
    batch_size: int = 64
    lr: float = 2e-3
    min_solutions: int = 3
    seed: int = 0

    def key(self) -> str:
        """Names the model in the cache: equal keys, equal model (up to rounding)."""
        return cache.fingerprint(self, VERSION, countdown.VERSION)


def ensure_base_policy(directory: Path, say: Callable[[str], None], config: SFTConfig | None = None) -> Path:
    """Train the base policy into ``directory`` unless it is there, made from the same configuration.

    Args:
        directory: a link, afterwards, to a Hugging Face model directory (:mod:`recipe.flowrl.cache`).
        say: told of the progress, a line at a time.
        config: what to train.

    Returns:
        ``directory``.

    Raises:
        UserError: verl's SFT trainer failed; the message names its log.
    """
    config = config or SFTConfig()
    return cache.ensure(directory, config.key(), lambda target: _train(target, config, say))


def _train(target: Path, config: SFTConfig, say: Callable[[str], None]) -> None:
    from safetensors.torch import load_file

    started = time.time()
    work = target.with_name(f"{target.name}.work")
    work.mkdir()
    start = work / "start"
    build(start, config.model)
    puzzles = list(generate(config.puzzles))
    test, train = puzzles[: config.puzzles.test_size], puzzles[config.puzzles.test_size :]
    say(f"base policy: {len(train)} puzzles to train on, {len(test)} for tests; enumerating solutions")
    _write_examples(work / "train.parquet", start, config, exclude=set(test))
    trained = _run_verl_sft(work, start, config, say)
    report = {
        "key": config.key(),
        "config": asdict(config),
        "parameters": sum(tensor.numel() for tensor in load_file(trained / "model.safetensors").values()),
        "test": solve_rate(trained, test, samples=4),
        "train": solve_rate(trained, train[: len(test)], samples=4),
        "seconds": round(time.time() - started, 1),
    }
    say(
        f"base policy: solves {report['test']['solve_rate']:.1%} of unseen puzzles at T = 1 "
        f"({report['train']['solve_rate']:.1%} of the training ones), {report['seconds']:.0f} s"
    )
    (trained / REPORT).write_text(json.dumps(report, indent=1))
    shutil.copytree(trained, target, dirs_exist_ok=True)
    shutil.rmtree(work)  # stays after a failure: its log says why


def _write_examples(path: Path, tokenizer_dir: Path, config: SFTConfig, exclude: set[Puzzle]) -> None:
    """One row a sample, ``steps * batch_size`` of them: a puzzle, and one of its solutions at random.

    Puzzles of the family that have ``min_solutions`` without a division: those are learned in minutes, and exploring
    division is left to RL.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    examples: list[tuple[list[int], list[list[int]]]] = []
    ints = range(config.puzzles.min_value, config.puzzles.max_value + 1)
    numbers = combinations_with_replacement(ints, config.puzzles.numbers)
    targets = range(config.puzzles.min_target, config.puzzles.max_target + 1)
    for drawn, target in product(numbers, targets):
        solutions = enumerate_solutions(drawn, target)
        puzzle = Puzzle(drawn, target, len(solutions))
        solutions = [text for text in solutions if "/" not in text]
        if puzzle in exclude or len(solutions) < config.min_solutions:
            continue
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
    pd.DataFrame(columns).to_parquet(path)


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
    with log_path.open("w") as log:
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
        "data.custom_cls.path=pkg://recipe.flowrl.models.sft_dataset",
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
            lines = metrics_path.read_text().splitlines() if metrics_path.exists() else []
        if not lines:
            continue
        now, last = time.monotonic(), json.loads(lines[-1]) if lines[-1].endswith("}") else json.loads(lines[-2])
        line = f"base policy: step {last['step']}/{steps}, loss {last['data']['train/loss']:.3f}"
        if first:
            pace = (now - first[0]) / max(1, last["step"] - first[1])
            line += f", ETA {pace * (steps - last['step']):.0f} s"
        first = first or (now, last["step"])
        say(line)
