"""The Merlin door: the only module that imports `nvtabular` and `merlin.*`, and that fixes their bugs.

Merlin 23.08, the last release, has bugs that lose or leak rows, or hang. Each fix below names its bug, and
`tests/workflows/test_merlin.py` tests it against the stock class. A newer stack needs changes only here.
"""

from __future__ import annotations

import functools
import logging
import queue
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dask

from workflows.device.frames import cpu_only

_NOISE = (
    ".*dtype mappings did not load successfully",
    "Initializing an NVTabular Dataset in CPU mode",
    ".*pkg_resources is deprecated",
)


@contextmanager
def _quiet_and_small_import():
    """Import Dask and Merlin without irrelevant warnings, and without libraries that they load but do not need.

    Merlin imports torch whenever it can, which costs a preprocessing process 1 s and 150 MiB; a process that needs the
    Loader imports torch before this module. Dask imports CuPy, which a process on the CPU does not need either.
    """
    hidden = [name for name in ("torch", *(["cupy"] if cpu_only() else [])) if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


_NO_DRIVER = {"distributed.diagnostics.nvml": False}  # Dask, and so Merlin, then sees no GPU
_PUT_WAIT_S = 0.01  # producer poll interval on a full queue


def _optimized_later(ddf: Any = None, dsk: Any = None, keys: Any = None) -> Any:
    """Replaces Merlin's `ensure_optimize_dataframe_graph`: Dask now optimises a collection when computing it."""
    return dsk if ddf is None else ddf


with _quiet_and_small_import():
    import dask.dataframe as dd
    from dask.dataframe.dispatch import make_meta_dispatch

    from workflows.merlin_gaps import complete_cudf, complete_dask

    complete_dask()
    if cpu_only():
        # Merlin would otherwise ask the driver for a GPU, and import cuDF and CuPy if there is one: for nothing, or to
        # fail where they are broken.
        dask.config.set(_NO_DRIVER)
    try:
        import merlin.core.has_gpu
    except Exception:  # a driver that fails to answer
        dask.config.set(_NO_DRIVER)
        import merlin.core.has_gpu

    if merlin.core.has_gpu.HAS_GPU:
        merlin.core.has_gpu.HAS_GPU = complete_cudf()
    import merlin.core.utils

    merlin.core.utils.ensure_optimize_dataframe_graph = _optimized_later
    import nvtabular as nvt
    from merlin.core.dispatch import concat_columns
    from merlin.core.utils import set_dask_client
    from merlin.dag.executors import LocalExecutor
    from merlin.io import Dataset as _MerlinDataset
    from merlin.schema import ColumnSchema, Schema
    from nvtabular import ColumnSelector
    from nvtabular.ops import Normalize, Operator, StatOperator

logging.getLogger("merlin").setLevel(logging.CRITICAL)  # it logs errors that it also raises

__all__ = [
    "ColumnSchema",
    "ColumnSelector",
    "Normalize",
    "Operator",
    "Schema",
    "StatOperator",
    "Workflow",
    "frame_dataset",
    "loader_class",
    "merlin_client",
]


@contextmanager
def merlin_client(client: Any):
    """Inside the block, Merlin runs the Dask collections of this thread on this client."""
    set_dask_client(client)
    try:
        yield
    finally:
        set_dask_client(None)


class _RowSafeExecutor(LocalExecutor):
    """Fixes a leak: the stock executor drops an upstream output that has no rows, so the next operator gets the raw,
    unfiltered rows of that partition (test rows end up in train)."""

    def _run_upstream_transforms(self, node, transformable, capture_dtypes=False, strict=False):
        outputs = (
            self._execute_node(upstream, transformable, capture_dtypes=capture_dtypes, strict=strict)
            for upstream in node.parents_with_dependencies
        )
        return [output for output in outputs if output is not None]

    def _merge_upstream_columns(self, upstream_outputs, merge_fn=concat_columns):
        merged, *others = upstream_outputs
        for output in others:
            kept = [name for name in merged.keys() if name not in output.keys()]  # noqa: SIM118 - frames or tables
            merged = merge_fn([merged[kept], output]) if kept else output
        return merged


class Workflow(nvt.Workflow):
    """`nvtabular.Workflow` with the executor that keeps emptied partitions empty.

    Merlin's `Subgraph` operator runs its own executor, which this fix cannot reach: do not put operators that remove
    rows into one.
    """

    def __init__(self, output_node) -> None:
        super().__init__(output_node)
        self.executor._executor.__class__ = _RowSafeExecutor

    def get_subworkflow(self, subgraph_name):
        return Workflow(self.graph.subgraph(subgraph_name).output_node)

    def _transform_df(self, df):
        if not self.graph.output_schema:
            raise ValueError("no output schema: fit the workflow first")
        return _RowSafeExecutor().transform(df, self.output_node, self.output_dtypes)


def frame_dataset(load: Callable[[int], Any], partitions: int, meta: Any, cpu: bool) -> _MerlinDataset:
    """A Merlin dataset whose partition p is the dataframe `load(p)`, in order, including empty ones.

    It replaces Merlin's own Parquet reader, which fails on an empty first file ("indices are out-of-bounds"), reads
    files in the order of their names, and splits them in the middle of a user.

    Args:
        meta: an empty dataframe of the same library, columns and dtypes.
        cpu: whether that library is pandas (otherwise cuDF).

    Raises:
        RuntimeError: it is cuDF, but this process had chosen the CPU when it imported Merlin.
    """
    if not cpu and not merlin.core.has_gpu.HAS_GPU:
        raise RuntimeError("Merlin was imported for the CPU; call frame_device for the GPU before that")
    # Without a schema Merlin loads partitions until one has a row, each in time that grows with the partition count.
    schema = Schema([ColumnSchema(name, dtype=meta[name].dtype) for name in meta.columns])
    named = _Named(load, meta)
    with dask.config.set({"dataframe.convert-string": False}):  # keep the text dtype that `load` returns
        collection = dd.from_map(named, range(partitions), meta=named, label="load")
    dataset = _MerlinDataset(collection, cpu=cpu, schema=schema)
    dataset.load_partition = load
    return dataset


class _Named:
    """A function and its `meta` with a fixed token that survives pickling.

    Dask names a task by hashing its callable: it would pickle everything that `load` reads from, fail on unpicklable
    objects, and copy a cuDF `meta` from the GPU. The token is random because runs on one scheduler share task names.
    """

    def __init__(self, load: Callable[[int], Any], meta: Any) -> None:
        self._load, self.meta, self._token = load, meta, uuid.uuid4().hex

    def __call__(self, index: int) -> Any:
        return self._load(index)

    def __dask_tokenize__(self) -> str:
        return self._token


@make_meta_dispatch.register(_Named)
def _meta_of(named: _Named, index: Any = None) -> Any:
    return named.meta


class _Partitions:
    """Iterates over the partitions of a dataset as dataframes, in a given order."""

    def __init__(self, load: Callable[[int], Any], order: list[int]) -> None:
        self._load, self._order = load, order

    def __iter__(self) -> Iterator[Any]:
        return map(self._load, self._order)


@functools.cache
def loader_class() -> type:
    """Merlin's torch `Loader` with its bugs fixed; import torch before this module.

    Fixes over the stock class:
      * hang: the queue's `get` has no timeout, so a loader waits forever if the remaining partitions yield no full
        batch (trailing empty partitions, `drop_last` with a small tail, a rank without a partition);
      * crash: more ranks than partitions raised IndexError, and the last ranks could get no partition out of many;
      * shuffle: the stock class seeds NumPy's global generator and accepts no order. Set `loader.indices` to this
        epoch's partition order; a rank reads `indices[rank::size]`;
      * time: to name the task of a partition, Dask pickles everything that the dataset reads from. Partitions of
        `frame_dataset` are loaded without Dask;
      * busy waiting: on a full queue, the producer retries a million times a second and takes the GIL from the
        computing threads.
    """
    from merlin.core.compat.torch import torch as merlins_torch

    if merlins_torch is None:
        raise RuntimeError("import torch before workflows.merlin in a process that uses the Loader")
    from merlin.dataloader.torch import Loader

    class SafeLoader(Loader):
        def __iter__(self) -> Any:
            self._buff.put_wait = _PUT_WAIT_S
            return super().__iter__()

        def _fetch_chunk(self) -> None:
            while True:
                producing = self._working  # read before `get`, so that the last chunk is not lost
                try:
                    chunks = self._buff.q_out.get(timeout=0.05 if producing else 0.0)
                    break
                except queue.Empty:
                    if not producing:
                        self._workers = None
                        self._batch_itr = None
                        raise StopIteration from None
            if isinstance(chunks, Exception):
                self.stop()
                raise chunks
            self._batch_itr = iter(chunks)

        def _shuffle_indices(self) -> None:
            """No-op: `loader.indices` defines the order, and NumPy's global generator stays untouched."""

        def _data_iter(self, epochs: int) -> Any:
            load = getattr(self.dataset, "load_partition", None)
            return super()._data_iter(epochs) if load is None else _Partitions(load, self._indices_for_process())

        def _indices_for_process(self) -> list[int]:
            return [int(index) for index in self.indices[self.global_rank :: self.global_size]]

    return SafeLoader
