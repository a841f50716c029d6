"""Sources of rows: Parquet files read in parts, or a table in memory; no user is split between parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.spec.consistency import run_starts
from preprocessing.spec.feature_columns import FeatureColumns
from workflows.common.errors import UserError
from workflows.device.frames import FrameDevice

_PART_ROWS = 1 << 20


class Partitions(Protocol):
    """Rows in parts of about `_PART_ROWS`."""

    @property
    def n_rows(self) -> int: ...

    @property
    def n_parts(self) -> int: ...

    @property
    def part_rows(self) -> list[int]:
        """Rows of each part."""

    def load(self, index: int, names: Sequence[str]) -> pa.Table:
        """Some columns of a part, int32 or float32; raises UserError for values that do not fit these types."""

    def frame(self, index: int, names: Sequence[str], device: FrameDevice) -> Any:
        """The same as a dataframe on a device."""


@dataclass(frozen=True)
class TablePartitions:
    """Rows in memory."""

    columns: FeatureColumns
    table: pa.Table = field(repr=False)
    cuts: tuple[int, ...]

    @staticmethod
    def from_table(columns: FeatureColumns, table: pa.Table) -> TablePartitions:
        return TablePartitions(columns, table, _user_cuts(table.column(columns.user).to_numpy()))

    @property
    def n_rows(self) -> int:
        return self.table.num_rows

    @property
    def n_parts(self) -> int:
        return len(self.cuts) - 1

    @property
    def part_rows(self) -> list[int]:
        return [stop - start for start, stop in pairwise(self.cuts)]

    def load(self, index: int, names: Sequence[str]) -> pa.Table:
        start, stop = self.cuts[index : index + 2]
        return self.table.select(list(names)).slice(start, stop - start)

    def frame(self, index: int, names: Sequence[str], device: FrameDevice) -> Any:
        return device.from_arrow(self.load(index, names))


@dataclass(frozen=True)
class FilePartitions:
    """Rows in Parquet files; each part is a range of row groups of one file."""

    columns: FeatureColumns
    parts: tuple[_ParquetPart, ...]

    @staticmethod
    def open(columns: FeatureColumns, files: Sequence[Path], names: Sequence[str]) -> FilePartitions:
        """
        Args:
            names: columns required in each file.

        Raises:
            UserError: a file is not Parquet, or a column is missing.
        """
        parts = tuple(part for file in files for part in _parquet_parts(file, names, columns.user))
        return FilePartitions(columns, parts)

    @property
    def n_rows(self) -> int:
        return sum(part.n_rows for part in self.parts)

    @property
    def n_parts(self) -> int:
        return len(self.parts)

    @property
    def part_rows(self) -> list[int]:
        return [part.n_rows for part in self.parts]

    def load(self, index: int, names: Sequence[str]) -> pa.Table:
        part = self.parts[index]
        return self.columns.cast(part.read(names), str(part.path))

    def frame(self, index: int, names: Sequence[str], device: FrameDevice) -> Any:
        """Decoded by cuDF on a GPU if the file has the types of `load` and no gaps; otherwise moved there."""
        part = self.parts[index]
        if not device.on_cpu and part.has_types(self.columns.schema(names)):
            groups = [list(part.row_groups)]
            rows = device.frames.read_parquet(
                str(part.path), columns=list(names), row_groups=groups, use_pandas_metadata=False
            )
            if not any(rows[name].null_count for name in names):
                return rows[list(names)]
        return device.from_arrow(self.load(index, names))


@dataclass(frozen=True)
class _ParquetPart:
    """Consecutive row groups of a file that together hold whole users."""

    path: Path
    row_groups: tuple[int, ...]
    n_rows: int
    schema: pa.Schema = field(repr=False)

    def has_types(self, schema: pa.Schema) -> bool:
        """Whether the file's columns of these names have these types."""
        return all(self.schema.field(wanted.name).type == wanted.type for wanted in schema)

    def read(self, names: Sequence[str]) -> pa.Table:
        try:
            file = pq.ParquetFile(self.path)
            table = file.read_row_groups(list(self.row_groups), columns=list(names), use_threads=False)
            return table.select(list(names))
        except (pa.ArrowException, OSError, UnicodeDecodeError) as err:
            raise UserError(f"{self.path}: not a readable Parquet file ({err})") from None


def _parquet_parts(path: Path, names: Sequence[str], user: str) -> list[_ParquetPart]:
    """Split a file into parts of about `_PART_ROWS` rows, between row groups where the user changes.

    Empty row groups are skipped: Merlin's own Parquet reader fails if the first one is empty.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as err:
        raise UserError(f"{path}: not a readable Parquet file ({err})") from None
    missing = [name for name in names if name not in file.schema_arrow.names]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}, which the feature spec lists")
    parts: list[_ParquetPart] = []
    groups: list[int] = []
    rows, last_user = 0, None
    for index in range(file.num_row_groups):
        group = file.metadata.row_group(index)
        if not group.num_rows:
            continue
        users = {group.column(i).path_in_schema: group.column(i).statistics for i in range(group.num_columns)}[user]
        known = users is not None and users.has_min_max  # rows are sorted by user: these are the first and last
        if rows >= _PART_ROWS and known and last_user is not None and users.min > last_user:
            parts.append(_ParquetPart(path, tuple(groups), rows, file.schema_arrow))
            groups, rows = [], 0
        groups.append(index)
        rows += group.num_rows
        last_user = users.max if known else None
    return [*parts, _ParquetPart(path, tuple(groups), rows, file.schema_arrow)] if rows else parts


def _user_cuts(users: np.ndarray) -> tuple[int, ...]:
    """Boundaries of parts of about `_PART_ROWS` rows, only between users; includes 0 and the number of rows."""
    cuts = np.append(np.flatnonzero(run_starts(users)), len(users))
    targets = np.arange(_PART_ROWS, len(users), _PART_ROWS)
    return tuple(sorted({0, len(users), *cuts[np.searchsorted(cuts, targets)].tolist()}))
