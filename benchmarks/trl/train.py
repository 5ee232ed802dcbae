"""A run of TRL's GRPO trainer, in TRL's environment: ``python -m benchmarks.trl.train ARGUMENT_FILE``.

TRL as it is set up for a processor: one process, torch's own number of threads, float32, no gradient checkpointing, and
transformers' ``generate``, since TRL's vLLM mode loads each synced weight into a parameter that vLLM's CPU build has
packed and deleted.
"""

import importlib
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from verl_ext.files import write_json


class TimedTrainer(GRPOTrainer):
    """TRL's trainer, which notes when each step's rollout begins, and how long its phases take."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.steps: list[dict[str, Any]] = []

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        start = time.time()
        yield
        self.steps[-1]["phases"][phase] += time.time() - start

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.steps.append({"begin": time.time(), "phases": defaultdict(float)})
        with self._timed("before_update"):
            output = super()._generate_and_score_completions(inputs)
        tokens = output["prompt_mask"].sum() + output["completion_mask"].sum()
        self.steps[-1]["tokens"] = int(tokens)
        return output

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        with self._timed("gen"):
            return super()._generate_single_turn(*args, **kwargs)

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        with self._timed("gen"):
            rewards = super()._calculate_rewards(*args, **kwargs)
        self.steps[-1]["reward"] = rewards.mean().item()
        return rewards

    def _get_per_token_logps_and_entropies(self, model: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled():
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        with self._timed("ref" if model is self.ref_model else "old_log_prob"):
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)


def rewards_of(module: str) -> Any:
    """The recipe's reward of a task as TRL calls one."""
    score = importlib.import_module(module).compute_score

    def reward(completions: list[list[dict[str, str]]], ground_truth: list[str], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        return [float(score("", text, truth)["score"]) for text, truth in zip(texts, ground_truth, strict=True)]

    return reward


def main(argument: dict[str, Any]) -> None:
    """Train, and write the steps to ``argument["results"]``."""
    rows = parquet.read_table(argument["data"], columns=["prompt", "reward_model"]).to_pylist()
    prompts = [{"prompt": row["prompt"], "ground_truth": row["reward_model"]["ground_truth"]} for row in rows]
    wanted = argument["prompts"]
    prompts = (prompts * (wanted // len(prompts) + 1))[:wanted]
    with tempfile.TemporaryDirectory() as output:
        trainer = TimedTrainer(
            model=argument["model"],
            reward_funcs=rewards_of(argument["reward"]),
            train_dataset=Dataset.from_list(prompts),
            args=GRPOConfig(
                output_dir=output,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
                shuffle_dataset=False,
                report_to="none",
                save_strategy="no",
                logging_steps=1,
                **argument["grpo"],
            ),
        )
        trainer.train()
    write_json(Path(argument["results"]), {"steps": trainer.steps, "end": time.time()})


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
