"""A stand-in for cuDF: dataframes and columns with only the names that our code and Merlin use, on top of Arrow.

It is as strict as cuDF where that matters: no array of a text column or of one with nulls, no data from the host but
through the doors, no text that is not UTF-8. Its arrays are those of `gpu_stand_in`. `journey` makes a GPU of it for
`python -m preprocessing`, whose device-to-host copies it refuses except in listed places.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Sequence
from io import BytesIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import array_api_strict as strict
import gpu_stand_in
import host_kernels
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from gpu_stand_in import GPU, PREPROCESSING, WORKFLOWS, Array, cpu, gpu

from preprocessing.prepare import text_ids, writer
from preprocessing.sources import gpu_fields
from workflows.device import frames

OURS = (WORKFLOWS, PREPROCESSING)
_TYPES = {"int64": pa.int64(), "float64": pa.float64()}
_TYPES |= {f"datetime64[{unit}]": pa.timestamp(unit) for unit in ("ms", "us", "ns")}


class Column:
    """A cuDF column: `values` is a device array; a text column, or one with nulls, has none."""

    def __init__(self, values: pd.Series | pa.Array) -> None:
        self._data: pa.Array = pa.array(values, from_pandas=False) if isinstance(values, pd.Series) else values
        if isinstance(self._data, pa.ChunkedArray):
            self._data = self._data.combine_chunks()

    def __len__(self) -> int:
        return len(self._data)

    @property
    def _is_text(self) -> bool:
        return pa.types.is_string(self._data.type) or pa.types.is_large_string(self._data.type)

    @property
    def dtype(self) -> Any:
        return np.dtype(object) if self._is_text else np.dtype(self._data.type.to_pandas_dtype())

    @property
    def values(self) -> Any:
        if self._is_text:
            raise TypeError("String Arrays is not yet implemented in cudf")
        if self._data.null_count:
            raise ValueError("cannot convert to NumPy array with missing values")
        return gpu(self._data.to_numpy(zero_copy_only=False))

    @property
    def null_count(self) -> int:
        return self._data.null_count

    @property
    def str(self) -> SimpleNamespace:
        if not self._is_text:
            raise AttributeError("Can only use .str accessor with string values")
        return SimpleNamespace(strip=lambda characters: Column(pc.utf8_trim(self._data, characters)))

    def isna(self) -> Column:
        return Column(pc.is_null(self._data, nan_is_null=True))

    def fillna(self, value: Any) -> Column:
        filled = self._data.fill_null(value)
        floats = pa.types.is_floating(filled.type)
        return Column(pc.if_else(pc.is_nan(filled), value, filled) if floats else filled)

    def astype(self, dtype: str) -> Column:
        kind, data = _TYPES[dtype], self._data
        if pa.types.is_date(data.type) and not pa.types.is_timestamp(kind):
            data = data.cast(pa.timestamp("s"))  # cuDF has no dates
        if pa.types.is_timestamp(data.type):
            data = data.cast(pa.timestamp(data.type.unit))  # nor time zones
        return Column(data.cast(kind, safe=False))

    def unique(self) -> Column:
        return Column(self._data.unique())

    def to_pandas(self) -> pd.Series:
        _copied(self._data.nbytes)
        return self._data.to_pandas()

    def to_pylibcudf(self) -> tuple[Any, dict]:
        """As libcudf lays it out: no nulls are shown, and a column without rows has no offsets."""
        assert self._is_text
        data = self._data
        assert len(data), "libcudf: an empty column has no children"
        wide = pa.types.is_large_string(data.type)
        offsets = SimpleNamespace(
            type=lambda: SimpleNamespace(id=lambda: SimpleNamespace(name="INT64" if wide else "INT32")),
            data=lambda: SimpleNamespace(ptr=data.buffers()[1].address),
        )
        texts = data.buffers()[2]
        memory = SimpleNamespace(
            child=lambda number: (offsets,)[number],
            offset=lambda: data.offset,
            data=lambda: SimpleNamespace(ptr=texts.address) if texts is not None and texts.size else None,
        )
        return memory, {}


class NoLists:
    """`cudf.ListDtype`, of which there are no columns."""


class Index:
    """cuDF's hash table of ids; returns int32 positions."""

    def __init__(self, ids: Any) -> None:
        self._index = pd.Index(ids)

    def __getitem__(self, key: slice) -> Index:
        return Index(self._index[key])

    def get_indexer(self, target: Column | Index) -> Any:
        values = target._data.to_pandas() if isinstance(target, Column) else target._index
        return gpu(self._index.get_indexer(values).astype(np.int32))


