"""A batch of rollouts, and the form in which the workers of the stack see it."""

from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch.nn import functional
from verl.utils import tensordict_utils as tu

from recipe.flowrl.tasks.sampling import Responses


class Batch:
    """B rollouts: ``prompt`` ``(B,)``, ``responses``, ``reward`` ``(B,)``, and ``columns``, each ``(B, T)``."""

    def __init__(self, prompt: np.ndarray, responses: Responses, reward: torch.Tensor) -> None:
        self.prompt, self.responses, self.reward = prompt, responses, reward
        self.columns: dict[str, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.prompt)

    @property
    def state(self) -> dict[str, Any]:
        """All of it, in tensors."""
        parts = (self.responses.rows, self.responses.attention, self.responses.response_mask)
        prompt = torch.from_numpy(self.prompt)
        return {"prompt": prompt, "responses": parts, "reward": self.reward, "columns": self.columns}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Batch":
        """What :attr:`state` told of."""
        batch = cls(state["prompt"].numpy(), Responses(*state["responses"]), state["reward"])
        batch.columns = dict(state["columns"])
        return batch

    @property
    def mask(self) -> torch.Tensor:
        """(B, T), float."""
        return self.responses.response_mask.float()

    @property
    def scores(self) -> torch.Tensor:
        """(B, T): the reward on the last token."""
        last = self.responses.response_mask.sum(-1, keepdim=True) - 1
        return torch.zeros(self.mask.shape).scatter(1, last, self.reward.unsqueeze(1))

    def rows(self, numbers: torch.Tensor, longest: int | None = None) -> "Batch":
        """Some rows, with ``longest`` tokens of the response, by default the longest one's: cut off or padded."""
        mask = self.responses.response_mask
        longest = int(mask[numbers].sum(-1).max()) if longest is None else longest
        until = self.responses.prompt_length + longest

        def wide(column: torch.Tensor, width: int) -> torch.Tensor:
            # Of a draw whose responses all ended early, fewer columns are there.
            return functional.pad(column[numbers, :width], (0, max(0, width - column.shape[1])))

        responses = Responses(
            wide(self.responses.rows, until), wide(self.responses.attention, until), wide(mask, longest)
        )
        part = Batch(self.prompt[np.asarray(numbers)], responses, self.reward[numbers])
        part.columns = {name: wide(column, longest) for name, column in self.columns.items()}
        return part

    def as_worker_data(self) -> TensorDict:
        """The jagged columns and counts that a worker's loss takes, this batch being the whole mini-batch of one rank.

        The prompt is one token long: the losses ask only where the response begins.
        """
        mask = self.responses.response_mask
        columns = {name: jagged(column, mask) for name, column in self.columns.items()}
        columns |= {
            "prompts": jagged(torch.zeros(len(self), 1), torch.ones(len(self), 1, dtype=torch.bool)),
            "responses": jagged(self.responses.tokens, mask),
            "response_mask": jagged(mask, mask),
        }
        counts = {"dp_size": 1, "batch_num_tokens": int(mask.sum()), "global_batch_size": len(self)}
        return tu.get_tensordict(columns, non_tensor_dict=counts)

    def as_model_output(self, column: torch.Tensor) -> torch.Tensor:
        """``(B, T)`` of response tokens as a model's jagged output for prompt and response of :meth:`as_worker_data`.

        A model's output for a token stands at the place of the one before it, and that of the last token says nothing.
        """
        mask = self.responses.response_mask
        return jagged(functional.pad(column, (0, 1)), functional.pad(mask, (1, 0), value=True))


def concatenate(batches: list[Batch]) -> Batch:
    """One batch of several, with the columns that all have."""
    parts = [batch.responses for batch in batches]
    responses = Responses(
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "attention", "response_mask"))
    )
    prompt = np.concatenate([batch.prompt for batch in batches])
    whole = Batch(prompt, responses, torch.cat([batch.reward for batch in batches]))
    common = set.intersection(*(set(batch.columns) for batch in batches))
    whole.columns = {name: torch.cat([batch.columns[name] for batch in batches]) for name in sorted(common)}
    return whole


def jagged(column: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The elements of ``column`` (B, T) where ``mask`` is, a row each; the mask's rows are filled from the left."""
    lengths = mask.sum(-1)
    offsets = functional.pad(lengths.cumsum(0), (1, 0))
    shortest, longest = int(lengths.min()), int(lengths.max())
    return torch.nested.nested_tensor_from_jagged(column[mask], offsets, min_seqlen=shortest, max_seqlen=longest)
