"""The thread cluster: results in order, and Merlin hands it the work of a workflow."""

from __future__ import annotations

import threading

import dask
import pandas as pd
import psutil
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


def fit_somewhere() -> tuple[list[str], list[int], set[int]]:
    """(encoded ids, the threads that read the partitions)."""
    threads = set()

    def load(part: int) -> pd.DataFrame:
        threads.add(threading.get_ident())
        return pd.DataFrame({"id": [part, part + 1]})

    encoder = EncodeIds()
    workflow = Workflow(["id"] >> encoder)
    dataset = frame_dataset(load, 6, meta=pd.DataFrame({"id": [0]}).iloc[:0], cpu=True)
    workflow.fit(dataset)
    seen = set(threads)
    return encoder.categories["id"].tolist(), workflow.transform(pd.DataFrame({"id": [6, 0]}))["id"].tolist(), seen


def test_merlin_uses_the_cluster_inside_the_block_only() -> None:
    here = {threading.get_ident()}
    with thread_cluster() as cluster:
        assert cluster.workers == len(psutil.Process().cpu_affinity())
        categories, encoded, threads = fit_somewhere()
        assert categories == list(range(7))
        assert encoded == [6, 0]
        assert threads - here  # work was done by other threads
    assert fit_somewhere() == (categories, encoded, here)


def test_an_error_in_the_block_lets_go_of_the_cluster() -> None:
    with pytest.raises(ValueError, match="no"), thread_cluster():
        raise ValueError("no")
    assert fit_somewhere()[2] == {threading.get_ident()}
