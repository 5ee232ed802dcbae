"""What both train: one description, from which come the recipe's overrides and TRL's arguments."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from benchmarks.configuration import compose

KL_COEFFICIENT = 0.001


@dataclass(frozen=True)
class Workload:
    """GRPO with a KL term. Prompts in the data set's order, ``responses`` to each, sampled at ``temperature``.

    Attributes:
        title: what it is.
        model: the recipe's ``model=``.
        prompts: of a step.
        responses: to each prompt.
        tokens: a response's largest number.
        updates: of a step, each of as many prompts.
        micro_batch: sequences in a forward and backward pass.
        temperature: of the samples.
        learning_rate: constant.
        steps: of a run.
        runs: of each of the two, in turn.
    """

    title: str
    model: str
    prompts: int
    responses: int
    tokens: int
    updates: int
    micro_batch: int
    temperature: float
    learning_rate: float
    steps: int
    runs: int

    def overrides(self) -> list[str]:
        """The recipe's, of ``experiment=countdown_cpu``."""
        mini_batch = self.prompts // self.updates
        actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
        return [
            "experiment=countdown_cpu",
            f"model={self.model}",
            "algo=grpo",
            f"data.train_batch_size={self.prompts}",
            f"data.max_response_length={self.tokens}",
            "data.shuffle=false",
            f"{rollout}.n={self.responses}",
            f"{rollout}.temperature={self.temperature}",
            f"{actor}.ppo_mini_batch_size={mini_batch}",
            f"{actor}.ppo_micro_batch_size_per_gpu={self.micro_batch}",
            f"{actor}.optim.lr={self.learning_rate}",
            f"{actor}.kl_loss_coef={KL_COEFFICIENT}",
            f"trainer.total_training_steps={self.steps}",
            "trainer.val_before_train=false",
            "trainer.test_freq=-1",
            "trainer.save_freq=-1",
            "self_check=false",
        ]

    def config(self) -> DictConfig:
        """The recipe's configuration."""
        return compose(*self.overrides())

    def of_trl(self, results: Path) -> dict[str, Any]:
        """The argument of :mod:`benchmarks.trl.train`, which writes to ``results``."""
        config = self.config()
        batch = self.prompts * self.responses
        accumulated = batch // self.updates // self.micro_batch
        return {
            "results": str(results),
            "model": str(config.actor_rollout_ref.model.path),
            "data": str(config.data.train_files),
            "reward": str(config.reward.custom_reward_function.path).removeprefix("pkg://"),
            "prompts": self.prompts * self.steps,
            "grpo": {
                "beta": KL_COEFFICIENT,
                "epsilon": float(config.actor_rollout_ref.actor.clip_ratio),
                "loss_type": "grpo",
                "num_generations": self.responses,
                "max_completion_length": self.tokens,
                "temperature": self.temperature,
                "per_device_train_batch_size": self.micro_batch,
                "gradient_accumulation_steps": accumulated,
                "steps_per_generation": accumulated * self.updates,
                "max_steps": self.steps * self.updates,
                "learning_rate": self.learning_rate,
                "lr_scheduler_type": "constant",
                "weight_decay": float(config.actor_rollout_ref.actor.optim.weight_decay),
                "max_grad_norm": float(config.actor_rollout_ref.actor.optim.clip_grad),
            },
        }


WORKLOADS = {
    "countdown": Workload(
        "Countdown, 1.4 M parameters", "tiny_qwen2", 32, 8, 32, 2, 32, temperature=1.0, learning_rate=1e-4,
        steps=40, runs=2,
    ),
    "smollm2": Workload(
        "SmolLM2-135M, short sums", "smollm2_135m", 8, 8, 64, 1, 8, temperature=0.7, learning_rate=1e-6,
        steps=2, runs=1,
    ),
}  # fmt: skip
