"""Time per stage, where a stage is a set of functions or methods."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Clock:
    """Exclusive seconds per stage, on the creating thread only: time in a nested stage counts for that stage alone."""

    seconds: dict[str, float] = field(default_factory=dict)
    _within: list[float] = field(default_factory=list)  # per active stage: seconds in nested stages
    _thread: int = field(default_factory=threading.get_ident)

    def timed(self, work: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """Wrap `work` so that its calls are charged to a stage."""

        @functools.wraps(work)
        def timed(*args: Any, **more: Any) -> Any:
            if threading.get_ident() != self._thread:
                return work(*args, **more)
            started = time.perf_counter()
            self._within.append(0.0)
            try:
                return work(*args, **more)
            finally:
                taken = time.perf_counter() - started
                self.seconds[stage] = self.seconds.get(stage, 0.0) + taken - self._within.pop()
                if self._within:
                    self._within[-1] += taken

        return timed

    def watch(self, owner: Any, method: str, stage: str) -> None:
        """Charge all calls of `owner.method` to a stage from now on."""
        setattr(owner, method, self.timed(getattr(owner, method), stage))
