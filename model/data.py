"""A prepared folder, opened for training: its rows stream through the Merlin Loader as torch tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
from workflows.merlin import frame_dataset, loader_class, parquet_dataset

_FRAME_PARTITION_ROWS = 1 << 20


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
            int32 or int64 ids and float32 labels on `device`, shape [rows].

        Raises:
            UserError: an id is outside its cardinality.
        """
        bounds = {self.columns.user: self.columns.n_users, self.columns.item: self.columns.n_items}
        with loader_class()(self.dataset, batch_size=rows, shuffle=False) as loader:
            if order is not None:
                loader.indices = np.asarray(order)
            for columns, _ in loader:
                block = [columns[name].reshape(-1).to(device, non_blocking=True) for name in self.names]
                for name, values in zip(self.names, block, strict=True):
                    if name in bounds:
                        _check_ids(name, values, bounds[name])
                yield block

    @property
    def n_partitions(self) -> int:
        return self.dataset.npartitions


def _check_ids(name: str, ids: Tensor, cardinality: int) -> None:
    low, high = torch.aminmax(ids)
    low_id, high_id = int(low), int(high)  # host sync: once per block read, not per step
    if low_id < 0 or high_id >= cardinality:
        raise UserError(
            f"feature {name!r} holds id {low_id if low_id < 0 else high_id}, and its cardinality in the feature spec "
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


def open_test(folder: Path, spec: FeatureSpec, device: torch.device) -> tuple[Rows, int]:
    """The test rows, (user, item), and the length of their series.

    Raises:
        UserError: as `open_train`; or the series' length is not given or does not divide the rows.
    """
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
    ordered = mapping != "train" or spec.metadata.time_ordered
    if ordered and len(chunks) == 1 and chunks[0].type == "parquet":
        files = chunk_files(folder, chunks[0])
        n_rows = sum(_parquet_rows(file, names) for file in files)
        if n_rows:
            dataset = parquet_dataset(files, frames.on_cpu)
            return Rows(columns, names, n_rows, dataset)
        table = pa.table({name: [] for name in names})
    else:
        table = read_mapping(folder, spec, mapping, names)
    if not table.num_rows:
        raise UserError(f"{folder}: {mapping} has no rows")
    table = _as_ids(folder, table, columns)
    if mapping == "train":
        table = table.take(pa.array(np.argsort(table.column(columns.user).to_numpy(), kind="stable")))

    def load(partition: int) -> Any:
        return frames.from_arrow(table.slice(partition * _FRAME_PARTITION_ROWS, _FRAME_PARTITION_ROWS))

    partitions = -(-table.num_rows // _FRAME_PARTITION_ROWS)
    dataset = frame_dataset(load, partitions, frames.from_arrow(table.slice(0, 0)), frames.on_cpu)
    return Rows(columns, names, table.num_rows, dataset)


def _parquet_rows(path: Path, names: Sequence[str]) -> int:
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as err:
        raise UserError(f"{path}: not a readable Parquet file ({err})") from None
    missing = [name for name in names if name not in file.schema_arrow.names]
    if missing:
        raise UserError(f"{path} has no column {', '.join(missing)}, which the feature spec promises")
    return file.metadata.num_rows


def _as_ids(folder: Path, table: pa.Table, columns: Columns) -> pa.Table:
    """ids as int64 and labels as float32, or a clear error."""
    arrays = {}
    for name in table.column_names:
        column = table.column(name)
        if column.null_count:
            raise UserError(f"{folder}: feature {name!r} has {column.null_count:,} empty values; remove those rows")
        try:
            arrays[name] = column.cast(pa.float32() if name == columns.label else pa.int64())
        except pa.ArrowInvalid as err:
            raise UserError(f"{folder}: feature {name!r} should hold whole numbers ({err})") from None
    return pa.table(arrays)
