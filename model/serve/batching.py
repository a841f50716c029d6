"""Micro-batching: queries that arrive while one batch is answered form the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Query = TypeVar("Query")
Answer = TypeVar("Answer")


class QueueFullError(Exception):
    """The queue has no room for the queries."""


class Batcher(Generic[Query, Answer]):
    """Answers concurrent queries with few calls of one function, one call at a time, in a thread."""

    def __init__(self, answer: Callable[[list[Query]], list[Answer]], max_batch: int, max_waiting: int) -> None:
        """
        Args:
            answer: maps queries to their answers, in order.
            max_batch: maximum number of queries per call.
            max_waiting: maximum number of waiting queries.
        """
        self._answer, self._max_batch = answer, max_batch
        self._waiting: asyncio.Queue[tuple[Query, asyncio.Future[Answer]]] = asyncio.Queue(max_waiting)

    @property
    def n_waiting(self) -> int:
        """Number of queries not yet taken by a call."""
        return self._waiting.qsize()

    async def ask(self, queries: Sequence[Query]) -> list[Answer]:
        """Answer the queries, all or none.

        Raises:
            QueueFullError: the queue has no room for all queries.
        """
        if self.n_waiting + len(queries) > self._waiting.maxsize:
            raise QueueFullError
        loop = asyncio.get_running_loop()
        futures = [loop.create_future() for _ in queries]
        for pair in zip(queries, futures, strict=True):
            self._waiting.put_nowait(pair)
        return await asyncio.gather(*futures)

    async def run(self) -> None:
        """Answer until cancelled."""
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self._max_batch and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            await self._settle([pair for pair in batch if not pair[1].done()])

    async def _settle(self, batch: list[tuple[Query, asyncio.Future[Answer]]]) -> None:
        try:
            answers = await asyncio.to_thread(self._answer, [query for query, _ in batch])
            settled = list(zip(batch, answers, strict=True))
        except Exception as err:
            for _, future in batch:
                if not future.done():
                    future.set_exception(err)
            return
        for (_, future), answer in settled:
            if not future.done():  # cancelled in the meantime
                future.set_result(answer)
