"""Gather each user's rows into one partition on disk: the only shuffle of the pipeline.

Every table of a piece of the log becomes a spill file of three integer columns, with rows grouped by a hash of the
user; partition p is slice p of every spill file. De-duplication, split and negatives are then local to a partition.
Text ids are spilled as 64-bit keys (see `vocabulary`), so no later step handles strings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa

from preprocessing.prepare.id_bitmap import IdBitmap
from preprocessing.prepare.row_filter import ITEM, TIME, USER, Selection, select
from preprocessing.prepare.text_ids import bucket_of, spill_texts, text_buckets
from preprocessing.sources.log import Log, Piece
from workflows.cluster import Cluster
from workflows.common.progress import stage
from workflows.device.frames import FrameDevice

_COLUMNS = (USER, ITEM, TIME)


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
        rows_read, missing, below_rating, unknown: rows of the table, and rows dropped for each reason.
    """

    name: str
    offsets: np.ndarray
    item_sizes: tuple[int, ...]
    text: tuple[str, ...]
    present: dict[str, IdBitmap | None]
    rows_read: int
    missing: int
    below_rating: int
    unknown: int


@dataclass(frozen=True)
class SpilledLog:
    """A log on disk, partitioned.

    Attributes:
        source, titles: name and titles file of the log.
        folder: holds the spill files.
        spills: in log order.
        partitions: number of partitions.
    """

    source: str
    titles: Path | None
    folder: Path
    spills: list[Spill]
    partitions: int

    @property
    def rows(self) -> int:
        """Rows kept."""
        return sum(int(spill.offsets[-1]) for spill in self.spills)


def spill_log(log: Log, selection: Selection, partitions: int, cluster: Cluster, folder: Path) -> SpilledLog:
    """Read a log once and write its rows grouped by partition.

    Raises:
        UserError: the log is malformed.
    """
    tasks = [
        dask.delayed(_numbered)(piece, number, selection, partitions, folder) for number, piece in enumerate(log.pieces)
    ]
    by_piece: dict[int, list[Spill]] = {}

    def spilled(result: tuple[int, list[Spill]]) -> None:
        by_piece[result[0]] = result[1]
        running.advance(sum(spill.rows_read for spill in result[1]))

    with stage("read", log.rows_estimate, "rows") as running:
        cluster.collect(tasks, spilled)
    spills = [spill for number in range(len(log.pieces)) for spill in by_piece[number]]
    # Workers look up here where each partition lies in each spill file.
    np.save(folder / "offsets.npy", np.stack([spill.offsets for spill in spills]))
    np.save(folder / "item_sizes.npy", np.array([spill.item_sizes for spill in spills], dtype=np.int64))
    (folder / "names.txt").write_text("\n".join(spill.name for spill in spills), encoding="ascii")
    return SpilledLog(log.name, log.titles, folder, spills, partitions)


def _numbered(piece: Piece, number: int, *rest: Any) -> tuple[int, list[Spill]]:
    return number, spill_piece(piece, number, *rest)


def spill_piece(piece: Piece, number: int, selection: Selection, partitions: int, folder: Path) -> list[Spill]:
    """Read a piece, filter its rows, and write them grouped by partition, one spill file per table.

    Raises:
        UserError: the piece is malformed, or strict mode found an incomplete row.
    """
    spills, rows_before = [], 0
    for part, table in enumerate(piece.tables()):
        name = f"{number:06d}-{part:06d}"
        spills.append(_spill_table(table, piece, rows_before, name, selection, partitions, folder))
        rows_before += table.num_rows
    return spills


def _spill_table(
    table: pa.Table, piece: Piece, rows_before: int, name: str, selection: Selection, partitions: int, folder: Path
) -> Spill:
    rows_read = table.num_rows
    table, missing, below_rating = select(table, piece, rows_before, selection)
    text = tuple(column for column in (USER, ITEM) if not pa.types.is_integer(table.column(column).type))
    arrays = {column: table.column(column).to_numpy() for column in _COLUMNS if column not in text}
    arrays |= {
        column: spill_texts(table.column(column), texts_path(folder, name, column), text_buckets(partitions))
        for column in text
    }
    unknown = 0
    if selection.known is not None:
        known = np.logical_and(*(selection.known[ids].knows(arrays[ids]) for ids in (USER, ITEM)))
        unknown = len(known) - int(known.sum())
        arrays = {column: values[known] for column, values in arrays.items()}
    columns = [narrow(arrays[column]) for column in _COLUMNS]
    bucket = bucket_of(arrays[USER], partitions)
    order = np.argsort(bucket, kind="stable")
    offsets = np.zeros(partitions + 1, dtype=np.int64)
    np.cumsum(np.bincount(bucket, minlength=partitions), out=offsets[1:])
    grouped = [values[order].data for values in columns]
    path = _rows_path(folder, name)
    partial = path.with_suffix(f".{os.getpid()}.partial")  # a worker presumed dead may write the same rows
    # The columns of a partition are adjacent, so one call reads them all.
    partial.write_bytes(b"".join(part[start:end] for start, end in pairwise(offsets.tolist()) for part in grouped))
    partial.replace(path)
    item_sizes = tuple(values.itemsize for values in columns)
    present = {ids: IdBitmap.from_ids(arrays[ids]) for ids in (USER, ITEM) if ids not in text}
    return Spill(name, offsets, item_sizes, text, present, rows_read, missing, below_rating, unknown)


def _rows_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.rows"


def texts_path(folder: Path, name: str, column: str) -> Path:
    """Path of the distinct texts in a column of a spilled table."""
    return folder / f"{name}.{column}"


def narrow(values: np.ndarray) -> np.ndarray:
    """Cast to int32 if all values fit: half the bytes to write and read, and half the digits to sort by."""
    fits = not len(values) or (values.min() >= -(2**31) and values.max() < 2**31)
    return values.astype(np.int32 if fits else np.int64, copy=False)


@lru_cache(maxsize=4)
def _index(folder: Path) -> tuple[list[Path], np.ndarray, np.ndarray]:
    """(spill files, offsets [files, P + 1], item sizes [files, 3]) of a spilled log."""
    names = (folder / "names.txt").read_text(encoding="ascii").split("\n")
    offsets = np.load(folder / "offsets.npy", mmap_mode="r")
    return [_rows_path(folder, name) for name in names], offsets, np.load(folder / "item_sizes.npy")


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
    return device.from_columns(dict(zip(_COLUMNS, columns, strict=True)))


def _read_spilled(partition: int, folder: Path) -> list[np.ndarray]:
    """The columns of a spilled partition."""
    paths, offsets, item_sizes = _index(folder)
    starts, counts = offsets[:, partition], offsets[:, partition + 1] - offsets[:, partition]
    places = np.concatenate([[0], np.cumsum(counts)])
    columns = [np.empty(places[-1], dtype=f"i{size}") for size in item_sizes.max(axis=0)]
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
    return columns


def _read_exactly(path: Path, targets: list[np.ndarray], position: int) -> None:
    file = os.open(path, os.O_RDONLY)  # a file object costs more than reading a few kilobytes
    try:
        read = os.preadv(file, [target.data for target in targets], position)
    finally:
        os.close(file)
    if read != sum(target.nbytes for target in targets):
        raise OSError(f"{path} is shorter than when it was written; is the disk full, or was the file removed?")
