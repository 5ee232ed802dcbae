"""Sampling a small policy with transformers, and the log-probs of what it said."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

ROWS_AT_A_TIME = 256


@dataclass(frozen=True)
class Samples:
    """``n`` responses to each of ``P`` prompts, prompt by prompt: ``B = P n`` rows.

    Attributes:
        texts: B responses without special tokens.
        rows: (B, L) prompt, padded on the left, and response of ``response_mask.shape[1]`` tokens.
        attention: (B, L) what isn't padding.
        response_mask: (B, T) tokens of the response, the end-of-sequence token included.
    """

    texts: list[str]
    rows: torch.Tensor
    attention: torch.Tensor
    response_mask: torch.Tensor


@torch.no_grad()
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
    """Sample without top-k or top-p. The same seed gives the same samples. A prompt is read once for all its responses.

    Args:
        model, tokenizer: the tokenizer is made to pad on the left.
        prompts: one user turn each.
        samples: responses for each.
        temperature: above 0.
        max_new_tokens: longest response.
        seed: of torch's generator, which is left as it was.
    """
    tokenizer.padding_side = "left"
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    texts = [tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False) for turn in turns]
    inputs = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    prompt_length = ids.shape[1]
    parts = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        prompts_at_a_time = max(1, ROWS_AT_A_TIME // samples)
        for part_ids, part_mask in zip(ids.split(prompts_at_a_time), mask.split(prompts_at_a_time), strict=True):
            output = model.generate(
                input_ids=part_ids.repeat_interleave(samples, 0),
                attention_mask=part_mask.repeat_interleave(samples, 0),
                past_key_values=_read(model, part_ids[:, :-1], part_mask[:, :-1], samples),
                do_sample=True,
                temperature=temperature,
                top_k=0,
                top_p=1.0,
                max_new_tokens=max_new_tokens,
            )
            missing = prompt_length + max_new_tokens - output.shape[1]
            parts.append(functional.pad(output, (0, missing), value=model.generation_config.pad_token_id))
    rows = torch.cat(parts)
    responses = rows[:, prompt_length:]
    ended = (responses == model.generation_config.eos_token_id).int()
    response_mask = ended.cumsum(-1) - ended == 0  # up to and with the first end-of-sequence token
    attention = torch.cat([mask.bool().repeat_interleave(samples, 0), response_mask], dim=1)
    return Samples(tokenizer.batch_decode(responses, skip_special_tokens=True), rows, attention, response_mask)


def _read(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, samples: int) -> DynamicCache:
    """The keys and values of each row of ``ids``, ``samples`` times."""
    output = model(input_ids=ids, attention_mask=mask, position_ids=_positions(mask), use_cache=True, logits_to_keep=1)
    output.past_key_values.batch_repeat_interleave(samples)
    return output.past_key_values


@torch.no_grad()
def sequence_log_probs(model: PreTrainedModel, samples: Samples) -> torch.Tensor:
    """(B,) log pi(y|x) of each response at T = 1, in nats. Equal rows are computed once."""
    prompt_length = samples.rows.shape[1] - samples.response_mask.shape[1]
    rows, of_row = samples.rows.unique(dim=0, return_inverse=True)
    attention = rows.new_zeros(rows.shape, dtype=torch.bool).index_copy(0, of_row, samples.attention)
    by_length = attention.sum(-1).argsort()
    result = torch.empty(len(rows))
    for part in by_length.split(ROWS_AT_A_TIME):
        result[part] = _log_probs(model, rows[part], attention[part], prompt_length)
    return result[of_row]


def _log_probs(model: PreTrainedModel, rows: torch.Tensor, attention: torch.Tensor, prompt_length: int) -> torch.Tensor:
    longest = int(attention[:, prompt_length:].sum(-1).max())
    rows, attention = rows[:, : prompt_length + longest], attention[:, : prompt_length + longest]
    output = model(
        input_ids=rows,
        attention_mask=attention.long(),
        position_ids=_positions(attention),
        logits_to_keep=longest + 1,
    )
    steps = output.logits[:, :-1].log_softmax(-1).gather(-1, rows[:, prompt_length:].unsqueeze(-1)).squeeze(-1)
    return torch.where(attention[:, prompt_length:], steps, 0.0).sum(-1)


def _positions(attention: torch.Tensor) -> torch.Tensor:
    """(B, L) of each token, counted from the first that isn't padding."""
    return (attention.long().cumsum(-1) - 1).clamp(min=0)
