"""Where Dask tasks run: threads of this process, worker processes of a local cluster, or an existing cluster.

Merlin processes partitions sequentially unless it has a client (`workflows.merlin.merlin_client`); the thread pool
poses as one. Threads are the default: the heavy work (pyarrow, NumPy sorts, hash tables) releases the GIL, and each
process costs 0.25 to 0.4 GiB for its imports.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import dask
from dask.base import collections_to_expr
from dask.delayed import Delayed
from dask.local import get_sync
from dask.optimization import cull

from workflows.common.errors import UserError, is_out_of_memory
from workflows.common.progress import console
from workflows.device.cores import usable_cores
from workflows.device.frames import FrameDevice

_RESTART_S = 30.0

OnResult = Callable[[Any], None]


class Cluster(Protocol):
    """The interface that the pipeline needs from a cluster."""

    workers: int
    gpu_tasks: int  # that share a GPU
    client: Any  # passed to Merlin

    def collect(self, tasks: Sequence[Delayed], on_result: OnResult) -> None:
        """Compute independent tasks, calling `on_result` in this thread as each one completes.

        Raises:
            Exception: the first exception raised by a task; the remaining tasks are cancelled.
        """


class _Done:
    """A completed future."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def result(self) -> Any:
        return self._value


def _compute(graph: dict, key: Any) -> Any:
    return get_sync(cull(graph, [key])[0], key)


class ThreadCluster:
    """Runs Dask collections on `workers` threads; duck-types `distributed.Client` for Merlin."""

    class cluster:  # noqa: N801 - Merlin reads the length of client.cluster.workers
        workers = (0,)

    def __init__(self, workers: int, device: FrameDevice | None = None) -> None:
        """
        Args:
            device: the device of the tasks' dataframes; None for the CPU.
        """
        self.workers, self.gpu_tasks, self.client = workers, workers, self
        self._pool = ThreadPoolExecutor(workers, initializer=device.use if device else None)

    def compute(self, collections: Any, **_: Any) -> Any:
        results = dask.compute(collections, scheduler="threads", pool=self._pool)[0]
        return [_Done(result) for result in results] if isinstance(collections, list) else _Done(results)

    def run(self, function: Callable, *args: Any) -> dict[int, Any]:
        return {0: function(*args)}

    def cancel(self, _: Any) -> None:
        """No-op: nothing outlives `compute`."""

    def collect(self, tasks: Sequence[Delayed], on_result: OnResult) -> None:
        # One shared graph, culled per task: building a graph for each task would be quadratic.
        graph = collections_to_expr(tasks).optimize().__dask_graph__() if tasks else {}
        futures = [self._pool.submit(_compute, graph, task.key) for task in tasks]
        try:
            for future in as_completed(futures):
                on_result(future.result())
        finally:
            for future in futures:
                future.cancel()
            wait(futures)

    def close(self) -> None:
        """Wait for running tasks, so that none is still writing when the caller cleans up its output."""
        self._pool.shutdown(cancel_futures=True)


class DaskCluster:
    """Runs tasks on the workers of a `distributed.Client`."""

    gpu_tasks = 1

    def __init__(self, client: Any) -> None:
        self.client = client
        # Merlin asks every worker to clear its caches; a worker that has just died is not an error.
        client.run = functools.partial(client.run, on_error="ignore")
        self.workers = sum(client.nthreads().values())

    def collect(self, tasks: Sequence[Delayed], on_result: OnResult) -> None:
        from distributed import as_completed as as_finished

        futures = self.client.compute(list(tasks))
        try:
            for future in as_finished(futures):
                on_result(future.result())
                future.release()
        finally:
            self.client.cancel(futures)


@contextmanager
def thread_cluster(workers: int | None = None, device: FrameDevice | None = None) -> Iterator[ThreadCluster]:
    """A cluster of threads, by default one per usable core; `device` as of `ThreadCluster`."""
    cluster = ThreadCluster(workers or usable_cores(), device)
    try:
        yield cluster
    finally:
        cluster.close()


def _import_merlin() -> None:
    """Patch Dask for Merlin in a cluster process before it unpickles anything from Merlin."""
    importlib.import_module("workflows.merlin")


class _PrepareWorker:
    """A worker plugin, so that workers that join later are prepared too."""

    name = "workflows"

    def __init__(self, device: FrameDevice) -> None:
        self._device = device

    def setup(self, worker: Any) -> None:
        self._device.open()
        _import_merlin()


@contextmanager
def worker_cluster(workers: int, device: FrameDevice) -> Iterator[DaskCluster]:
    """A local cluster of worker processes: one per GPU with Dask-CUDA, else single-threaded CPU workers.

    Raises:
        UserError: they could not be started.
    """
    try:
        local = device.local_cluster(workers)
    except RuntimeError as err:  # of Dask, which hides the reason behind it
        reason = err.__cause__ or err
        if is_out_of_memory(reason):
            raise reason from None
        raise UserError(
            f"--workers {workers}: the worker processes could not be started ({reason}); mend that, or start none "
            "(without --workers)"
        ) from None
    try:
        with _client(local, device) as client:
            yield DaskCluster(client)
    finally:
        with suppress(asyncio.TimeoutError):
            local.sync(_all_started, local.workers.values(), callback_timeout=_RESTART_S)
        local.close()


async def _all_started(nannies: Iterable[Any]) -> None:
    """Wait for workers that are still starting as replacements for dead ones: Dask may fail to terminate them."""
    for nanny in nannies:
        if nanny.process is not None:
            await nanny.process.running.wait()


@contextmanager
def running_cluster(scheduler: str, device: FrameDevice) -> Iterator[DaskCluster]:
    """The workers of a running scheduler, on this or other machines.

    They need this project installed and must see the log and the output folder under the same paths.

    Args:
        scheduler: HOST:PORT.
        device: of the tasks' dataframes; a GPU is each worker's first visible one.

    Raises:
        UserError: no scheduler answers, it has no workers, or they cannot run this program.
    """
    with _client(scheduler, device) as client:
        if not client.nthreads():
            raise UserError(f"--scheduler {scheduler} has no workers; start some: dask worker {scheduler}")
        yield DaskCluster(client)


@contextmanager
def _client(address: Any, device: FrameDevice) -> Iterator[Any]:
    from distributed import Client, WorkerPlugin

    plugin = type("PrepareWorker", (_PrepareWorker, WorkerPlugin), {})(device)
    try:
        client = Client(address, timeout="15s")
    except (OSError, ValueError) as err:
        raise UserError(
            f"--scheduler {address}: no Dask scheduler answers there ({err}); start one: dask scheduler"
        ) from None
    with client:
        try:
            client.run_on_scheduler(_import_merlin)
            client.register_plugin(plugin)
        except Exception as err:  # anything that a process without this project, or with another Python, may raise
            raise UserError(
                f"the scheduler and workers at {address} cannot run this program ({err!r}); "
                "start them in an environment in which it is installed (make setup), like this one"
            ) from None
        console.print(f"dashboard: {client.dashboard_link}")
        yield client
