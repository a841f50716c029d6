"""Where Dask tasks run: threads of this process, handed to Merlin as if they were a cluster.

Without a client Merlin runs every partition one after the other; it asks a client for no more than the three
methods below, and threads are enough, since the heavy work (pyarrow, NumPy sorts, hash tables) frees the GIL.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import dask

from workflows.merlin import set_dask_client


class _Done:
    """A future whose result is there."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def result(self) -> Any:
        return self._value


class ThreadCluster:
    """Runs Dask collections on `workers` threads; quacks like a `distributed.Client` towards Merlin."""

    class cluster:  # noqa: N801 - Merlin reads the length of client.cluster.workers
        workers = (0,)

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers)

    def compute(self, collections: Any, **_: Any) -> Any:
        results = dask.compute(collections, scheduler="threads", pool=self._pool)[0]
        return [_Done(result) for result in results] if isinstance(collections, list) else _Done(results)

    def run(self, function: Callable, *args: Any) -> dict[int, Any]:
        return {0: function(*args)}

    def cancel(self, _: Any) -> None:
        """Nothing outlives `compute`."""

    def map(self, function: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        """`function` of each item, a task each, in the order of the items."""
        return [future.result() for future in self.compute([dask.delayed(function)(item) for item in items])]

    def close(self) -> None:
        """Wait for the tasks that run, so that none still writes when its caller removes what it wrote."""
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def thread_cluster() -> Iterator[ThreadCluster]:
    """A cluster of as many threads as this process may use cores, which Merlin uses inside the block."""
    usable = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cluster = ThreadCluster(len(usable))
    set_dask_client(cluster)
    try:
        yield cluster
    finally:
        set_dask_client(None)
        cluster.close()
