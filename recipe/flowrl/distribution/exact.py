"""All answers to a task's prompts, their probabilities, and how far a policy is from a target: no sampling error.

In float64 and nats.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from recipe.flowrl.one_process.task import Task
from recipe.flowrl.tasks.modes import data as modes
from recipe.flowrl.tasks.modes import endings
from recipe.flowrl.tasks.sampling import encode

COVERED = 0.5
"""A mode is covered by a policy that gives it at least this share of its target probability."""


@dataclass(frozen=True)
class Enumeration:
    """All answers to all prompts of a task, for a model directory of its tokenizer and its reference weights.

    ``P`` prompts, all of one length in tokens, ``N`` answers, of at most ``T`` tokens.

    Attributes:
        model_dir: the base policy.
        prompts: texts, one user turn each.
        longest: T.
        ends: an answer ends with the end-of-sequence token, or after T tokens; False: each has T tokens.
        reward: from a prompt and an answer's text without special tokens.
        modes: of each prompt, the answers that are to be covered; empty where the task has none.
    """

    model_dir: Path
    prompts: Sequence[str]
    longest: int
    ends: bool
    reward: Callable[[str, str], float]
    modes: Sequence[Sequence[str]] = ()

    @cached_property
    def reference(self) -> PreTrainedModel:
        """The reference policy."""
        return AutoModelForCausalLM.from_pretrained(self.model_dir, dtype=torch.float32)

    @cached_property
    def prompt_ids(self) -> torch.Tensor:
        """(P, L): the prompts as the trainer's chat template has them."""
        return encode(AutoTokenizer.from_pretrained(self.model_dir), self.prompts)[0]

    @cached_property
    def answers(self) -> list[tuple[int, ...]]:
        """The tokens of each answer; N. Those that end early come first, by their length."""
        found, prefixes = [], torch.empty(1, 0, dtype=torch.long)
        for depth in range(self.longest):
            last = depth == self.longest - 1
            if self.ends and not last:
                found += [(*prefix, self._eos) for prefix in prefixes.tolist()]
            prefixes = _extend(prefixes, self._vocabulary if last else self._going_on)
        return found + [tuple(prefix) for prefix in prefixes.tolist()]

    @cached_property
    def texts(self) -> list[str]:
        """Each answer as the reward function gets it; N."""
        tokenizer = AutoTokenizer.from_pretrained(self.model_dir)
        symbols = [tokenizer.decode([token], skip_special_tokens=True) for token in range(len(tokenizer))]
        return ["".join(symbols[token] for token in answer) for answer in self.answers]

    @cached_property
    def lengths(self) -> torch.Tensor:
        """(N,) tokens of each answer."""
        return torch.tensor([len(answer) for answer in self.answers]).double()

    @cached_property
    def mode_rows(self) -> list[list[int]]:
        """Of each prompt, where its modes stand among the answers."""
        return [[self.texts.index(mode) for mode in of_prompt] for of_prompt in self.modes]

    @cached_property
    def rewards(self) -> torch.Tensor:
        """(P, N)."""
        return torch.tensor([[self.reward(prompt, text) for text in self.texts] for prompt in self.prompts]).double()

    @cached_property
    def reference_log_probs(self) -> torch.Tensor:
        """(P, N) log pi_ref(y|x)."""
        return self.log_probs(self.reference)

    @torch.no_grad()
    def log_probs(self, model: PreTrainedModel) -> torch.Tensor:
        """(P, N) log pi(y|x) of every answer, by walking the tree of prefixes."""
        prompts = len(self.prompt_ids)
        total, prefixes, found = torch.zeros(prompts, 1, dtype=torch.float64), torch.empty(1, 0, dtype=torch.long), []
        for depth in range(self.longest):
            last = depth == self.longest - 1
            rows = torch.cat([self.prompt_ids.repeat_interleave(len(prefixes), 0), prefixes.repeat(prompts, 1)], dim=1)
            steps = model(rows, logits_to_keep=1).logits[:, -1].double().log_softmax(-1)
            joint = total.unsqueeze(-1) + steps.view(*total.shape, -1)
            if self.ends and not last:
                found.append(joint[:, :, self._eos])
            following = self._vocabulary if last else self._going_on
            total, prefixes = joint[:, :, following].flatten(1), _extend(prefixes, following)
        return torch.cat([*found, total], dim=1)

    def task(self) -> Task:
        """The task for the one-process trainer."""
        row = {answer: number for number, answer in enumerate(self.answers)}
        rewards = self.rewards

        def reward(prompt: int, answer: tuple[int, ...]) -> float:
            return float(rewards[prompt, row[answer]])

        ids = self.prompt_ids
        return Task(self.model_dir, ids, torch.ones_like(ids), self.longest, self.ends, reward)

    def measure(
        self, log_probs: torch.Tensor, target: torch.Tensor, log_z: torch.Tensor | None, log_z_target: torch.Tensor
    ) -> dict[str, Any]:
        """How far a policy is from a target.

        Args:
            log_probs: (P, N), see :meth:`log_probs`.
            target: (P, N) log-probabilities.
            log_z: (P,) what the head says; None if there is none.
            log_z_target: (P,) what it ought to say.

        Returns:
            For each measure a list over prompts, and ``worst``, the worst of each: ``kl_policy_target``,
            ``kl_target_policy``, ``total_variation``, ``expected_reward``; of the answers with a reward
            ``right_length``, their mean length, and ``kl_right``, KL(pi(.|right) || pi_ref(.|right));
            ``modes_covered`` (a share; None without modes), ``log_z_error`` (None without a head, the modulus of the
            difference otherwise).
        """
        policy, ideal = log_probs.exp(), target.exp()
        rewarded = policy * (self.rewards > 0)
        per_prompt = {
            "kl_policy_target": (policy * (log_probs - target)).sum(-1).tolist(),
            # Where the target vanishes in float64 a log-probability of -inf times 0 is no number.
            "kl_target_policy": torch.where(ideal > 0, ideal * (target - log_probs), 0.0).sum(-1).tolist(),
            "total_variation": ((policy - ideal).abs().sum(-1) / 2).tolist(),
            "modes_covered": self._covered(policy, ideal),
            "log_z_error": None if log_z is None else (log_z.double() - log_z_target).abs().tolist(),
            "expected_reward": (policy * self.rewards).sum(-1).tolist(),
            "kl_right": self._kl_right(log_probs),
            "right_length": ((rewarded * self.lengths).sum(-1) / rewarded.sum(-1)).tolist(),
        }
        worst = {
            name: None if values is None else (min if name in ("modes_covered", "expected_reward") else max)(values)
            for name, values in per_prompt.items()
        }
        return {**per_prompt, "worst": worst}

    def _kl_right(self, log_probs: torch.Tensor) -> list[float]:
        right = self.rewards > 0
        given, reference = (
            torch.where(right, table, -torch.inf).log_softmax(-1) for table in (log_probs, self.reference_log_probs)
        )
        return torch.where(right, given.exp() * (given - reference), 0.0).sum(-1).tolist()

    def _covered(self, policy: torch.Tensor, ideal: torch.Tensor) -> list[float] | None:
        shares = [
            float(np.mean([bool(policy[prompt, row] >= COVERED * ideal[prompt, row]) for row in rows]))
            for prompt, rows in enumerate(self.mode_rows)
        ]
        return shares or None

    @cached_property
    def _eos(self) -> int:
        return int(self.reference.generation_config.eos_token_id)

    @cached_property
    def _vocabulary(self) -> list[int]:
        return list(range(self.reference.config.vocab_size))

    @cached_property
    def _going_on(self) -> list[int]:
        """Tokens after which an answer goes on."""
        return [token for token in self._vocabulary if not (self.ends and token == self._eos)]


def _extend(prefixes: torch.Tensor, following: Sequence[int]) -> torch.Tensor:
    """(n * len(following), depth + 1): each prefix (n, depth) with each of the tokens that may follow."""
    tokens = torch.tensor(following).repeat(len(prefixes)).unsqueeze(1)
    return torch.cat([prefixes.repeat_interleave(len(following), 0), tokens], dim=1)


def of_modes(model_dir: Path) -> Enumeration:
    """Answers of two tokens, five modes a prompt (:mod:`recipe.flowrl.tasks.modes.data`)."""
    rewards = {prompt: modes.modes_of(prompt) for prompt in modes.PROMPTS}
    heights = [list(rewards[prompt].heights) for prompt in modes.PROMPTS]
    return Enumeration(
        model_dir, modes.PROMPTS, modes.LENGTH, False, lambda prompt, text: rewards[prompt].reward(text), heights
    )


def of_endings(model_dir: Path) -> Enumeration:
    """Answers of one to four tokens, a quarter of them right (:mod:`recipe.flowrl.tasks.modes.endings`)."""
    return Enumeration(model_dir, endings.PROMPTS, endings.LENGTH, True, endings.reward)
