"""Calls of the same moment, served together."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Joined(Generic[Item, Result]):
    """A function of one item; what several tasks ask in the same turn of the event loop is asked once for all of them.

    Args:
        serve: answers the items in their order. An answer that is an exception is raised to whom it belongs.
    """

    def __init__(self, serve: Callable[[list[Item]], Awaitable[Sequence[Result | BaseException]]]) -> None:
        self._serve = serve
        self._asked: list[tuple[Item, asyncio.Future[Result]]] = []
        self._serving: set[asyncio.Task[None]] = set()

    async def __call__(self, item: Item) -> Result:
        """The answer for ``item``.

        Raises:
            BaseException: what ``serve`` raised, or its answer where that is an exception.
        """
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Result] = loop.create_future()
        self._asked.append((item, answer))
        if len(self._asked) == 1:
            loop.call_soon(self._start)  # tasks that are ready by now run before it
        return await answer

    def _start(self) -> None:
        asked, self._asked = self._asked, []
        task = asyncio.get_running_loop().create_task(self._answer(asked))
        self._serving.add(task)
        task.add_done_callback(self._serving.discard)

    async def _answer(self, asked: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        results: Sequence[Result | BaseException]
        try:
            results = await self._serve([item for item, _ in asked])
        except BaseException as error:
            results = [error] * len(asked)
        for (_, answer), result in zip(asked, results, strict=True):
            if answer.done():  # nobody waits for it any more
                continue
            if isinstance(result, BaseException):
                answer.set_exception(result)
            else:
                answer.set_result(result)
