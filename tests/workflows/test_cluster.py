"""The thread cluster returns every result once, and Merlin runs workflows on it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

import dask
import pandas as pd
import psutil
import pytest

from workflows.cluster import ThreadCluster, _PrepareWorker, thread_cluster, worker_cluster
from workflows.common.errors import UserError
from workflows.device.frames import FrameDevice, frame_device
from workflows.merlin import Workflow, frame_dataset, merlin_client
from workflows.operators.encode import EncodeIds


def collected(cluster: ThreadCluster, function: Callable[[int], Any], items: Iterable[int]) -> list[Any]:
    results: list[Any] = []
    cluster.collect([dask.delayed(function)(item) for item in items], results.append)
    return results


def test_every_result_is_passed_to_the_callback_in_the_calling_thread() -> None:
    with thread_cluster(2) as cluster:
        assert sorted(collected(cluster, lambda number: number * number, range(50))) == [n**2 for n in range(50)]
        assert collected(cluster, str, []) == []
        with pytest.raises(ValueError, match="No collections"):  # hence the check for an empty list in `collect`
            dask.base.collections_to_expr([])
        threads: set[int] = set()
        cluster.collect([dask.delayed(int)(3)] * 4, lambda _: threads.add(threading.get_ident()))
    assert threads == {threading.get_ident()}


def test_an_error_in_the_callback_cancels_the_other_tasks() -> None:
    ran = []

    def refuse(_: Any) -> None:
        raise ValueError("full")

    with thread_cluster(1) as cluster, pytest.raises(ValueError, match="full"):
        cluster.collect([dask.delayed(ran.append)(number) for number in range(1000)], refuse)
    assert len(ran) < 1000


def test_tasks_run_concurrently_on_different_threads() -> None:
    # Each task waits for the other, so running them sequentially would break the barrier.
    barrier = threading.Barrier(2, timeout=30)

    def meet(_: int) -> int:
        barrier.wait()
        return threading.get_ident()

    with thread_cluster(2) as cluster:
        assert len(set(collected(cluster, meet, range(2)))) == 2


def test_each_thread_uses_the_device_before_its_first_task() -> None:
    used: set[int] = set()

    class Device(FrameDevice):
        def use(self) -> None:
            used.add(threading.get_ident())

    barrier = threading.Barrier(2, timeout=30)

    def where(_: int) -> int:
        barrier.wait()  # each thread has one task
        assert threading.get_ident() in used
        return threading.get_ident()

    with thread_cluster(2, Device(on_cpu=True)) as cluster:
        threads = set(collected(cluster, where, range(2)))
        assert threads == used


def test_a_worker_opens_the_device_before_it_imports_merlin(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Device(FrameDevice):
        def open(self) -> FrameDevice:
            done.append("opened")
            return self

    monkeypatch.setattr("workflows.cluster._import_merlin", lambda: done.append("imported"))
    _PrepareWorker(Device(on_cpu=True)).setup(worker=None)
    assert done == ["opened", "imported"]


def test_an_error_in_a_task_is_raised() -> None:
    def fail(number: int) -> int:
        if number == 3:
            raise ValueError("item 3")
        return number

    with thread_cluster(2) as cluster, pytest.raises(ValueError, match="item 3"):
        collected(cluster, fail, range(5))


def test_compute_returns_one_future_per_collection_or_a_single_future() -> None:
    cluster = ThreadCluster(2)
    tasks = [dask.delayed(int)(text) for text in ("1", "2")]
    assert [future.result() for future in cluster.compute(tasks, retries=3)] == [1, 2]
    assert cluster.compute(tasks[0]).result() == 1


def test_run_calls_the_function_once_as_on_a_single_worker() -> None:
    assert ThreadCluster(4).run(max, 3, 8) == {0: 8}


def test_no_task_keeps_running_after_an_error() -> None:
    began, failed, over = threading.Event(), threading.Event(), threading.Event()
    ended = []

    def work(number: int) -> None:
        if number == 0:
            began.wait(30)
            failed.set()
            raise ValueError("item 0")
        began.set()
        failed.wait(30)  # still running when item 0 fails
        if number > 1:
            over.wait(0.1)  # longer than it takes to cancel the pending tasks
        ended.append(number)

    with thread_cluster(2) as cluster:
        with pytest.raises(ValueError, match="item 0"):
            collected(cluster, work, range(100))
        at_the_end = list(ended)  # from here on the caller may delete what the tasks wrote
    assert 1 in ended
    assert ended == at_the_end
    assert len(ended) < 99


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[ThreadCluster]:
    """The cluster of each `ThreadCluster.compute` call."""
    clusters: list[ThreadCluster] = []
    compute = ThreadCluster.compute

    def counted(self: ThreadCluster, *args, **kwargs):
        clusters.append(self)
        return compute(self, *args, **kwargs)

    monkeypatch.setattr(ThreadCluster, "compute", counted)
    return clusters


def fit_ids() -> list[int]:
    encoder = EncodeIds()
    empty = pd.DataFrame({"id": [0]}).iloc[:0]
    dataset = frame_dataset(lambda part: pd.DataFrame({"id": [part + 1, part]}), 6, meta=empty, cpu=True)
    Workflow(["id"] >> encoder).fit(dataset)
    return encoder.categories["id"].tolist()


def test_merlin_uses_the_cluster_only_inside_the_block(computed: list[ThreadCluster]) -> None:
    with thread_cluster() as cluster:
        assert 1 <= cluster.workers <= (os.cpu_count() or 1)
        with merlin_client(cluster.client):
            assert fit_ids() == list(range(7))
        assert set(computed) == {cluster}
    computed.clear()
    assert fit_ids() == list(range(7))
    assert computed == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux pins a process to cores")
def test_a_pinned_process_uses_no_more_threads_than_its_cores() -> None:
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        with thread_cluster() as cluster:
            assert cluster.workers == 1
    finally:
        os.sched_setaffinity(0, cores)


def test_an_error_in_the_block_releases_the_cluster(computed: list[ThreadCluster]) -> None:
    with pytest.raises(ValueError, match="no"), thread_cluster() as cluster, merlin_client(cluster.client):
        raise ValueError("no")
    fit_ids()
    assert computed == []


def test_worker_processes_listen_on_loopback_only() -> None:
    def listening(process: psutil.Process) -> set[tuple[str, int]]:
        return {tuple(one.laddr) for one in process.net_connections() if one.status == psutil.CONN_LISTEN}

    own = psutil.Process()
    before = listening(own)
    with worker_cluster(1, frame_device("cpu")):
        workers = [address for child in own.children(recursive=True) for address in listening(child)]
        scheduler = listening(own) - before
    assert len(workers) >= 2  # a worker's tasks and its dashboard
    assert len(scheduler) >= 2
    assert {host for host, _ in [*workers, *scheduler]} == {"127.0.0.1"}


@pytest.mark.parametrize(
    ("cause", "expected"),
    [(FileNotFoundError("no temporary directory"), UserError), (MemoryError(), MemoryError), (None, UserError)],
)
def test_the_reason_why_workers_do_not_start_is_reported(cause: Exception | None, expected: type[Exception]) -> None:
    class Full(FrameDevice):
        def local_cluster(self, workers: int) -> Any:
            raise RuntimeError("Cluster failed to start") from cause

    with pytest.raises(expected, match=r"(--workers 2: .*(no temporary|failed)|^$)"):
        worker_cluster(2, Full(on_cpu=True)).__enter__()
