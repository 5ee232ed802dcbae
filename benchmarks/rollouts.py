"""The tokens of a run's rollouts, rebuilt from the texts that it left."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig

from recipe.flowrl.common.jsonl import JsonLines


@dataclass(frozen=True)
class Rollout:
    """One sampled answer, in token ids."""

    prompt: list[int]
    response: list[int]


def read_rollouts(run_dir: Path, config: DictConfig, steps: Sequence[int]) -> list[list[Rollout]]:
    """Each step's rollouts.

    Texts lack special tokens. The prompt gets them back from the data set, an answer that wasn't cut off gets back its
    end-of-sequence token.

    Raises:
        ValueError: a prompt isn't in the data set.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
    prompts = _prompts_by_text(config, tokenizer)
    longest = config.data.max_response_length

    def rollout(line: dict) -> Rollout:
        if line["input"] not in prompts:
            raise ValueError(f"{run_dir}: a rollout's prompt isn't in the training data: {line['input'][:80]!r}")
        response = tokenizer(line["output"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        return Rollout(prompts[line["input"]], response[:longest])

    files = [run_dir / "rollouts" / f"{step}.jsonl" for step in steps]
    # verl fills a step up with empty rows where a rollout is missing.
    steps_of_rows = [JsonLines(path).read() for path in files]
    return [[rollout(row) for row in rows if not str(row.get("uid", "")).startswith("pad")] for rows in steps_of_rows]


def token_count(rollouts: Sequence[Rollout]) -> int:
    """Tokens of prompts and responses."""
    return sum(len(rollout.prompt) + len(rollout.response) for rollout in rollouts)


def _prompts_by_text(config: DictConfig, tokenizer: object) -> dict[str, list[int]]:
    import pyarrow.parquet as parquet

    files = config.data.train_files
    kwargs = config.data.get("apply_chat_template_kwargs") or {}
    prompts = {}
    for path in [files] if isinstance(files, str) else files:
        for messages in parquet.read_table(path, columns=[config.data.prompt_key])[config.data.prompt_key].to_pylist():
            ids = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=True, return_dict=False, **kwargs
            )
            prompts[tokenizer.decode(ids, skip_special_tokens=True)] = ids
    return prompts
