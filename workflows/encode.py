"""The operator that numbers ids, and the table behind it."""

from __future__ import annotations

import functools
from pathlib import Path
from threading import Lock
from typing import Any

import dask
import numpy as np
import pandas as pd

from workflows.device import frames_of
from workflows.merlin import StatOperator


class IdTable:
    """The distinct ids of a column in the order of their numbers, and the lookup from id to number.

    A table that was stored travels between processes as the name of its file, which each of them reads once.
    """

    def __init__(self, ids: pd.Series, path: Path | None = None) -> None:
        self.ids = ids
        self._path = path
        self._lookup: Any = None
        self._building = Lock()

    def store(self, path: Path) -> IdTable:
        """The same table, kept in a file (integer ids only) that all workers can read."""
        np.save(path, self.ids.to_numpy(), allow_pickle=False)
        table = IdTable(self.ids, path)
        table._lookup = self._lookup
        return table

    def numbers(self, column: Any) -> Any:
        """int32 number of each id, -1 where it is not in the table."""
        with self._building:  # one thread builds the hash table, and shows it when it is whole
            if self._lookup is None:
                lookup = frames_of(column).Index(self.ids)
                lookup.get_indexer(lookup[:1])
                self._lookup = lookup
        return self._lookup.get_indexer(column).astype("int32")

    def __reduce__(self):
        # The lookup is rebuilt where it is used: it may hold device memory.
        return (IdTable, (self.ids,)) if self._path is None else (_stored_table, (self._path,))


@functools.lru_cache(maxsize=8)
def _stored_table(path: Path) -> IdTable:
    return IdTable(pd.Series(np.load(path, allow_pickle=False)), path)


class EncodeIds(StatOperator):
    """Replace ids by 0 .. n-1 in the order of the original ids (numbers by value, strings by code point).

    `fit` collects the distinct ids of all partitions, so the encoding does not depend on how rows are
    partitioned. An id that was not there in `fit` becomes -1.
    """

    def __init__(self, categories: dict[str, pd.Series] | None = None) -> None:
        """Args: categories: the distinct ids of a column, for each that need not be found, in the order of their
        numbers."""
        super().__init__()
        self.tables = {name: IdTable(ids) for name, ids in (categories or {}).items()}
        self._known = frozenset(self.tables)
        self.fitted = bool(self.tables)

    @property
    def categories(self) -> dict[str, pd.Series]:
        """The distinct ids of each column."""
        return {name: table.ids for name, table in self.tables.items()}

    def fit(self, col_selector, ddf):
        columns = [name for name in col_selector.names if name not in self._known]
        if not columns:
            return dask.delayed(dict)()

        def distinct(df):
            return {name: _on_host(df[name].drop_duplicates()) for name in columns}

        def merge(parts):
            merged = {name: pd.concat([part[name] for part in parts]).drop_duplicates() for name in columns}
            return {name: ids.sort_values().reset_index(drop=True) for name, ids in merged.items()}

        return dask.delayed(merge)([dask.delayed(distinct)(part) for part in ddf.to_delayed()])

    def fit_finalize(self, dask_stats) -> None:
        self.tables |= {name: IdTable(ids) for name, ids in dask_stats.items()}

    def clear(self) -> None:
        self.tables, self.fitted = {name: table for name, table in self.tables.items() if name in self._known}, False

    def transform(self, col_selector, df):
        return type(df)({name: self.tables[name].numbers(df[name]) for name in col_selector.names})

    def compute_column_schema(self, col_name, input_schema):
        return super().compute_column_schema(col_name, input_schema).with_dtype(np.int32)


def _on_host(series) -> pd.Series:
    return series if isinstance(series, pd.Series) else series.to_pandas()
