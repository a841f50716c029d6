"""Batches of known composition: the first call is blocked until all other queries wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from model.serve.batching import Batcher, QueueFullError


class Held:
    """Answers 10 times each query once released; records the batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.began, self.let_go = threading.Event(), threading.Event()

    def __call__(self, batch: list[int]) -> list[int]:
        self.batches.append(batch)
        self.began.set()
        assert self.let_go.wait(60)
        if 13 in batch:
            raise ValueError("13")
        return [10 * query for query in batch]


def with_batcher(
    body: Callable[[Batcher[int, int], Held], Coroutine[Any, Any, None]], max_batch: int = 100, max_waiting: int = 100
) -> Held:
    held = Held()

    async def main() -> None:
        batcher = Batcher(held, max_batch, max_waiting)
        worker = asyncio.create_task(batcher.run())
        await body(batcher, held)
        worker.cancel()

    asyncio.run(asyncio.wait_for(main(), 60))
    return held


async def first_call(batcher: Batcher[int, int], held: Held) -> asyncio.Task[list[int]]:
    """Ask for 0 and return once its call has begun."""
    task = asyncio.create_task(batcher.ask([0]))
    assert await asyncio.to_thread(held.began.wait, 60)
    return task


@pytest.mark.parametrize(("max_batch", "expected"), [(100, [[0], [1, 2, 3, 4]]), (3, [[0], [1, 2, 3], [4]])])
def test_waiting_queries_are_answered_together(max_batch: int, expected: list[list[int]]) -> None:
    async def body(batcher: Batcher[int, int], held: Held) -> None:
        first = await first_call(batcher, held)
        others = [asyncio.create_task(batcher.ask(queries)) for queries in ([1], [2, 3], [4])]
        await asyncio.sleep(0)
        assert batcher.n_waiting == 4
        held.let_go.set()
        assert await asyncio.gather(first, *others) == [[0], [10], [20, 30], [40]]

    assert with_batcher(body, max_batch).batches == expected


def test_queries_beyond_the_queue_are_rejected_as_a_whole() -> None:
    async def body(batcher: Batcher[int, int], held: Held) -> None:
        first = await first_call(batcher, held)
        second = asyncio.create_task(batcher.ask([1, 2]))
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batcher.ask([3, 4])
        held.let_go.set()
        assert await asyncio.gather(first, second, batcher.ask([5])) == [[0], [10, 20], [50]]

    assert [query for batch in with_batcher(body, max_waiting=3).batches for query in batch] == [0, 1, 2, 5]


def test_a_failing_call_fails_only_its_batch() -> None:
    async def body(batcher: Batcher[int, int], held: Held) -> None:
        held.let_go.set()
        with pytest.raises(ValueError, match="13"):
            await batcher.ask([12, 13])
        assert await batcher.ask([14]) == [140]

    with_batcher(body)


def test_cancelled_queries_are_not_answered() -> None:
    async def body(batcher: Batcher[int, int], held: Held) -> None:
        first = await first_call(batcher, held)
        gone, second = asyncio.create_task(batcher.ask([1])), asyncio.create_task(batcher.ask([2]))
        await asyncio.sleep(0)
        for task in (gone, first):  # one waiting, and one whose call has begun
            task.cancel()
        await asyncio.gather(gone, first, return_exceptions=True)
        held.let_go.set()
        assert await second == [20]

    assert with_batcher(body).batches == [[0], [2]]
