"""The Merlin door: the only file that imports `nvtabular` and `merlin.*`, and where their faults are mended.

Merlin 23.08 froze with faults that lose or leak rows, or hang; each repair below says which, and
`tests/workflows/test_merlin.py` proves each against the unrepaired class. A newer stack is one change here.
"""

from __future__ import annotations

import functools
import importlib
import logging
import queue
import sys
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn

import dask

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
_CUDF = "26.10"  # the line whose missing names are known
# What Merlin 23.08 takes from cuDF, by module; a test compares this with Merlin's sources.
_TAKEN_FROM_CUDF = {
    "cudf": "DataFrame ListDtype RangeIndex Series StructDtype concat from_pandas read_parquet",
    "cudf.api.types": "is_list_dtype is_string_dtype",
    "cudf.core.column": "StringColumn as_column build_categorical_column build_column",
    "cudf.core.column.lists": "ListColumn",
    "cudf.core.dtypes": "ListDtype",
    "cudf.core.reshape": "concat",
    "cudf.io": "merge_parquet_filemetadata read_avro read_parquet read_parquet_metadata",
    "cudf.io.parquet": "ParquetWriter",
    "cudf.utils.dtypes": "cudf_dtype_from_pa_type",
    "cudf.utils.ioutils": "_is_local_filesystem",
    "dask_cudf": "DataFrame Series from_cudf from_dask_dataframe read_csv",
    "dask_cudf.io.parquet": "CudfEngine create_metadata_file",
}
# Of these, cuDF 26.10 lacks three: Merlin imports them, for its own Parquet reader, list columns and collections that
# move to a GPU. Nothing here goes there.
_GONE_FROM_CUDF = (
    "cudf.core.column.build_categorical_column",
    "cudf.core.column.build_column",
    "dask_cudf.from_dask_dataframe",
)


def _has(module: str, name: str) -> bool:
    try:
        return hasattr(importlib.import_module(module), name)
    except ImportError:
        return False


def _gone(path: str) -> Callable[..., NoReturn]:
    """A stub for a name that Merlin imports, its library no longer has, and nothing here reaches."""

    def gone(*_: Any, **__: Any) -> NoReturn:
        raise NotImplementedError(f"{path} no longer exists, and what of Merlin 23.08 calls it is not used here")

    return gone


def complete_dask() -> None:
    """Give Dask the names back that it has lost since Merlin's last release."""
    core, dispatch = (importlib.import_module(f"dask.dataframe.{name}") for name in ("core", "dispatch"))
    core.DataFrame, core.Series, core.hash_object_dispatch = dd.DataFrame, dd.Series, dispatch.hash_object_dispatch
    core.new_dd_object = _gone("dask.dataframe.core.new_dd_object")
    optimize = ModuleType("dask.dataframe.optimize")
    optimize.optimize = _gone("dask.dataframe.optimize.optimize")  # type: ignore[attr-defined]
    sys.modules[optimize.__name__] = optimize


def _optimized_later(ddf: Any = None, dsk: Any = None, keys: Any = None) -> Any:
    """For Merlin's `ensure_optimize_dataframe_graph`: Dask now optimises a collection when it is computed."""
    return dsk if ddf is None else ddf


def complete_cudf() -> None:
    """Put stubs where cuDF has lost a name since Merlin's last release, where Merlin is going to use cuDF.

    Raises:
        RuntimeError: names are missing that this does not know to be; Merlin would fail on them one by one.
    """
    if not importlib.import_module("merlin.core.has_gpu").HAS_GPU:
        return
    try:
        version = importlib.import_module("cudf").__version__
    except ImportError:  # Merlin then keeps to pandas
        return
    taken = (f"{module}.{name}" for module, names in _TAKEN_FROM_CUDF.items() for name in names.split())
    missing = [path for path in taken if not _has(*path.rsplit(".", 1))]
    unknown = [path for path in missing if path not in _GONE_FROM_CUDF or not version.startswith(f"{_CUDF}.")]
    if unknown:
        raise RuntimeError(
            f"cuDF {version} lacks {', '.join(unknown)}, which Merlin 23.08 needs; this program runs with cuDF "
            f"{_CUDF}: install it (make setup DEVICE=gpu, or requirements/gpu.txt), or hide the GPU "
            "(CUDA_VISIBLE_DEVICES=) and run with --device cpu"
        )
    for path in missing:
        module, name = path.rsplit(".", 1)
        setattr(importlib.import_module(module), name, _gone(path))


with _quiet_torchless_import():
    import dask.dataframe as dd

    complete_dask()
    complete_cudf()
    import merlin.core.utils

    merlin.core.utils.ensure_optimize_dataframe_graph = _optimized_later
    import nvtabular as nvt
    from dask.dataframe.dispatch import make_meta_dispatch
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