class Frame:
    """A cuDF dataframe; accepts only columns and device arrays, and empty lists."""

    groupby = merge = mean = None  # by these names Dask recognises a dataframe
    ndim = 2

    def __init__(self, columns: dict[str, Any]) -> None:
        self._columns: dict[str, Column] = {}
        for name, column in columns.items():
            assert isinstance(column, Column | Array | list), f"{name}: a copy from the host, got {type(column)}"
            if isinstance(column, list):
                column = Column(pa.array(column, pa.float64()))
                assert not len(column)
            self._columns[name] = Column(pa.array(cpu(column))) if isinstance(column, Array) else column
        assert len({len(column) for column in self._columns.values()}) <= 1

    @staticmethod
    def of(df: pd.DataFrame) -> Frame:
        return Frame({name: Column(df[name].reset_index(drop=True)) for name in df.columns})

    @staticmethod
    def from_arrow(table: pa.Table) -> Frame:
        return Frame({name: Column(table.column(name).combine_chunks()) for name in table.column_names})

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()))) if self._columns else 0

    def __contains__(self, name: str) -> bool:
        return name in self._columns

    def __getitem__(self, key: str | list[str]) -> Any:
        return self._columns[key] if isinstance(key, str) else Frame({name: self._columns[name] for name in key})

    @property
    def columns(self) -> pd.Index:
        return pd.Index(list(self._columns))

    @property
    def dtypes(self) -> pd.Series:
        return pd.Series({name: column.dtype for name, column in self._columns.items()})

    def keys(self) -> pd.Index:
        return self.columns

    def _table(self) -> pa.Table:
        return pa.table({name: column._data for name, column in self._columns.items()})

    @property
    def iloc(self) -> Any:
        return Rows(self)

    def head(self, n: int = 5) -> Frame:
        return self.iloc[:n]

    def take(self, indices: Any) -> Frame:
        return Frame.from_arrow(self._table().take(pa.array(cpu(indices))))

    def drop_duplicates(self, *, ignore_index: bool) -> Frame:
        assert ignore_index
        table = self._table()
        return Frame.from_arrow(table.group_by(table.column_names).aggregate([]))

    def sort_values(self, by: str, *, ignore_index: bool) -> Frame:
        assert ignore_index
        return Frame.from_arrow(self._table().sort_by(by))

    def to_arrow(self, *, preserve_index: bool) -> pa.Table:
        assert not preserve_index
        _copied(self._table().nbytes)
        return self._table()

    def to_parquet(
        self,
        path: str,
        *,
        compression: str,
        index: bool,
        use_dictionary: bool,
        skip_compression: Collection[str],
        row_group_size_rows: int,
    ) -> None:
        assert not index
        assert not any(column.null_count for column in self._columns.values())
        _copied(self._table().nbytes)
        own = {name: "none" if name in skip_compression else compression for name in self._columns}
        pq.write_table(
            self._table(), path, compression=own, use_dictionary=use_dictionary, row_group_size=row_group_size_rows
        )

    def on_host(self) -> pd.DataFrame:
        return self._table().to_pandas()


class Rows:
    """`cudf.DataFrame.iloc`, for slices."""

    def __init__(self, frame: Frame) -> None:
        self._frame = frame

    def __getitem__(self, rows: slice) -> Frame:
        start, stop, _ = rows.indices(len(self._frame))
        return Frame.from_arrow(self._frame._table().slice(start, stop - start))


def concat(frames: Sequence[Frame], *, ignore_index: bool) -> Frame:
    assert ignore_index
    return Frame.from_arrow(pa.concat_tables([frame._table() for frame in frames]))


def read_csv(
    source: BytesIO,
    *,
    delimiter: str,
    header: None,
    names: list[str],
    usecols: list[str],
    dtype: str,
    na_filter: bool,
    quoting: int,
) -> Frame:
    """As libcudf splits lines: it skips empty ones, a field that a row lacks is null, more than the names are dropped.

    A field that would begin where the text ends is null, too, though a delimiter is before it.
    """
    assert (header, dtype, na_filter, quoting) == (None, "str", False, 3)
    assert len(delimiter) == 1
    assert set(usecols) <= set(names)
    assert len(set(names)) == len(names)
    data = source.getvalue().removeprefix(b"\xef\xbb\xbf")
    rows = []
    for line in data.split(b"\n") if data else []:
        if line.rstrip(b"\r") if line in (b"\r", b"") else line:
            rows.append(line.removesuffix(b"\r").split(delimiter.encode()))
    if rows and not data.endswith(b"\n") and rows[-1][-1] == b"":
        rows[-1].pop()
    columns = {}
    for number, name in enumerate(names):
        if name in usecols:
            fields = [row[number] if number < len(row) else None for row in rows]
            columns[name] = Column(pa.array(fields, pa.binary()).cast(pa.string()))
    return Frame(columns)


def read_parquet(path: str, *, columns: list[str], row_groups: list[list[int]], use_pandas_metadata: bool) -> Frame:
    assert not use_pandas_metadata
    (groups,) = row_groups  # of one file
    with pq.ParquetFile(path) as file:
        return Frame.from_arrow(file.read_row_groups(groups, columns=columns).select(columns))


