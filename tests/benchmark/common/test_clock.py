"""Time is charged to the right stage, tested with a fake clock."""

from __future__ import annotations

import threading

import pytest

from benchmark.common import clock as module
from benchmark.common.clock import Clock


def test_a_clock_charges_each_second_to_one_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    clock = Clock()

    def take(seconds: float) -> None:
        now[0] += seconds

    inner = clock.timed(lambda: take(2.0), "inner")

    def outer() -> None:
        take(1.0)
        inner()
        inner()
        take(4.0)

    clock.timed(outer, "outer")()
    inner()
    other = threading.Thread(target=inner)
    other.start()
    other.join()
    assert clock.seconds == {"inner": 6.0, "outer": 5.0}
