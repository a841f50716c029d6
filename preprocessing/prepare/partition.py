"""Gather each user's rows into one partition on disk: the only shuffle of the pipeline (on a GPU, see `resident`).

Every table of a piece of the log becomes a spill file of three integer columns, with rows grouped by a hash of the
user; partition p is slice p of every spill file. De-duplication, split and negatives are then local to a partition.
Text ids are spilled as 64-bit keys (see `text_ids`), so no later step handles strings.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
from array_api_compat import array_namespace
from array_api_compat import device as device_of

from preprocessing.config import BY_DRAW, BY_FILE
from preprocessing.prepare.gpu_rows import KeptRows, read_rows
from preprocessing.prepare.id_bitmap import IdBitmap
from preprocessing.prepare.row_filter import (
    COLUMNS,
    ITEM,
    TIME,
    USER,
    ReadCounts,
    Selection,
    drawn_times,
    select,
)
from preprocessing.prepare.text_ids import (
    KEY,
    TEXT,
    bucket_of,
    in_order,
    spill_texts,
    text_buckets,
    texts_of_bucket,
    write_texts,
)
from preprocessing.sources.log import Log, LogColumns, Piece
from workflows.cluster import Cluster
from workflows.common.progress import stage
from workflows.device.frames import FrameDevice, to_host
from workflows.device.loops import host_view
from workflows.sampling.interactions import value_ranges


@dataclass(frozen=True)
class Spill:
    """The spill of one table of a piece.

    Attributes:
        name: stem of its file names.
        offsets: int64 [P + 1]; partition p is rows offsets[p] : offsets[p + 1] of the table. The spill file stores one
            partition after another, column by column within each.
        item_sizes: bytes per value of each column, 4 or 8.
        text: the id columns that hold text.
        present: bitmap of the integers in each id column; None if their range is too wide.
        counts: rows read and dropped.
    """

    name: str
    offsets: np.ndarray
    item_sizes: tuple[int, ...]
    text: tuple[str, ...]
    present: dict[str, IdBitmap | None]
    counts: ReadCounts


@dataclass(frozen=True)
class SpilledLog:
    """A log on disk, partitioned.

    Attributes:
        source, titles, names: name, titles file and column names of the log.
        folder: holds the spill files.
        spills: in log order.
        partitions: number of partitions.
    """

    source: str
    titles: Path | None
    names: LogColumns
    folder: Path
    spills: list[Spill]
    partitions: int

    @property
    def rows(self) -> int:
        """Rows kept."""
        return sum(int(spill.offsets[-1]) for spill in self.spills)

    @property
    def counts(self) -> ReadCounts:
        """Rows read and dropped."""
        return ReadCounts.total(spill.counts for spill in self.spills)

    @property
    def text(self) -> frozenset[str]:
        """The id columns that hold text."""
        return frozenset(name for spill in self.spills for name in spill.text)

    def distinct(self, name: str, cluster: Cluster) -> pa.Array | None:
        """The distinct ids of a column, sorted: text by code point, integers by value; None if they are far apart."""
        paths = [texts_path(self.folder, spill.name, name) for spill in self.spills if name in spill.text]
        if paths:
            parts: list[pa.Array] = []
            buckets = range(text_buckets(self.partitions))
            cluster.collect([dask.delayed(texts_of_bucket)(bucket, paths) for bucket in buckets], parts.append)
            return in_order(parts)
        ids = IdBitmap.distinct([spill.present[name] for spill in self.spills])
        return None if ids is None else pa.array(narrow(ids))

    def loader(self, device: FrameDevice, splits: int) -> Callable[[int], Any]:
        """A function that loads a partition, each of them split further by user; it can be sent to a worker process."""
        return partial(load_partition, folder=self.folder, device=device, splits=splits)


def spill_log(
    log: Log, selection: Selection, partitions: int, cluster: Cluster, folder: Path, device: FrameDevice
) -> SpilledLog:
    """Read a log once and write its rows grouped by partition.

    Raises:
        UserError: the log is malformed.
    """
    tasks = [
        dask.delayed(_numbered)(piece, number, selection, partitions, folder, device)
        for number, piece in enumerate(log.pieces)
    ]
    by_piece: dict[int, list[Spill]] = {}

    def spilled(result: tuple[int, list[Spill]]) -> None:
        by_piece[result[0]] = result[1]
        running.advance(sum(spill.counts.rows_read for spill in result[1]))

    with stage("read", log.rows_estimate, "rows") as running:
        cluster.collect(tasks, spilled)
    spills = [spill for number in range(len(log.pieces)) for spill in by_piece[number]]
    # Workers look up here where each partition lies in each spill file.
    np.save(folder / "offsets.npy", np.stack([spill.offsets for spill in spills]))
    np.save(folder / "item_sizes.npy", np.array([spill.item_sizes for spill in spills], dtype=np.int64))
    if selection.order == BY_FILE:  # the rows before each table
        np.save(folder / "first_rows.npy", np.cumsum([0, *(spill.counts.rows_read for spill in spills)]))
    (folder / "names.txt").write_text("\n".join(spill.name for spill in spills), encoding="ascii")
    return SpilledLog(log.name, log.titles, log.columns, folder, spills, partitions)


def _numbered(piece: Piece, number: int, *rest: Any) -> tuple[int, list[Spill]]:
    return number, spill_piece(piece, number, *rest)


def spill_piece(
    piece: Piece, number: int, selection: Selection, partitions: int, folder: Path, device: FrameDevice
) -> list[Spill]:
    """Read a piece, filter its rows, and write them grouped by partition, one spill file per table.

    Raises:
        UserError: the piece is malformed, or strict mode found an incomplete row.
    """
    spills: list[Spill] = []
    if not device.on_cpu:
        for rows in read_rows(piece, selection, device):
            spills.append(_spill_rows(rows, f"{number:06d}-{len(spills):06d}", partitions, folder, device))
        return spills
    rows_before = 0
    for table in piece.tables():
        name = f"{number:06d}-{len(spills):06d}"
        spills.append(_spill_table(table, piece, rows_before, name, selection, partitions, folder))
        rows_before += table.num_rows
    return spills


def _spill_table(
    table: pa.Table, piece: Piece, rows_before: int, name: str, selection: Selection, partitions: int, folder: Path
) -> Spill:
    rows_read = table.num_rows
    table, missing, below_rating = select(table, piece, rows_before, selection)
    text = tuple(column for column in (USER, ITEM) if not pa.types.is_integer(table.column(column).type))
    arrays = {column: table.column(column).to_numpy() for column in COLUMNS if column not in text}
    arrays |= {
        column: spill_texts(table.column(column), texts_path(folder, name, column), text_buckets(partitions))
        for column in text
    }
    unknown = 0
    if selection.known is not None:
        known = np.logical_and(*(selection.known[ids].knows(arrays[ids]) for ids in (USER, ITEM)))
        unknown = len(known) - int(known.sum())
        arrays = {column: values[known] for column, values in arrays.items()}
    if selection.order == BY_DRAW:
        arrays[TIME] = drawn_times(arrays[USER], arrays[ITEM], selection.seed)
    arrays = {column: narrow(arrays[column]) for column in COLUMNS}
    present = {ids: IdBitmap.from_ids(arrays[ids]) for ids in (USER, ITEM) if ids not in text}
    arrays, offsets = grouped(arrays, partitions)
    item_sizes = _write_rows(arrays, offsets, _rows_path(folder, name))
    return Spill(name, offsets, item_sizes, text, present, ReadCounts(rows_read, missing, below_rating, unknown))


def _spill_rows(rows: KeptRows, name: str, partitions: int, folder: Path, device: FrameDevice) -> Spill:
    """Copy rows from a GPU to the host (host sync: once per piece), grouped by partition, and write them."""
    columns, device_offsets = grouped(rows.columns, partitions)
    arrays = {column: narrow(to_host(columns[column])) for column in COLUMNS}
    for column, frame in rows.texts.items():
        table = device.to_arrow(frame)
        texts = table.column(TEXT).cast(pa.large_string()).combine_chunks()
        path = texts_path(folder, name, column)
        write_texts(table.column(KEY).to_numpy(), texts, path, text_buckets(partitions))
    offsets, text = to_host(device_offsets), tuple(rows.texts)
    present = {ids: IdBitmap.from_ids(arrays[ids]) for ids in (USER, ITEM) if ids not in text}
    item_sizes = _write_rows(arrays, offsets, _rows_path(folder, name))
    return Spill(name, offsets, item_sizes, text, present, rows.counts)


def grouped(columns: dict[str, Any], partitions: int) -> tuple[dict[str, Any], Any]:
    """Rows grouped by the partition of their user.

    Args:
        columns: integers [N] by name, of NumPy or CuPy.
    Returns:
        (the columns in the new order; int64 [P + 1], where each partition starts, and N).
    """
    xp = array_namespace(columns[USER])
    bucket = bucket_of(columns[USER], partitions)
    order = xp.argsort(bucket, stable=True)
    if host_view(bucket) is not None:
        offsets = np.zeros(partitions + 1, dtype=np.int64)
        np.cumsum(np.bincount(bucket, minlength=partitions), out=offsets[1:])
    else:  # without a wait for the GPU
        edges = xp.arange(partitions + 1, dtype=xp.int32, device=device_of(bucket))
        found = xp.searchsorted(xp.astype(xp.take(bucket, order), xp.int32), edges, side="left")
        offsets = xp.astype(found, xp.int64)
    return {name: xp.take(values, order) for name, values in columns.items()}, offsets


def _write_rows(columns: dict[str, np.ndarray], offsets: np.ndarray, path: Path) -> tuple[int, ...]:
    """Write grouped rows; returns the bytes per value of each column."""
    parts = [columns[name].data for name in COLUMNS]
    unfinished = path.with_suffix(f".{os.getpid()}.partial")  # a worker presumed dead may write the same rows
    # The columns of a partition are adjacent, so one call reads them all.
    unfinished.write_bytes(b"".join(part[start:end] for start, end in pairwise(offsets.tolist()) for part in parts))
    unfinished.replace(path)
    return tuple(columns[name].itemsize for name in COLUMNS)


def _rows_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.rows"


def texts_path(folder: Path, name: str, column: str) -> Path:
    """Path of the distinct texts in a column of a spilled table."""
    return folder / f"{name}.{column}"


def narrow(values: Any) -> Any:
    """Cast integers of NumPy or CuPy to int32 if all fit, else to int64: half the bytes to keep (host sync: once)."""
    xp = array_namespace(values)
    low, high = value_ranges(values)[0] if values.shape[0] else (0, 0)
    fits = low >= -(2**31) and high < 2**31
    return xp.astype(values, xp.int32 if fits else xp.int64, copy=False)


@lru_cache(maxsize=4)
def _index(folder: Path) -> tuple[list[Path], np.ndarray, np.ndarray, np.ndarray | None]:
    """(spill files, offsets [files, P + 1], item sizes [files, 3], rows of the log before each file [files + 1], if its
    times are row numbers) of a spilled log."""
    names = (folder / "names.txt").read_text(encoding="ascii").split("\n")
    offsets = np.load(folder / "offsets.npy", mmap_mode="r")
    first_rows = folder / "first_rows.npy"
    return (
        [_rows_path(folder, name) for name in names],
        offsets,
        np.load(folder / "item_sizes.npy"),
        np.load(first_rows) if first_rows.is_file() else None,
    )


def load_partition(partition: int, folder: Path, device: FrameDevice, splits: int = 1) -> Any:
    """The rows of one partition as a dataframe (pandas or cuDF) of integers, in no particular order.

    Args:
        splits: parts that each spilled partition is split into by user; each part reads the whole spilled partition.
    """
    columns = _read_spilled(partition // splits, folder)
    if splits > 1:
        total = splits * (_index(folder)[1].shape[1] - 1)
        own = bucket_of(columns[0], total) == partition
        columns = [column[own] for column in columns]
    return device.from_columns(dict(zip(COLUMNS, columns, strict=True)))


def _read_spilled(partition: int, folder: Path) -> list[np.ndarray]:
    """The columns of a spilled partition."""
    paths, offsets, item_sizes, first_rows = _index(folder)
    starts, counts = offsets[:, partition], offsets[:, partition + 1] - offsets[:, partition]
    places = np.concatenate([[0], np.cumsum(counts)])
    widths = item_sizes.max(axis=0)
    if first_rows is not None and first_rows[-1] > 2**31:
        widths[-1] = 8
    columns = [np.empty(places[-1], dtype=f"i{size}") for size in widths]
    positions = starts * item_sizes.sum(axis=1)
    for number in np.flatnonzero(counts).tolist():
        to = slice(places[number], places[number + 1])
        sizes = item_sizes[number].tolist()
        targets = [
            column[to] if size == column.itemsize else np.empty(counts[number], dtype=f"i{size}")
            for column, size in zip(columns, sizes, strict=True)
        ]
        _read_exactly(paths[number], targets, int(positions[number]))
        for column, target in zip(columns, targets, strict=True):
            if target.base is not column:
                column[to] = target
        if first_rows is not None:
            columns[-1][to] += first_rows[number]
    return columns


def _read_exactly(path: Path, targets: list[np.ndarray], position: int) -> None:
    file = os.open(path, os.O_RDONLY)  # a file object costs more than reading a few kilobytes
    try:
        read = os.preadv(file, [target.data for target in targets], position)
    finally:
        os.close(file)
    if read != sum(target.nbytes for target in targets):
        raise OSError(f"{path} is shorter than when it was written; is the disk full, or was the file removed?")
