"""A prepared folder, opened for training: its rows stream through the Merlin Loader as torch tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from preprocessing.chunks import read_mapping
from preprocessing.feature_spec import FeatureSpec, chunk_files
from workflows.device import frame_device
from workflows.errors import UserError
from workflows.merlin import frame_dataset, loader_class

_PART_ROWS = 1 << 20


@dataclass(frozen=True)
class Columns:
    """The features that play a role in training, and how many ids there are."""

    user: str
    item: str
    label: str
    n_users: int
    n_items: int

    @staticmethod
    def of(spec: FeatureSpec) -> Columns:
        """Raises UserError where a channel has not exactly one feature or a cardinality is missing."""
        user, item, label = (spec.channel(f"{role}_ch") for role in ("user", "item", "label"))
        return Columns(user, item, label, spec.cardinality(user), spec.cardinality(item))


@dataclass(frozen=True)
class Rows:
    """Rows of (user, item[, label]) behind a Merlin dataset; nothing is read before `stream`.

    Attributes:
        columns: names and cardinalities.
        names: the columns streamed, in order.
        n_rows: rows in all.
    """

    columns: Columns
    names: tuple[str, ...]
    n_rows: int
    dataset: Any = field(repr=False)

    def stream(self, rows: int, device: torch.device, order: Sequence[int] | None = None) -> Iterator[list[Tensor]]:
        """The rows in blocks of `rows` (the last one shorter), a tensor per column.

        Args:
            order: the partitions in the order to read them, None for their own.
        Yields:
            int32 ids and float32 labels on `device`, shape [rows].

        Raises:
            UserError: an id is outside its cardinality, or a label outside [0, 1].
        """
        bounds = {self.columns.user: self.columns.n_users, self.columns.item: self.columns.n_items}
        with loader_class()(self.dataset, batch_size=rows, shuffle=False) as loader:
            if order is not None:
                loader.indices = np.asarray(order)
            for columns, _ in loader:
                block = [columns[name].reshape(-1).to(device, non_blocking=True) for name in self.names]
                for name, values in zip(self.names, block, strict=True):
                    _check_range(name, values, bounds.get(name))
                yield block

    @property
    def n_partitions(self) -> int:
        return self.dataset.npartitions


def _check_range(name: str, values: Tensor, cardinality: int | None) -> None:
    """Raises UserError for an id outside its cardinality, or (where that is None) a label outside [0, 1]."""
    low, high = (float(bound) for bound in torch.aminmax(values))  # host sync: once per block read, not per step
    if cardinality is None:
        if not (low >= 0.0 and high <= 1.0):
            raise UserError(
                f"feature {name!r} holds label {low if not low >= 0.0 else high:g}; labels should be 0 (no "
                "interaction) to 1 (interaction): ratings are to be turned into those first"
            )
    elif low < 0 or high >= cardinality:
        raise UserError(
            f"feature {name!r} holds id {low if low < 0 else high:.0f}, and its cardinality in the feature spec "
            f"is {cardinality}: ids should be 0 .. {cardinality - 1}; correct the spec or prepare the data again"
        )


def open_train(folder: Path, spec: FeatureSpec, device: torch.device) -> Rows:
    """The train rows, (user, item, label), each user's rows consecutive.

    A folder that does not promise that order (`metadata.time_ordered`) is read into memory and sorted.

    Raises:
        UserError: a file is missing or not what the spec says, or there is no row.
    """
    columns = Columns.of(spec)
    return _open(folder, spec, "train", columns, (columns.user, columns.item, columns.label), device)


def open_test(folder: Path, spec: FeatureSpec, device: torch.device) -> tuple[Rows, int] | None:
    """The test rows, (user, item), and the length of their series.

    None where there is nothing to rank: no test mapping, or series of the positive alone.

    Raises:
        UserError: as `open_train`; or the series' length is not given or does not divide the rows.
    """
    if not spec.source_spec.get("test") or spec.metadata.test_samples_per_series == 1:
        return None
    columns = Columns.of(spec)
    rows = _open(folder, spec, "test", columns, (columns.user, columns.item), device)
    length = spec.metadata.test_samples_per_series
    if length is None:
        raise UserError(f"{folder}: metadata.test_samples_per_series is missing: how many rows has each test series?")
    if rows.n_rows % length:
        raise UserError(
            f"{folder}: test has {rows.n_rows:,} rows, which are no whole series of "
            f"{length} (metadata.test_samples_per_series)"
        )
    return rows, length


def _open(
    folder: Path, spec: FeatureSpec, mapping: str, columns: Columns, names: tuple[str, ...], device: torch.device
) -> Rows:
    frames = frame_device("cpu" if device.type == "cpu" else "auto")
    chunks = spec.chunks(mapping)
    promised = mapping != "train" or spec.metadata.time_ordered
    load: Callable[[int], pa.Table]
    if promised and len(chunks) == 1 and chunks[0].type == "parquet":
        parts = [part for file in chunk_files(folder, chunks[0]) for part in _parquet_parts(file, names, columns.user)]
        n_rows, n_parts = sum(part.n_rows for part in parts), len(parts)
        load = lambda index: _as_ids(parts[index].read(names), columns, str(parts[index].path))  # noqa: E731
    else:
        table = _as_ids(read_mapping(folder, spec, mapping, names), columns, str(folder))
        if mapping == "train":
            table = table.take(pa.array(np.argsort(table.column(columns.user).to_numpy(), kind="stable")))
        cuts = _user_cuts(table.column(columns.user).to_numpy())
        n_rows, n_parts = table.num_rows, len(cuts) - 1
        load = lambda index: table.slice(cuts[index], cuts[index + 1] - cuts[index])  # noqa: E731
    if not n_rows:
        raise UserError(f"{folder}: {mapping} has no rows")
    meta = frames.from_arrow(_schema(columns, names).empty_table())
    dataset = frame_dataset(lambda index: frames.from_arrow(load(index)), n_parts, meta, frames.on_cpu)
    return Rows(columns, names, n_rows, dataset)


@dataclass(frozen=True)
class _ParquetPart:
    """Some consecutive row groups of a file that together hold whole users."""

    path: Path
    row_groups: tuple[int, ...]
    n_rows: int

    def read(self, names: Sequence[str]) -> pa.Table:
        try:
            file = pq.ParquetFile(self.path)
            return file.read_row_groups(list(self.row_groups), columns=list(names), use_threads=False)
        except (pa.ArrowException, OSError) as err:
            raise UserError(f"{self.path}: not a readable Parquet file ({err})") from None


def _parquet_parts(path: Path, names: Sequence[str], user: str) -> list[_ParquetPart]:
    """A file in parts of about `_PART_ROWS`, cut where a row group ends with one user and the next begins with another.

    Row groups without rows are left out: Merlin's own Parquet reader fails on an empty first one.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as err:
        raise UserError(f"{path}: not a readable Parquet file ({err})") from None
    missing = [name for name in names if name not in file.schema_arrow.names]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}, which the feature spec promises")
    parts: list[_ParquetPart] = []
    groups: list[int] = []
    rows, last_user = 0, None
    for index in range(file.num_row_groups):
        group = file.metadata.row_group(index)
        if not group.num_rows:
            continue
        users = {group.column(i).path_in_schema: group.column(i).statistics for i in range(group.num_columns)}[user]
        known = users is not None and users.has_min_max  # rows are ordered by user, so these are the first and last
        if rows >= _PART_ROWS and known and last_user is not None and users.min > last_user:
            parts.append(_ParquetPart(path, tuple(groups), rows))
            groups, rows = [], 0
        groups.append(index)
        rows += group.num_rows
        last_user = users.max if known else None
    return [*parts, _ParquetPart(path, tuple(groups), rows)] if rows else parts


