"""The target distribution and how far a policy is from it, by enumeration: no sampling error. In float64 and nats."""

import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from recipe.flowrl.data.modes import LENGTH, PROMPTS, Modes, answers, modes_of

COVERED = 0.5
"""A mode is covered by a policy that gives it at least this share of its target probability."""


@dataclass(frozen=True)
class Enumeration:
    """All answers to all prompts of the task, for a model directory of its tokenizer and its reference weights.

    ``N`` answers, ``P`` prompts.
    """

    model_dir: Path

    @cached_property
    def reference(self) -> PreTrainedModel:
        """The reference policy."""
        return AutoModelForCausalLM.from_pretrained(self.model_dir, dtype=torch.float32)

    @cached_property
    def prompt_ids(self) -> torch.Tensor:
        """(P, L): the prompts, all of one length, as the trainer's chat template has them."""
        tokenizer = AutoTokenizer.from_pretrained(self.model_dir)
        turns = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
        return torch.tensor(
            [tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"] for turn in turns]
        )

    @cached_property
    def answers(self) -> list[str]:
        """Each answer as the reward function gets it; N."""
        tokenizer = AutoTokenizer.from_pretrained(self.model_dir)
        return answers([tokenizer.decode([token], skip_special_tokens=True) for token in range(len(tokenizer))])

    @cached_property
    def modes(self) -> list[Modes]:
        """Of each prompt."""
        return [modes_of(prompt) for prompt in PROMPTS]

    @cached_property
    def mode_rows(self) -> list[list[int]]:
        """Of each prompt, where its modes stand among the answers."""
        return [[self.answers.index(mode) for mode in modes.heights] for modes in self.modes]

    @cached_property
    def rewards(self) -> torch.Tensor:
        """(P, N)."""
        return torch.tensor([[modes.reward(answer) for answer in self.answers] for modes in self.modes]).double()

    @cached_property
    def reference_log_probs(self) -> torch.Tensor:
        """(P, N) log pi_ref(y|x)."""
        return self.log_probs(self.reference)

    @torch.no_grad()
    def log_probs(self, model: PreTrainedModel) -> torch.Tensor:
        """(P, N) log pi(y|x) of every answer, by walking the tree of prefixes."""
        vocabulary = model.config.vocab_size
        total = torch.zeros(len(self.prompt_ids), 1, dtype=torch.float64)
        for depth in range(LENGTH):
            prefixes = torch.tensor(list(itertools.product(range(vocabulary), repeat=depth)), dtype=torch.long)
            rows = torch.cat(
                [
                    self.prompt_ids.repeat_interleave(len(prefixes), dim=0),
                    prefixes.reshape(len(prefixes), depth).repeat(len(self.prompt_ids), 1),
                ],
                dim=1,
            )
            step = model(rows, logits_to_keep=1).logits[:, -1].double().log_softmax(-1)
            total = (total.unsqueeze(-1) + step.view(*total.shape, vocabulary)).flatten(1)
        return total

    def target(self, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
        """log pi* ``(P, N)``, pi* proportional to pi_ref exp(reward / temperature), and log of its normaliser ``(P,)``.

        FlowRL's is 1 / (T beta) with length normalisation, 1 / beta without, since every answer has T tokens.
        """
        unnormalised = self.reference_log_probs + self.rewards / temperature
        log_normaliser = unnormalised.logsumexp(-1)
        return unnormalised - log_normaliser.unsqueeze(-1), log_normaliser

    def measure(self, log_probs: torch.Tensor, temperature: float, log_z: torch.Tensor | None) -> dict[str, Any]:
        """How far a policy is from the target.

        Args:
            log_probs: (P, N), see :meth:`log_probs`.
            temperature: of the target.
            log_z: (P,) what the head says, over T where the objective isn't length-normalised; None if there is none.

        Returns:
            For each measure a list over prompts, and ``worst``, the worst of each: ``kl_policy_target``,
            ``kl_target_policy``, ``total_variation``, ``modes_covered`` (a share), ``log_z_error`` (None without a
            head, the modulus of the difference to log Z* otherwise), ``expected_reward``.
        """
        target, log_normaliser = self.target(temperature)
        policy, ideal = log_probs.exp(), target.exp()
        covered = [
            np.mean([bool(policy[p, row] >= COVERED * ideal[p, row]) for row in rows])
            for p, rows in enumerate(self.mode_rows)
        ]
        per_prompt = {
            "kl_policy_target": (policy * (log_probs - target)).sum(-1).tolist(),
            "kl_target_policy": (ideal * (target - log_probs)).sum(-1).tolist(),
            "total_variation": ((policy - ideal).abs().sum(-1) / 2).tolist(),
            "modes_covered": [float(share) for share in covered],
            "log_z_error": None if log_z is None else (log_z.double() - log_normaliser / LENGTH).abs().tolist(),
            "expected_reward": (policy * self.rewards).sum(-1).tolist(),
        }
        worst = {
            name: None if values is None else (min if name in ("modes_covered", "expected_reward") else max)(values)
            for name, values in per_prompt.items()
        }
        return {**per_prompt, "worst": worst}
