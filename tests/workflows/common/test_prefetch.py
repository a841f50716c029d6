"""A prefetched generator yields the same items, and its thread never outlives its use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from workflows.common.prefetch import prefetch

ROOT = Path(__file__).parents[3]


class Numbers:
    """Counts to `end` and records its progress."""

    def __init__(self, end: int, error: Exception | None = None) -> None:
        self.end, self.error = end, error
        self.made = 0
        self.threads: set[str] = set()
        self.closed = threading.Event()
        self.waiting = threading.Event()  # set once `until` items have been produced
        self.until = -1

    def __call__(self) -> Generator[int, None, None]:
        try:
            for number in range(self.end):
                self.made += 1
                self.threads.add(threading.current_thread().name)
                if self.made == self.until:
                    self.waiting.set()
                yield number
            if self.error is not None:
                raise self.error
        finally:
            self.closed.set()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Generator[None, None, None]:
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.mark.parametrize("end", [0, 1, 2, 100])
@pytest.mark.parametrize("most", [1, 3, 1000])
def test_all_items_come_in_order_from_another_thread(end: int, most: int) -> None:
    numbers = Numbers(end)
    assert list(prefetch(numbers(), most)) == list(range(end))
    assert numbers.closed.is_set()
    assert numbers.threads <= {"made-ahead"}


@pytest.mark.parametrize("most", [1, 4])
def test_prefetching_stops_at_the_limit(most: int) -> None:
    numbers = Numbers(100)
    numbers.until = most + 3  # two consumed, `most` queued, one waiting for room
    with closing(prefetch(numbers(), most)) as ahead:
        assert [next(ahead), next(ahead)] == [0, 1]
        assert numbers.waiting.wait(timeout=60)
        assert numbers.made == most + 3
    assert numbers.made == most + 3
    assert numbers.closed.is_set()


def test_nothing_is_produced_before_the_first_next() -> None:
    numbers = Numbers(3)
    ahead = prefetch(numbers(), 2)
    ahead.close()
    assert numbers.made == 0


def test_an_error_is_raised_after_the_items_before_it() -> None:
    error = ValueError("a broken file")
    ahead = prefetch(Numbers(3, error)(), 1000)
    assert [next(ahead) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="a broken file") as caught:
        next(ahead)
    assert caught.value is error


def test_an_error_in_the_consumer_closes_the_generator() -> None:
    numbers = Numbers(10**9)
    with suppress(ZeroDivisionError), closing(prefetch(numbers(), 2)) as ahead:
        for number in ahead:
            1 // (5 - number)
    assert numbers.closed.is_set()
    assert numbers.made <= 5 + 1 + 2 + 1


def test_the_generator_is_closed_when_the_prefetcher_is_garbage_collected() -> None:
    numbers = Numbers(10**9)
    assert next(prefetch(numbers(), 2)) == 0  # the prefetcher is collected here
    assert numbers.closed.is_set()


PROGRAM = """
import itertools, os, signal, sys
from contextlib import closing
from workflows.common.prefetch import prefetch
from workflows.common.errors import run_command
signal.signal(signal.SIGINT, signal.default_int_handler)  # shells make background jobs ignore it
def numbers():
    try:
        yield from itertools.count()
    finally:
        print("closed", flush=True)
def main():
    with closing(prefetch(numbers(), 2)) as ahead:
        next(ahead)
        print("ready", flush=True)
        {body}
run_command(main)
"""


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interruption_ends_the_process(name: str, status: int) -> None:
    program = PROGRAM.format(body="[None for _ in ahead]")
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(getattr(signal, name))
        assert process.communicate(timeout=60)[0] == "closed\n"
        assert process.returncode == status
    finally:
        process.kill()


def test_an_unclosed_generator_does_not_block_exit() -> None:
    program = PROGRAM.format(body="open_for_ever.append(prefetch(itertools.count(), 2)); next(open_for_ever[0])")
    program = program.replace("def main", "open_for_ever = []\ndef main").replace(
        "itertools.count()", "(n for n in itertools.count())"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, env={**os.environ}
    )
    assert (ran.returncode, ran.stdout) == (0, "ready\nclosed\n"), ran.stderr