def _user_cuts(users: np.ndarray) -> list[int]:
    """Where to cut rows into parts of about `_PART_ROWS`: only between users; from 0 to the number of rows."""
    ends = np.append(np.flatnonzero(users[1:] != users[:-1]) + 1, len(users))
    targets = np.arange(_PART_ROWS, len(users), _PART_ROWS)
    return sorted({0, len(users), *ends[np.searchsorted(ends, targets)].tolist()})


def _schema(columns: Columns, names: Sequence[str]) -> pa.Schema:
    return pa.schema([(name, pa.float32() if name == columns.label else pa.int32()) for name in names])


def _as_ids(table: pa.Table, columns: Columns, where: str) -> pa.Table:
    """ids as int32 and labels as float32, or a clear error."""
    arrays = []
    for name, kind in zip(table.column_names, _schema(columns, table.column_names).types, strict=True):
        column = table.column(name)
        if column.null_count:
            raise UserError(f"{where}: feature {name!r} has {column.null_count:,} empty values; remove those rows")
        try:
            arrays.append(column.cast(kind))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as err:
            expected = "numbers" if name == columns.label else "whole numbers below 2^31"
            raise UserError(f"{where}: feature {name!r} should hold {expected} ({err})") from None
    return pa.table(arrays, names=table.column_names)
