"""Sampling a small policy with transformers, and the log-probs of what it said."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

ROWS_AT_A_TIME = 256


@dataclass(frozen=True)
class Responses:
    """``n`` responses to each of ``P`` prompts, prompt by prompt: ``B = P n`` rows.

    Attributes:
        rows: (B, L) prompt, padded on the left, and response of ``response_mask.shape[1]`` tokens.
        attention: (B, L) what isn't padding.
        response_mask: (B, T) tokens of the response, the end-of-sequence token included.
    """

    rows: torch.Tensor
    attention: torch.Tensor
    response_mask: torch.Tensor

    @property
    def prompt_length(self) -> int:
        """Tokens of a prompt with its padding."""
        return self.rows.shape[1] - self.response_mask.shape[1]

    @property
    def tokens(self) -> torch.Tensor:
        """(B, T) of the responses."""
        return self.rows[:, self.prompt_length :]


@dataclass(frozen=True)
class Samples(Responses):
    """The same, and ``texts``: B responses without special tokens."""

    texts: list[str]


def encode(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of one user turn each as the chat template has them: tokens and mask, both (P, L), padded on the left."""
    tokenizer.padding_side = "left"
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    texts = [tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    return inputs["input_ids"], inputs["attention_mask"]


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    samples: int,
    *,
    temperature: float,
    max_new_tokens: int,
    seed: int = 0,
) -> Samples:
    """Sample without top-k or top-p. The same seed gives the same samples.

    Args:
        model, tokenizer: the tokenizer is made to pad on the left.
        prompts: one user turn each.
        samples: responses for each.
        temperature: above 0.
        max_new_tokens: longest response.
        seed: of torch's generator, which is left as it was.
    """
    ids, mask = encode(tokenizer, prompts)
    prompts_at_a_time = max(1, ROWS_AT_A_TIME // samples)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = [
            generate(model, *part, samples, temperature=temperature, max_new_tokens=max_new_tokens)
            for part in zip(ids.split(prompts_at_a_time), mask.split(prompts_at_a_time), strict=True)
        ]
    rows, attention, response_mask = (
        torch.cat([getattr(part, name) for part in parts]) for name in ("rows", "attention", "response_mask")
    )
    texts = tokenizer.batch_decode(rows[:, ids.shape[1] :], skip_special_tokens=True)
    return Samples(rows, attention, response_mask, texts)


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    samples: int,
    *,
    temperature: float,
    max_new_tokens: int,
    ends: bool = True,
) -> Responses:
    """Sample ``samples`` responses to each prompt, with torch's generator. A prompt is read once for all of them.

    Args:
        model: a policy.
        ids, mask: (P, L) of :func:`encode`.
        samples: responses for each.
        temperature: above 0.
        max_new_tokens: longest response.
        ends: a response ends with the end-of-sequence token; False: that is a token like others.
    """
    cache = read_prompts(model, ids[:, :-1], mask[:, :-1])
    cache.batch_repeat_interleave(samples)
    ids, mask = ids.repeat_interleave(samples, 0), mask.repeat_interleave(samples, 0)
    responses = ids.new_full((len(ids), max_new_tokens), model.generation_config.pad_token_id)
    lengths = ids.new_full((len(ids),), max_new_tokens)
    going, token, attention = torch.arange(len(ids)), ids[:, -1:], mask
    for place in range(max_new_tokens):
        output = model(
            input_ids=token,
            attention_mask=attention,
            position_ids=positions(attention)[:, -1:],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        token = torch.multinomial((output.logits[:, -1] / temperature).softmax(-1), 1)
        responses[going, place] = token.squeeze(1)
        if ends and bool((ended := token.squeeze(1) == model.generation_config.eos_token_id).any()):
            lengths[going[ended]] = place + 1
            left = (~ended).nonzero().squeeze(1)
            if not len(left):
                break
            # The rows that have ended would cost as much as those that go on.
            cache.batch_select_indices(left)
            going, token, attention = going[left], token[left], attention[left]
        attention = functional.pad(attention, (0, 1), value=1)
    response_mask = torch.arange(max_new_tokens) < lengths.unsqueeze(1)
    return Responses(torch.cat([ids, responses], 1), torch.cat([mask.bool(), response_mask], 1), response_mask)


def read_prompts(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> DynamicCache:
    """The keys and values of each row of ``ids`` (P, L)."""
    output = model(input_ids=ids, attention_mask=mask, position_ids=positions(mask), use_cache=True, logits_to_keep=1)
    return output.past_key_values


@torch.no_grad()
def sequence_log_probs(model: PreTrainedModel, samples: Responses) -> torch.Tensor:
    """(B,) log pi(y|x) of each response at T = 1, in nats. Equal rows are computed once."""
    rows, of_row = samples.rows.unique(dim=0, return_inverse=True)
    attention = rows.new_zeros(rows.shape, dtype=torch.bool).index_copy(0, of_row, samples.attention)
    by_length = attention.sum(-1).argsort()
    result = torch.empty(len(rows))
    for part in by_length.split(ROWS_AT_A_TIME):
        result[part] = _log_probs(model, rows[part], attention[part], samples.prompt_length)
    return result[of_row]


def _log_probs(model: PreTrainedModel, rows: torch.Tensor, attention: torch.Tensor, prompt_length: int) -> torch.Tensor:
    longest = int(attention[:, prompt_length:].sum(-1).max())
    rows, attention = rows[:, : prompt_length + longest], attention[:, : prompt_length + longest]
    output = model(
        input_ids=rows,
        attention_mask=attention.long(),
        position_ids=positions(attention),
        logits_to_keep=longest + 1,
    )
    steps = output.logits[:, :-1].log_softmax(-1).gather(-1, rows[:, prompt_length:].unsqueeze(-1)).squeeze(-1)
    return torch.where(attention[:, prompt_length:], steps, 0.0).sum(-1)


def positions(attention: torch.Tensor) -> torch.Tensor:
    """(B, L) of each token, counted from the first that isn't padding."""
    return (attention.long().cumsum(-1) - 1).clamp(min=0)
