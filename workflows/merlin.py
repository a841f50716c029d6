"""The Merlin door: the only file that imports `nvtabular` and `merlin.*`, and where their faults are mended.

Merlin 23.08 froze with faults that lose or leak rows, or hang; each repair below says which, and
`tests/workflows/test_merlin.py` proves each against the unrepaired class. A newer stack is one change here.
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
import dask.dataframe as dd
from dask.dataframe.dispatch import make_meta_dispatch

from workflows.merlin_gaps import complete_cudf, complete_dask

_NOISE = (
    ".*dtype mappings did not load successfully",
    "Initializing an NVTabular Dataset in CPU mode",
    ".*pkg_resources is deprecated",
)


@contextmanager
def _quiet_torchless_import():
    """Import Merlin without the noise that is not the user's business, and without loading torch.

    Merlin imports torch whenever it can, which costs a preprocessing process a second and 150 MiB;
    a process that needs the Loader has imported torch before it comes here.
    """
    hide = "torch" not in sys.modules
    if hide:
        sys.modules["torch"] = None  # type: ignore[assignment]
    for message in _NOISE:
        warnings.filterwarnings("ignore", message=message)
    try:
        yield
    finally:
        if hide:
            del sys.modules["torch"]


_PUT_WAIT_S = 0.01  # how long a chunk that nobody takes is held out before the producer looks whether it should end


def _optimized_later(ddf: Any = None, dsk: Any = None, keys: Any = None) -> Any:
    """For Merlin's `ensure_optimize_dataframe_graph`: Dask now optimises a collection when it is computed."""
    return dsk if ddf is None else ddf


with _quiet_torchless_import():
    complete_dask()
    import merlin.core.has_gpu

    if merlin.core.has_gpu.HAS_GPU:
        complete_cudf()
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

logging.getLogger("merlin").setLevel(logging.CRITICAL)  # it logs what it also raises

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
    """Merlin runs its Dask collections on this client inside the block, in this thread."""
    set_dask_client(client)
    try:
        yield
    finally:
        set_dask_client(None)


class _RowSafeExecutor(LocalExecutor):
    """Repairs a leak: the stock executor drops an upstream output that has no rows, and the next operator
    then gets the raw, unfiltered rows of that partition (test rows end up in train)."""

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
    """`nvtabular.Workflow` whose partitions run through the executor that keeps emptied partitions empty.

    Merlin's `Subgraph` operator runs an executor of its own, out of reach of the repair: do not put operators that
    remove rows into one.
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
    """A Merlin dataset whose partition number p is the dataframe `load(p)`, in that order, empty ones included.

    It stands in for Merlin's own Parquet reader, which fails on an empty first file ("indices are out-of-bounds"),
    reads files in the order of their names, and cuts them in the middle of a user.

    Args:
        meta: an empty dataframe of the same library, columns and dtypes.
        cpu: whether that library is pandas (else cuDF).
    """
    # Without a schema Merlin loads partitions until one has a row, each in time that grows with their number.
    schema = Schema([ColumnSchema(name, dtype=meta[name].dtype) for name in meta.columns])
    named = _Named(load, meta)
    with dask.config.set({"dataframe.convert-string": False}):  # text keeps the dtype that `load` gives it
        collection = dd.from_map(named, range(partitions), meta=named, label="load")
    dataset = _MerlinDataset(collection, cpu=cpu, schema=schema)
    dataset.load_partition = load
    return dataset


class _Named:
    """A function and its `meta` under a name of their own, the same in each process that they are sent to.

    Dask names a task by hashing what it calls: it would pickle all that `load` reads from, fail on what cannot be
    pickled, and copy a cuDF `meta` from the GPU. The name is random, since runs that share a scheduler share names.
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
    """Partitions of a dataset as dataframes, in an order."""

    def __init__(self, load: Callable[[int], Any], order: list[int]) -> None:
        self._load, self._order = load, order

    def __iter__(self) -> Iterator[Any]:
        return map(self._load, self._order)


@functools.cache
def loader_class() -> type:
    """Merlin's torch `Loader` with its faults mended; import torch before this module.

    Repairs, each over the stock class:
      * hang: the queue's `get` has no time limit, so a loader waits for ever when the parts left yield no full
        batch (trailing empty parts, `drop_last` with a small tail, a rank without a partition);
      * crash: more ranks than partitions raised IndexError, and the last ranks could get none of many;
      * shuffle: the stock class seeds NumPy's global generator and cannot be given an order. Set
        `loader.indices` to the order of partitions of this epoch; `indices[rank::size]` are a rank's own;
      * time: before it loads a partition, Dask pickles all that the dataset is read from, to name the task. Those of
        `frame_dataset` are loaded without it;
      * busy waiting: with a chunk ready and nobody asking, the producer tries a million times a second to hand it
        over, and takes the interpreter's lock from whoever computes.
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
                producing = self._working  # read before the get, so that the last chunk is not lost
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
            """The order is `loader.indices`, whoever set it; NumPy's global generator is left alone."""

        def _data_iter(self, epochs: int) -> Any:
            load = getattr(self.dataset, "load_partition", None)
            return super()._data_iter(epochs) if load is None else _Partitions(load, self._indices_for_process())

        def _indices_for_process(self) -> list[int]:
            return [int(index) for index in self.indices[self.global_rank :: self.global_size]]

    return SafeLoader
