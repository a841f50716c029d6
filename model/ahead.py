"""Items of an iterator made ahead of their use, by a thread."""

from __future__ import annotations

from collections.abc import Generator
from queue import SimpleQueue
from threading import Semaphore, Thread
from typing import TypeVar

T = TypeVar("T")


def made_ahead(items: Generator[T, None, None], most: int) -> Generator[T, None, None]:
    """The items of a generator, which runs in a thread of its own from the first `next` on.

    Closing this one, or an exception here, ends the thread and closes the generator before anything goes on. What the
    generator raises is raised here, behind the items before it.

    Args:
        most: items, 1 or more, that may be waiting to be used.
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

    # A daemon, should this generator be left where nobody closes it when the interpreter ends.
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
