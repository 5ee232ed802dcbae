"""A model and a batch for the update: random weights, random tokens, the shapes of the real thing."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tensordict import TensorDict
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from verl_ext.files import write_json, write_text


@dataclass(frozen=True)
class Workload:
    """Sizes of the model and of one mini-batch.

    The model is deep and narrow, as pretrained small models are: log Z's MLP, of about 2 hidden_size^2 parameters, is
    0.5% of it, as it is of SmolLM2-135M.
    """

    layers: int = 24
    hidden_size: int = 192
    intermediate_size: int = 768
    heads: int = 6
    key_value_heads: int = 2
    vocabulary: int = 4096
    sequences: int = 16
    prompt_tokens: int = 48
    response_tokens: int = 64
    micro_batch: int = 8


def write_model(workload: Workload, directory: Path) -> int:
    """Write a model directory with random weights and a byte-level tokenizer; returns the number of parameters."""
    alphabet = [*sorted(ByteLevel.alphabet()), "<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    write_json(directory / "vocab.json", {token: index for index, token in enumerate(alphabet)})
    write_text(directory / "merges.txt", "#version: 0.2\n")
    write_json(directory / "config.json", {"model_type": "qwen2"})
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.eos_token, tokenizer.pad_token = "<|im_end|>", "<|endoftext|>"
    tokenizer.save_pretrained(directory)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=workload.vocabulary,
            hidden_size=workload.hidden_size,
            intermediate_size=workload.intermediate_size,
            num_hidden_layers=workload.layers,
            num_attention_heads=workload.heads,
            num_key_value_heads=workload.key_value_heads,
            max_position_embeddings=2 * (workload.prompt_tokens + workload.response_tokens),
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
    model.save_pretrained(directory)
    return sum(parameter.numel() for parameter in model.parameters())


def make_batch(workload: Workload, seed: int = 0) -> TensorDict:
    """One mini-batch as verl's V1 trainer sends it to ``update_actor``: jagged columns, settings beside them.

    Lengths vary by a quarter around the workload's; the old and the reference policy's log-probs are near to those of
    a random model, -log(vocabulary).
    """
    from verl.utils import tensordict_utils as tu

    generator = torch.Generator().manual_seed(seed)

    def lengths(mean: int) -> list[int]:
        low, high = mean - mean // 4, mean + mean // 4
        return torch.randint(low, high + 1, (workload.sequences,), generator=generator).tolist()

    def tokens(length: int) -> torch.Tensor:
        return torch.randint(workload.vocabulary, (length,), generator=generator)

    def log_probs(length: int) -> torch.Tensor:
        return -torch.tensor(float(workload.vocabulary)).log() + 0.1 * torch.randn(length, generator=generator)

    prompts = [tokens(length) for length in lengths(workload.prompt_tokens)]
    responses = [tokens(length) for length in lengths(workload.response_tokens)]
    input_ids = [torch.cat(pair) for pair in zip(prompts, responses, strict=True)]
    masks = [torch.ones_like(response) for response in responses]
    advantages = [torch.randn(1, generator=generator).expand(len(response)) for response in responses]
    columns = {
        "prompts": prompts,
        "responses": responses,
        "input_ids": input_ids,
        "position_ids": [torch.arange(len(row)) for row in input_ids],
        "response_mask": masks,
        "loss_mask": masks,
        "advantages": advantages,
        "returns": advantages,
        "old_log_probs": [log_probs(len(response)) for response in responses],
        "ref_log_prob": [log_probs(len(response)) for response in responses],
        "rollout_log_probs": [log_probs(len(response)) for response in responses],
    }
    return tu.get_tensordict(
        {name: torch.nested.as_nested_tensor(rows, layout=torch.jagged) for name, rows in columns.items()},
        non_tensor_dict={
            "calculate_entropy": False,
            "distillation_use_topk": False,
            "distillation_only": False,
            "global_batch_size": workload.sequences,
            "mini_batch_size": workload.sequences,
            "epochs": 1,
            "seed": 42,
            "dataloader_kwargs": {"shuffle": False},
            "temperature": 1.0,
        },
    )
