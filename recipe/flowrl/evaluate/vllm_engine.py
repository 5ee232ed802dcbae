"""vLLM's engine in this process, on GPUs or with its CPU build."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from typing import Any

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.common.rules import guess
from recipe.flowrl.evaluate.generation import Completion, Request, Sampling

_CPU_ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # while this is 1, vLLM's CPU build changes the executor uni to mp
    "VLLM_NO_USAGE_STATS": "1",
    "TORCHDYNAMO_DISABLE": "1",  # a compilation of 17 s that a short run never earns back
}
_CPU_SETTINGS = {
    "dtype": "float32",
    "enforce_eager": True,
    # vLLM's CPU build can seed a request only if its prompt is prefilled in one piece.
    "enable_chunked_prefill": False,
    "enable_prefix_caching": False,
    "distributed_executor_backend": "uni",
    "max_num_seqs": 64,
    "kv_cache_memory_bytes": 512 * 2**20,
}


class VLLMEngine:
    """vLLM on one model.

    Args:
        model: directory in Hugging Face's layout, or a name on the hub.
        prompts: all user turns that will be asked.
        max_tokens: longest response.
        settings: of vLLM's ``EngineArgs``, by name.

    Raises:
        UserError: the model has no chat template or too few positions, or vLLM can't be set like this.
    """

    def __init__(self, model: str, prompts: Sequence[str], max_tokens: int, settings: dict[str, Any]) -> None:
        import torch

        self._tokens = _tokenized(model, prompts)
        longest = max(map(len, self._tokens.values()))
        _check_length(model, longest, max_tokens)
        length = longest + max_tokens
        own: dict[str, Any] = {"model": model, "max_model_len": length, "disable_log_stats": True}
        if not torch.cuda.is_available():
            own |= _CPU_SETTINGS | {"max_num_batched_tokens": max(2048, length)}
            for name, value in _CPU_ENVIRONMENT.items():  # read when vLLM is imported
                os.environ.setdefault(name, value)
        self._engine = _start(own | settings)

    def __enter__(self) -> "VLLMEngine":
        return self

    def __exit__(self, *_: object) -> None:
        """Give the memory back: grading may need it."""
        self._engine.engine_core.shutdown()

    def describe(self) -> dict[str, Any]:
        """See :class:`recipe.flowrl.evaluate.generation.Engine`."""
        dtype = str(self._engine.vllm_config.model_config.dtype).removeprefix("torch.")
        return {"name": "vllm", "version": version("vllm"), "dtype": dtype}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[Request, Completion]]:
        """See :class:`recipe.flowrl.evaluate.generation.Engine`."""
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        waiting = {}
        for number, request in enumerate(requests):
            params = SamplingParams(
                **dataclasses.asdict(sampling), seed=request.seed, output_kind=RequestOutputKind.FINAL_ONLY
            )
            prompt = TokensPrompt(prompt_token_ids=self._tokens[request.problem.prompt])
            waiting[str(number)] = request
            self._engine.add_request(str(number), prompt, params)
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.finished:
                    response = output.outputs[0]
                    completion = Completion(response.text, _reason(response), len(response.token_ids))
                    yield waiting.pop(output.request_id), completion


def _tokenized(model: str, prompts: Sequence[str]) -> dict[str, list[int]]:
    """The tokens of each prompt as a user's turn."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserError(f"model={model}: its tokenizer can't be loaded ({_brief(error)})") from error
    if not tokenizer.chat_template:
        raise UserError(f"model={model}: its tokenizer has no chat template, by which prompts are written")

    def tokens(prompt: str) -> list[int]:
        turn = [{"role": "user", "content": prompt}]
        text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        return tokenizer.encode(text, add_special_tokens=False)

    return {prompt: tokens(prompt) for prompt in dict.fromkeys(prompts)}


def _check_length(model: str, longest: int, max_tokens: int) -> None:
    """Refuse what the model has no positions for, before vLLM does in its own words."""
    from transformers import AutoConfig

    positions = getattr(AutoConfig.from_pretrained(model), "max_position_embeddings", None)
    if positions is not None and longest + max_tokens > positions:
        raise UserError(
            f"max_tokens={max_tokens}: the longest prompt has {longest} tokens and the model {positions} positions: at "
            f"most max_tokens={positions - longest}"
        )


def _start(settings: dict[str, Any]) -> Any:
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    known = [field.name for field in dataclasses.fields(EngineArgs)]
    if unknown := [name for name in settings if name not in known]:
        raise UserError(f"engine.{unknown[0]}: not a setting of vLLM{guess(unknown[0], known)}")
    try:
        return LLMEngine.from_engine_args(EngineArgs(**settings))
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(f"vLLM doesn't start: {_brief(error)}") from error


def _reason(response: Any) -> str:
    if response.finish_reason not in ("stop", "length"):
        raise RuntimeError(f"vLLM ended a request with {response.finish_reason!r}")
    return response.finish_reason


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
