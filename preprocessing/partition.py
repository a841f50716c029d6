"""Bring each user's rows into one partition, once, on disk: the only shuffle of the pipeline.

Every piece of the log becomes one spill file of three integer columns whose rows are grouped by a hash of the user;
partition p is then slice p of every spill file. After this, de-duplication, split and negatives are local.
Text ids are spilled as 64-bit keys (see `vocabulary`), so that no later step handles strings.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.sources.log import Columns, Log, Piece
from preprocessing.sources.table import value_type
from preprocessing.vocabulary import bucket_of, spill_texts
from workflows.cluster import Cluster
from workflows.device import FrameDevice
from workflows.errors import UserError
from workflows.progress import stage

if TYPE_CHECKING:
    from workflows.encode import IdTable

USER, ITEM, TIME = "user", "item", "time"
_COLUMNS = (USER, ITEM, TIME)


@dataclass(frozen=True)
class Spill:
    """What one piece came to.

    Attributes:
        number: of the piece.
        offsets: int64 [P + 1]; partition p is rows offsets[p] : offsets[p + 1] of the piece's spill file.
        item_sizes: bytes of a value of each column, 4 or 8.
        text: which of the id columns hold text.
        rows_read, missing, below_rating, unknown: rows of the piece, and how many of them were left out and why.
        size_bytes: of the piece, for progress.
    """

    number: int
    offsets: np.ndarray
    item_sizes: tuple[int, ...]
    text: tuple[str, ...]
    rows_read: int
    missing: int
    below_rating: int
    unknown: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which rows count.

    Attributes:
        columns: where the log has what.
        min_rating: rows rated lower are left out; None: none.
        strict: a row that lacks something is an error.
        known: of each id column, the ids that count; None: all.
    """

    columns: Columns
    min_rating: float | None = None
    strict: bool = False
    known: dict[str, IdTable] | None = None


@dataclass(frozen=True)
class SpilledLog:
    """A log on disk, partitioned.

    Attributes:
        source, titles: of the log.
        folder: holds the spill files.
        pieces: in the order of the log.
        partitions: how many there are.
    """

    source: str
    titles: Path | None
    folder: Path
    pieces: list[Spill]
    partitions: int

    @property
    def rows(self) -> int:
        """Rows that count."""
        return sum(int(spill.offsets[-1]) for spill in self.pieces)


def spill_log(log: Log, selection: Selection, partitions: int, cluster: Cluster, folder: Path) -> SpilledLog:
    """Read a log once, and write its rows grouped by partition.

    Raises:
        UserError: the log is not what it should be.
    """
    tasks = [
        dask.delayed(spill_piece)(piece, number, selection, partitions, folder)
        for number, piece in enumerate(log.pieces)
    ]
    spills: list[Spill] = []

    def spilled(spill: Spill) -> None:
        spills.append(spill)
        running.advance(spill.size_bytes)

    with stage("read", log.size_bytes, "bytes") as running:
        cluster.collect(tasks, spilled)
    spills.sort(key=lambda spill: spill.number)
    # Every worker reads from here where each partition lies in each file.
    np.save(folder / "offsets.npy", np.stack([spill.offsets for spill in spills]))
    np.save(folder / "item_sizes.npy", np.array([spill.item_sizes for spill in spills], dtype=np.int64))
    return SpilledLog(log.name, log.titles, folder, spills, partitions)


def spill_piece(piece: Piece, number: int, selection: Selection, partitions: int, folder: Path) -> Spill:
    """Read a piece, drop what does not count, and write it grouped by partition as piece `number` of the spill.

    Raises:
        UserError: the piece is not what it should be, or a row is incomplete where none may be.
    """
    table = piece.read()
    rows_read = table.num_rows
    table, missing, below_rating = _select(table, piece, selection)
    text = tuple(name for name in (USER, ITEM) if not pa.types.is_integer(table.column(name).type))
    arrays = {name: table.column(name).to_numpy() for name in _COLUMNS if name not in text}
    arrays |= {name: spill_texts(table.column(name), texts_path(folder, number, name), partitions) for name in text}
    unknown = 0
    if selection.known is not None:
        known = np.logical_and(*(selection.known[name].numbers(pd.Series(arrays[name])) >= 0 for name in (USER, ITEM)))
        unknown = len(known) - int(known.sum())
        arrays = {name: values[known] for name, values in arrays.items()}
    columns = [_narrow(arrays[name]) for name in _COLUMNS]
    bucket = bucket_of(arrays[USER], partitions)
    order = np.argsort(bucket, kind="stable")
    offsets = np.zeros(partitions + 1, dtype=np.int64)
    np.cumsum(np.bincount(bucket, minlength=partitions), out=offsets[1:])
    path = _spill_path(folder, number)
    partial = path.with_suffix(f".{os.getpid()}.partial")  # a worker that is thought dead may write the same piece
    with partial.open("wb") as file:
        for column in columns:
            column[order].tofile(file)
    partial.replace(path)
    return Spill(
        number=number,
        offsets=offsets,
        item_sizes=tuple(column.itemsize for column in columns),
        text=text,
        rows_read=rows_read,
        missing=missing,
        below_rating=below_rating,
        unknown=unknown,
        size_bytes=piece.size_bytes,
    )


