"""verl's client of the rollout servers, for the samples of one prompt: one server for all of them, and one message."""

import asyncio
import copy
import traceback
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from verl.workers.rollout.llm_server import LLMServerClient
from verl.workers.rollout.replica import TokenOutput

from verl_ext.joined import Joined


def for_one_group(client: LLMServerClient, interruptible: bool = True) -> LLMServerClient:
    """``client`` for the samples of one prompt, whose messages travel together where they are sent at the same time.

    Args:
        client: verl's.
        interruptible: whether new weights may arrive at a server before it has answered.

    What verl's client does beside sending is unchanged: a sample that is aborted while new weights arrive goes on by
    itself, or together with those that wake when it does. The load balancer counts a group as one request.
    """
    grouped = copy.copy(client)
    leases = _Leases(client, interruptible)
    grouped._acquire_server = leases.acquire
    grouped._release_server = leases.release
    return grouped


@dataclass
class _Lease:
    """A server, given to several samples at once; it looks like its handle to verl's client."""

    server_id: str
    request_id: str
    server: Any
    holders: int
    interruptible: bool

    def __post_init__(self) -> None:
        self._joined = Joined[dict[str, Any], TokenOutput](self._generate)

    @property
    def generate(self) -> "_Lease":
        return self

    async def remote(self, **request: Any) -> TokenOutput:
        return await self._joined(request)

    async def _generate(self, requests: list[dict[str, Any]]) -> list[TokenOutput | BaseException]:
        prompt = requests[0]["prompt_ids"]
        # An object that several requests share is sent once.
        requests = [{**one, "prompt_ids": prompt} if one["prompt_ids"] == prompt else one for one in requests]
        return await self.server.generate_group.remote(requests, self.interruptible)


class _Leases:
    """The servers that the samples of a group hold."""

    def __init__(self, client: LLMServerClient, interruptible: bool) -> None:
        self._client, self._interruptible = client, interruptible
        self._held: dict[str, _Lease] = {}
        self._joined = Joined[tuple[str, dict[str, Any]], tuple[str, _Lease]](self._acquire)

    async def acquire(self, request_id: str, **fields: Any) -> tuple[str, _Lease]:
        return await self._joined((request_id, fields))

    async def _acquire(self, asked: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, _Lease]]:
        request_id, fields = asked[0]
        server_id, server = await self._client._acquire_server(request_id, **fields)
        lease = _Lease(server_id, request_id, server, len(asked), self._interruptible)
        self._held.update({holder: lease for holder, _ in asked})
        return [(server_id, lease)] * len(asked)

    def release(self, server_id: str, request_id: str) -> None:
        lease = self._held.pop(request_id)
        lease.holders -= 1
        if not lease.holders:
            self._client._release_server(server_id, request_id=lease.request_id)


class AnswersGroups:
    """Put in front of a rollout server's class: one call for several requests."""

    generate: Callable[..., Coroutine[Any, Any, TokenOutput]]
    sampling: Mapping[str, Any] = {}
    """Sampling parameters of every request of a group."""
    sampling_in_one_go: Mapping[str, Any] = {}
    """Those of requests that nothing interrupts, as well."""

    async def generate_group(
        self, requests: list[dict[str, Any]], interruptible: bool
    ) -> list[TokenOutput | RuntimeError]:
        """Answer several requests, each the arguments of ``generate``; where one fails, its error is its answer."""
        more = self.sampling if interruptible else {**self.sampling, **self.sampling_in_one_go}
        # What the caller shares among the requests is shared here as well, and verl's method writes into it.
        own = [{**request, "sampling_params": {**request["sampling_params"], **more}} for request in requests]
        answers = await asyncio.gather(*(self.generate(**request) for request in own), return_exceptions=True)
        return [
            RuntimeError("".join(traceback.format_exception(answer))) if isinstance(answer, BaseException) else answer
            for answer in answers
        ]
