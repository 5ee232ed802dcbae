"""The floor of a rollout: vLLM alone, offline, with the run's settings, on the same prompts for as many tokens."""

import time
from typing import Any


def measure(argument: dict[str, Any]) -> list[float]:
    """Seconds for each step.

    Args:
        argument: ``engine``, arguments of ``vllm.LLM``; ``sampling``, of each request; ``steps``, for each step a list
            of (prompt's token ids, number of tokens to generate).
    """
    from vllm import LLM, SamplingParams, TokensPrompt

    llm = LLM(**argument["engine"])
    seconds = []
    for step in argument["steps"]:
        prompts = [TokensPrompt(prompt_token_ids=prompt) for prompt, _ in step]
        params = [
            SamplingParams(max_tokens=length, ignore_eos=True, detokenize=False, **argument["sampling"])
            for _, length in step
        ]
        start = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        seconds.append(time.perf_counter() - start)
        generated = [len(output.outputs[0].token_ids) for output in outputs]
        if generated != [length for _, length in step]:
            raise RuntimeError("vLLM generated other numbers of tokens than asked for")
    return seconds
