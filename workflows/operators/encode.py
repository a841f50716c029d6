"""The operator that encodes ids as consecutive integers, and its lookup table."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any, Protocol

import dask
import numpy as np
import pandas as pd
from array_api_compat import array_namespace, device

from workflows.device.frames import frames_of, to_host
from workflows.device.kernels import gpu_kernels
from workflows.merlin import StatOperator

_DENSE = 8  # a dense table costs 4 bytes per integer in the range of the ids, a hash table about 16 bytes per id


class IdTable:
    """The distinct original ids of a column in encoded order, and the lookup from original to encoded id.

    A stored table is pickled as its file name; each process reads the file once.
    """

    def __init__(self, ids: pd.Series, path: Path | None = None) -> None:
        self.ids = ids
        self._path = path
        self._lookup: _Lookup | None = None
        self._building = Lock()

    def store(self, path: Path) -> IdTable:
        """The same table, stored in a file (integer ids only) that all workers can read."""
        np.save(path, self.ids.to_numpy(), allow_pickle=False)
        return IdTable(self.ids, path)

    def numbers(self, column: Any) -> Any:
        """Encoded id of each value, int32; -1 if it is not in the table."""
        with self._building:  # one thread builds the lookup; the others see it only when complete
            if self._lookup is None:
                self._lookup = (
                    _Direct.over(self.ids, column) or _Sorted.over(self.ids, column) or _Hashed(self.ids, column)
                )
        return self._lookup.numbers(column)

    def knows(self, ids: np.ndarray) -> np.ndarray:
        """Whether each id of a host array is in the table, bool [N]."""
        return self.numbers(pd.Series(ids)) >= 0

    def __reduce__(self):
        # The lookup may hold device memory, so the receiver rebuilds it.
        return (IdTable, (self.ids,)) if self._path is None else (_stored_table, (self._path,))


class _Lookup(Protocol):
    def numbers(self, column: Any) -> Any: ...


class _Hashed:
    """Lookup in a hash table of the column's own library."""

    def __init__(self, ids: pd.Series, column: Any) -> None:
        self._index = frames_of(column).Index(ids)
        self._index.get_indexer(self._index[:1])

    def numbers(self, column: Any) -> Any:
        places = self._index.get_indexer(column)
        xp = array_namespace(places)
        return xp.astype(places, xp.int32)


class _Direct:
    """Lookup in a dense array over the range of the ids, for ranges not much larger than their count."""

    def __init__(self, low: int, table: Any) -> None:
        self._low, self._table = low, table

    @staticmethod
    def over(ids: pd.Series, column: Any) -> _Direct | None:
        """Built in the array library of the column; None if the ids are not integers or too sparse."""
        if ids.dtype.kind != "i" or not len(ids):
            return None
        low, high = int(ids.min()), int(ids.max())
        if high - low >= _DENSE * len(ids) + 1024:
            return None
        table = np.full(high - low + 2, -1, dtype=np.int32)  # the last entry stands for all ids outside
        table[ids.to_numpy() - low] = np.arange(len(ids), dtype=np.int32)
        return _Direct(low, _beside(column, table))

    def numbers(self, column: Any) -> Any:
        ids = column.values
        kernels = gpu_kernels(ids)
        if kernels is not None:
            return kernels.look_up_direct(ids, self._low, self._table)
        outside = self._table.shape[0] - 1
        high = self._low + outside - 1
        if ids.shape[0] and self._low <= ids.min() and ids.max() <= high:
            return self._table[ids - self._low]  # fewer passes
        if ids.dtype.kind == "i":
            ids = ids.astype(np.int64, copy=False)  # in which both bounds fit
        inside = (ids >= self._low) & (ids <= high)
        return self._table[np.where(inside, ids - self._low, outside)]


class _Sorted:
    """Lookup of integers on a GPU by binary search: cuDF would build its hash table anew for every call."""

    def __init__(self, ids: Any, numbers: Any, kernels: ModuleType) -> None:
        self._ids, self._numbers, self._kernels = ids, numbers, kernels

    @staticmethod
    def over(ids: pd.Series, column: Any) -> _Sorted | None:
        """None if the ids are not integers, there are none, or the column is on the host."""
        kernels = gpu_kernels(column.values) if ids.dtype.kind == "i" and len(ids) else None
        if kernels is None:
            return None
        order = np.argsort(ids.to_numpy(), kind="stable")
        known, numbers = ids.to_numpy()[order].astype(np.int64), order.astype(np.int32)
        return _Sorted(_beside(column, known), _beside(column, numbers), kernels)

    def numbers(self, column: Any) -> Any:
        return self._kernels.look_up_sorted(column.values, self._ids, self._numbers)


def _beside(column: Any, array: np.ndarray) -> Any:
    """A host array in the library and on the device of a column."""
    values = column.values
    return array_namespace(values).asarray(array, device=device(values))


@functools.lru_cache(maxsize=8)
def _stored_table(path: Path) -> IdTable:
    return IdTable(pd.Series(np.load(path, allow_pickle=False)), path)


class EncodeIds(StatOperator):
    """Encode ids as 0 .. n-1 in ascending order of the original ids (numbers by value, strings by code point).

    `fit` collects the distinct ids of all partitions, so the encoding does not depend on the partitioning. Ids not
    seen by `fit` become -1.
    """

    def __init__(self, categories: dict[str, pd.Series] | None = None, keep: Sequence[str] = ()) -> None:
        """
        Args:
            categories: known distinct ids per column, in encoded order; `fit` skips these columns.
            keep: columns that hold no ids and are passed through unchanged.
        """
        super().__init__()
        self.tables = {name: IdTable(ids) for name, ids in (categories or {}).items()}
        self.keep = tuple(keep)
        self._known = frozenset(self.tables)
        self.fitted = bool(self.tables)

    @property
    def categories(self) -> dict[str, pd.Series]:
        """The distinct ids of each column."""
        return {name: table.ids for name, table in self.tables.items()}

    def fit(self, col_selector, ddf):
        columns = [name for name in col_selector.names if name not in self._known and name not in self.keep]
        if not columns:
            return dask.delayed(dict)()

        def distinct(df):
            return {name: to_host(df[name].unique()) for name in columns}

        def merge(parts):
            merged = {name: pd.unique(np.concatenate([part[name] for part in parts])) for name in columns}
            return {name: pd.Series(np.sort(ids)) for name, ids in merged.items()}

        return dask.delayed(merge)([dask.delayed(distinct)(part) for part in ddf.to_delayed()])

    def fit_finalize(self, dask_stats) -> None:
        self.tables |= {name: IdTable(ids) for name, ids in dask_stats.items()}

    def clear(self) -> None:
        self.tables, self.fitted = {name: table for name, table in self.tables.items() if name in self._known}, False

    def transform(self, col_selector, df):
        names = col_selector.names
        return type(df)(
            {name: df[name] if name in self.keep else self.tables[name].numbers(df[name]) for name in names}
        )

    def compute_column_schema(self, col_name, input_schema):
        schema = super().compute_column_schema(col_name, input_schema)
        return schema if col_name in self.keep else schema.with_dtype(np.int32)
