"""Prefetching of a generator's items on a background thread."""

from __future__ import annotations

from collections.abc import Generator
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import TypeVar

T = TypeVar("T")


def prefetch(items: Generator[T, None, None], most: int) -> Generator[T, None, None]:
    """Run a generator on its own thread and prefetch its items, starting with the first `next`.

    Closing this generator, or an exception in it, ends the thread and closes `items` before control returns.
    Exceptions from `items` are raised here, after the items that preceded them.

    Args:
        most: maximum number of items waiting to be consumed, at least 1.
    """
    made: SimpleQueue[T | BaseException] = SimpleQueue()
    room, wanted = Semaphore(most), True

    def make() -> None:
        try:
            for item in items:
                made.put(item)
                room.acquire()
                if not wanted:
                    break
            items.close()
            made.put(StopIteration())
        except BaseException as err:
            made.put(err)

    # A daemon, so that an unclosed generator does not block interpreter exit.
    thread = Thread(target=make, name="made-ahead", daemon=True)
    thread.start()
    try:
        while True:
            item = made.get()
            if isinstance(item, BaseException):
                if isinstance(item, StopIteration):
                    return
                raise item
            room.release()
            yield item
    finally:
        wanted = False
        room.release()
        thread.join()