def _spill_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.rows"


def texts_path(folder: Path, number: int, name: str) -> Path:
    """Where the texts of a column of piece `number` are."""
    return folder / f"{number:06d}.{name}"


def _narrow(values: np.ndarray) -> np.ndarray:
    """int32 where all values fit: half the bytes to write and read, and half the digits to sort by."""
    fits = not len(values) or (values.min() >= -(2**31) and values.max() < 2**31)
    return values.astype(np.int32 if fits else np.int64, copy=False)


def _select(table: pa.Table, piece: Piece, selection: Selection) -> tuple[pa.Table, int, int]:
    """(user, item, time columns of the rows that count; rows with a missing value; rows rated too low)."""
    rows, columns = table.num_rows, selection.columns
    selected = {
        USER: _id_column(table.column(columns.user)),
        ITEM: _id_column(table.column(columns.item)),
        TIME: _time_column(table.column(columns.time)),
    }
    rating = None
    if selection.min_rating is not None and columns.rating is not None:
        rating = table.column(columns.rating)
        selected["rating"] = rating = pc.cast(pc.cast(rating, value_type(rating.type)), pa.float64())
    result = pa.table(selected)
    if any(column.null_count for column in result.columns):
        if selection.strict:
            raise _incomplete(result, piece, dict(zip(selected, columns.names, strict=True)))
        result = result.drop_null()
    missing = rows - result.num_rows
    if rating is None:
        return result, missing, 0
    complete = result.num_rows
    result = result.filter(pc.greater_equal(result.column("rating"), selection.min_rating)).drop_columns("rating")
    return result, missing, complete - result.num_rows


def _incomplete(table: pa.Table, piece: Piece, names: dict[str, str]) -> UserError:
    """The first row that lacks something."""
    first = {name: pc.index(pc.is_null(table.column(name)), True).as_py() for name in names}
    name, row = min(((name, row) for name, row in first.items() if row >= 0), key=lambda found: found[1])
    return UserError(
        f"{piece.place(row)}: column {names[name]!r} is empty, and --strict allows no missing value; "
        "fill it, remove the row, or leave out --strict, which drops and counts such rows"
    )


def _id_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Integers as int64, text as it is."""
    column = pc.cast(column, value_type(column.type))
    if not pa.types.is_integer(column.type):
        return column
    try:
        return pc.cast(column, pa.int64())
    except pa.ArrowInvalid as err:
        raise UserError(f"an id is beyond 64-bit integers ({err}); make these ids text") from None


def _time_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """int64 in the order of the times, which is all that is asked of them.

    Integers and dates keep their unit. Other numbers become their IEEE 754 bits, negative ones mirrored, which
    are in the order of the numbers without any choice of scale; what is no number becomes missing.
    """
    column = pc.cast(column, value_type(column.type))
    if pa.types.is_integer(column.type):
        return pc.cast(column, pa.int64(), safe=False)
    if not pa.types.is_floating(column.type):
        kind = column.type if pa.types.is_timestamp(column.type) else pa.timestamp("ms")
        return pc.cast(pc.cast(column, kind), pa.int64())
    values = pc.cast(column, pa.float64()).combine_chunks()
    numbers = values.to_numpy(zero_copy_only=False) + 0.0  # -0.0 is 0.0
    bits = numbers.view(np.int64)
    ordered = np.where(bits < 0, bits ^ np.int64(2**63 - 1), bits)
    return pa.chunked_array([pa.array(ordered, mask=~np.isfinite(numbers))])


@lru_cache(maxsize=4)
def _read_index(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    return np.load(folder / "offsets.npy", mmap_mode="r"), np.load(folder / "item_sizes.npy")


def load_partition(partition: int, folder: Path, device: FrameDevice) -> Any:
    """The rows of one partition as a dataframe (pandas or cuDF) of integers, in no particular order."""
    offsets, item_sizes = _read_index(folder)
    starts, counts = offsets[:, partition], offsets[:, partition + 1] - offsets[:, partition]
    places = np.concatenate([[0], np.cumsum(counts)])
    columns = [np.empty(places[-1], dtype=f"i{size}") for size in item_sizes.max(axis=0)]
    for number in np.flatnonzero(counts):
        column_start, to = 0, slice(places[number], places[number + 1])
        with _spill_path(folder, int(number)).open("rb", buffering=0) as file:
            for column, size in zip(columns, item_sizes[number].tolist(), strict=True):
                file.seek(column_start + int(starts[number]) * size)
                if size == column.itemsize:
                    file.readinto(column[to].data)  # type: ignore[attr-defined] - of an unbuffered file
                else:
                    column[to] = np.fromfile(file, f"i{size}", counts[number])
                column_start += int(offsets[number, -1]) * size
    return device.from_columns(dict(zip(_COLUMNS, columns, strict=True)))