# --- Host copies ------------------------------------------------------------------------------------------------

_COPIES: dict[str, Any] = {}


def place() -> str:
    """The function of ours that works on the device: of those being called, the innermost outside the device door."""
    frame = sys._getframe(2)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        name = frame.f_code.co_name
        if any(package in path.parents for package in OURS) and path.parent.name != "device" and name[0] != "<":
            return f"{path.stem}.{name}"
        frame = frame.f_back
    return ""


def _copied(nbytes: int) -> None:
    if _COPIES:
        where = place()
        if where and where not in _COPIES["allowed"]:
            raise TypeError(f"{where} copies {nbytes} bytes to the host")
        _COPIES["bytes"][where] += nbytes


def journey(monkeypatch: pytest.MonkeyPatch, allowed: Collection[str], free_bytes: int = 1 << 40) -> Counter[str]:
    """Make a GPU of the stand-ins for the whole of `python -m preprocessing --device cuda`.

    Args:
        allowed: places (`file.function`) that may copy from the device to the host; any other copy fails.
    Returns:
        Bytes copied so far by each place.
    """
    import merlin.core.dispatch
    import merlin.core.has_gpu
    import merlin.dag.executors
    import merlin.io.dataframe_engine
    import merlin.io.dataset
    from dask.dataframe import DataFrame as Collected

    gpu_stand_in.install(monkeypatch)
    cudf = ModuleType("cudf")
    for name, value in {"DataFrame": Frame, "Series": Column, "Index": Index, "ListDtype": NoLists}.items():
        setattr(cudf, name, value)
    for function in (concat, read_csv, read_parquet):
        setattr(cudf, function.__name__, function)
    cupy = ModuleType("cupy")
    for name in ("int64", "float64", "uint8"):
        setattr(cupy, name, getattr(strict, name))
    cupy.ndarray = type("ndarray", (), {})  # how array-api-compat tells CuPy's arrays
    cupy.cuda = SimpleNamespace(Device=lambda index: SimpleNamespace(use=lambda: None))
    cupy.bool_ = strict.bool
    cupy.empty = lambda n, dtype: strict.full(n, 99, dtype=dtype, device=GPU)  # not zeros
    cupy.zeros = lambda n, dtype: strict.zeros(n, dtype=dtype, device=GPU)

    def asarray(values: Any, dtype: Any = None) -> Any:
        values = gpu(values) if isinstance(values, np.ndarray) else values
        return values if dtype is None else strict.astype(values, dtype)

    cupy.asarray = asarray
    for kind in (Column, Index, Frame):
        monkeypatch.setattr(kind, "__module__", "cudf")
    monkeypatch.setitem(sys.modules, "cudf", cudf)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "dask_cudf", ModuleType("dask_cudf"))  # Dask imports it, to register cuDF
    for module in (merlin.core.dispatch, merlin.dag.executors, merlin.io.dataset, merlin.io.dataframe_engine):
        monkeypatch.setattr(module, "cudf", cudf)
    monkeypatch.setattr(merlin.core.dispatch, "dask_cudf", SimpleNamespace(DataFrame=Collected, Series=()))
    monkeypatch.setattr(merlin.core.dispatch, "cudf_is_list_dtype", lambda _: False, raising=False)
    for module in (merlin.core.has_gpu, merlin.io.dataset, merlin.dag.executors):
        monkeypatch.setattr(module, "HAS_GPU", True)
    for module in (gpu_fields, text_ids, writer):
        monkeypatch.setattr(module, "launch", host_kernels.launch)
    monkeypatch.setattr(frames, "frame_device", lambda name: frames.FrameDevice(on_cpu=name == "cpu"))
    monkeypatch.setattr("preprocessing.__main__.frame_device", frames.frame_device)
    monkeypatch.setattr(frames.FrameDevice, "free_bytes", lambda _: free_bytes)
    copied: Counter[str] = Counter()
    monkeypatch.setitem(_COPIES, "allowed", allowed)
    monkeypatch.setitem(_COPIES, "bytes", copied)
    fetch = Array.get

    def get(array: Any) -> np.ndarray:
        _copied(cpu(array).nbytes)
        return fetch(array)

    monkeypatch.setattr(Array, "get", get)
    return copied


def _register() -> None:
    """What dask-cuDF does at import."""
    import dask.dataframe as dd
    from dask._dispatch import get_collection_type
    from dask.dataframe.dispatch import get_parallel_type, make_meta_dispatch, make_meta_obj

    def empty(types: dict[str, Any], index: Any = None) -> Frame:
        return Frame({name: Column(pa.array([], pa.from_numpy_dtype(dtype))) for name, dtype in types.items()})

    make_meta_dispatch.register(Frame, lambda frame, index=None: frame)
    make_meta_obj.register(Frame, empty)
    for of_type in (get_collection_type, get_parallel_type):
        of_type.register(Frame, lambda _: dd.DataFrame)


_register()
