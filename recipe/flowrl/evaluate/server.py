"""Any server with OpenAI's chat interface, so that one machine serves while another asks and grades."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any
from urllib.parse import urlsplit

import openai

from recipe.flowrl.common.errors import UserError
from recipe.flowrl.evaluate.generation import Completion, Request, Sampling

_TAKES_MORE = ("vllm", "sglang")
"""Servers, by the ``owned_by`` of their models, that fill in what a request leaves out from the model's
``generation_config``: top-k, penalties. They know the fields that switch it off; others refuse unknown fields."""
_SWITCHED_OFF = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}
_TIMEOUT_S = 3600.0
"""For one response: thousands of tokens in a full batch take long."""


class ServerEngine:
    """A model on a server. The key is taken from ``OPENAI_API_KEY``, if it wants one.

    Args:
        url: base URL, as ``http://host:8000/v1``.
        model: as the server calls it.
        concurrency: requests at once.

    Raises:
        UserError: it can't be reached, or has no such model.
    """

    def __init__(self, url: str, model: str, concurrency: int) -> None:
        key = os.environ.get("OPENAI_API_KEY", "none")
        self._client = openai.OpenAI(base_url=url, api_key=key, max_retries=5, timeout=_TIMEOUT_S)
        self._url, self._model, self._concurrency = url, model, concurrency
        asking = self._client.with_options(max_retries=1, timeout=30.0)  # a wrong address is told at once
        try:
            models = {entry.id: entry for entry in asking.models.list()}
        except openai.OpenAIError as error:
            raise UserError(f"server={url}: {_brief(error)}") from error
        if model not in models:
            raise UserError(f"model={model}: not on {url}, which has {', '.join(models) or 'none'}")
        self._owner = models[model].owned_by
        self._extra = _SWITCHED_OFF if self._owner in _TAKES_MORE else {}

    def describe(self) -> dict[str, Any]:
        """See :class:`recipe.flowrl.evaluate.generation.Engine`."""
        return {"name": "server", "version": self._owner, "host": urlsplit(self._url).hostname}

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[Request, Completion]]:
        """See :class:`recipe.flowrl.evaluate.generation.Engine`."""
        pool = ThreadPoolExecutor(self._concurrency)
        try:
            futures = {pool.submit(self._ask, request, sampling): request for request in requests}
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, request: Request, sampling: Sampling) -> Completion:
        try:
            reply = self._client.chat.completions.create(
                model=self._model,
                messages=[{"role": "user", "content": request.problem.prompt}],
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=request.seed,
                extra_body=self._extra,
            )
        except openai.OpenAIError as error:
            raise UserError(f"server={self._url}: {request.problem.id}: {_brief(error)}") from error
        choice = reply.choices[0]
        if choice.finish_reason not in ("stop", "length") or reply.usage is None:
            raise UserError(
                f"server={self._url}: {request.problem.id}: ended with {choice.finish_reason!r}, usage {reply.usage}; "
                "needed: stop or length, and the number of tokens"
            )
        text = (choice.message.content or "").encode(errors="replace").decode()  # JSON may hold half a surrogate pair
        return Completion(text, choice.finish_reason, reply.usage.completion_tokens)


def _brief(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
