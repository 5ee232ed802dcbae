"""The probability of a puzzle's solutions under a policy: scored, not sampled."""

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recipe.flowrl.tasks.puzzles import Puzzle
from recipe.flowrl.tasks.sampling import encode, positions, read_prompts

ROWS_AT_A_TIME = 512


class SolutionTable:
    """Every solution of some puzzles, in its own spelling, as the tokens of an answer.

    The base policy has learned no other spelling. Where the task takes others (of Countdown ``3+5`` for ``5+3``), what
    a policy gives to such isn't in the table, and has to be estimated from samples.

    Attributes:
        puzzle: (N,) of each solution.
        solutions: N answers.
    """

    def __init__(self, puzzles: Sequence[Puzzle], tokenizer: PreTrainedTokenizerBase) -> None:
        found = [(number, text) for number, puzzle in enumerate(puzzles) for text in puzzle.solutions()]
        self.solutions = [text for _, text in found]
        self.puzzle = torch.tensor([number for number, _ in found])
        ids, mask = encode(tokenizer, [puzzle.prompt for puzzle in puzzles])
        answers = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in self.solutions]
        longest = max(map(len, answers))
        padded = [answer + [tokenizer.pad_token_id] * (longest - len(answer)) for answer in answers]
        self.answer_mask = torch.tensor([[place < len(answer) for place in range(longest)] for answer in answers])
        self.answers = torch.tensor(padded)
        self.prompts, self.prompt_mask = ids, mask.bool()

    @torch.no_grad()
    def log_probs(self, policy: PreTrainedModel, temperatures: Sequence[float]) -> torch.Tensor:
        """(len(temperatures), N) log-probability of each solution at each sampling temperature, in nats."""
        result = torch.empty(len(temperatures), len(self.answers), dtype=torch.float64)
        for part in self.answer_mask.sum(-1).argsort().split(ROWS_AT_A_TIME):
            mask = self.answer_mask[part]
            mask = mask[:, : int(mask.sum(-1).max())]
            answers = self.answers[part, : mask.shape[1]]
            logits = self._logits(policy, self.puzzle[part], answers, mask)
            for place, temperature in enumerate(temperatures):
                steps = (logits / temperature).log_softmax(-1).gather(-1, answers.unsqueeze(-1)).squeeze(-1)
                result[place, part] = torch.where(mask, steps, 0.0).sum(-1).double()
        return result

    def _logits(
        self, policy: PreTrainedModel, puzzle: torch.Tensor, answers: torch.Tensor, mask: torch.Tensor
    ) -> torch.Tensor:
        """(n, T, V) at each token of n answers; a prompt is read once for all its answers."""
        numbers, of_prompt = puzzle.unique(return_inverse=True)
        ids, prompt_mask = self.prompts[numbers], self.prompt_mask[numbers]
        cache = read_prompts(policy, ids[:, :-1], prompt_mask[:, :-1])
        cache.batch_select_indices(of_prompt)
        attention = torch.cat([prompt_mask[of_prompt], mask], 1)[:, :-1]
        return policy(
            input_ids=torch.cat([ids[of_prompt, -1:], answers[:, :-1]], 1),
            attention_mask=attention.long(),
            position_ids=positions(attention)[:, ids.shape[1] - 1 :],
            past_key_values=cache,
        ).logits
