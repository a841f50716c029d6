"""The thread cluster: results in order, and Merlin hands it the work of a workflow."""

from __future__ import annotations

import os
import threading
import time

import dask
import pandas as pd
import pytest

from workflows.cluster import ThreadCluster, thread_cluster
from workflows.merlin import Workflow, frame_dataset
from workflows.operators import EncodeIds


def test_map_keeps_the_order_of_the_items() -> None:
    assert ThreadCluster(2).map(lambda number: number * number, range(50)) == [number**2 for number in range(50)]
    assert ThreadCluster(1).map(str, []) == []


def test_tasks_run_at_the_same_time_on_different_threads() -> None:
    # Each task waits for the other, so one after the other they would break the barrier.
    barrier = threading.Barrier(2, timeout=30)

    def meet(_: int) -> int:
        barrier.wait()
        return threading.get_ident()

    assert len(set(ThreadCluster(2).map(meet, range(2)))) == 2


def test_an_error_of_a_task_comes_out() -> None:
    def fail(number: int) -> int:
        if number == 3:
            raise ValueError("item 3")
        return number

    with pytest.raises(ValueError, match="item 3"):
        ThreadCluster(2).map(fail, range(5))


def test_compute_gives_a_future_for_each_collection_or_for_the_only_one() -> None:
    cluster = ThreadCluster(2)
    tasks = [dask.delayed(int)(text) for text in ("1", "2")]
    assert [future.result() for future in cluster.compute(tasks, retries=3)] == [1, 2]
    assert cluster.compute(tasks[0]).result() == 1


def test_run_is_called_once_as_on_a_single_worker() -> None:
    assert ThreadCluster(4).run(max, 3, 8) == {0: 8}


def test_no_task_runs_on_after_the_cluster_is_closed() -> None:
    began, ended = threading.Event(), threading.Event()

    def work(number: int) -> None:
        if number == 0:
            began.wait(30)
            raise ValueError("item 0")
        began.set()
        time.sleep(0.5)  # still at work when item 0 fails
        ended.set()

    cluster = ThreadCluster(2)
    with pytest.raises(ValueError, match="item 0"):
        cluster.map(work, range(2))
    assert not ended.is_set()
    cluster.close()
    assert ended.is_set()


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[ThreadCluster]:
    """The cluster of each piece of work that any cluster was handed."""
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


def test_merlin_uses_the_cluster_inside_the_block_only(computed: list[ThreadCluster]) -> None:
    with thread_cluster() as cluster:
        assert 1 <= cluster.workers <= (os.cpu_count() or 1)
        assert fit_ids() == list(range(7))
        assert set(computed) == {cluster}
    computed.clear()
    assert fit_ids() == list(range(7))
    assert computed == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux pins a process to cores")
def test_a_pinned_process_takes_no_more_threads_than_its_cores() -> None:
    cores = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(cores)})
        with thread_cluster() as cluster:
            assert cluster.workers == 1
    finally:
        os.sched_setaffinity(0, cores)


def test_an_error_in_the_block_lets_go_of_the_cluster(computed: list[ThreadCluster]) -> None:
    with pytest.raises(ValueError, match="no"), thread_cluster():
        raise ValueError("no")
    fit_ids()
    assert computed == []
