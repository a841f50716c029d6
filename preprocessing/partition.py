"""Bring each user's rows into one partition, once, on disk: the only shuffle of the pipeline.

Every piece of the log becomes one spill file whose rows are grouped by a hash of the user; partition p is then
slice p of every spill file, memory-mapped. After this, de-duplication, split and negatives are local.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.sources.log import Columns, Piece
from preprocessing.sources.table import value_type
from workflows.counters import mix
from workflows.device import FrameDevice
from workflows.errors import UserError

USER, ITEM, TIME = "user", "item", "time"


@dataclass(frozen=True)
class Spill:
    """One piece, grouped by partition, on disk.

    Attributes:
        path: an Arrow file of `schema`, rows ordered by partition.
        offsets: int64 [P + 1]; partition p is rows offsets[p] : offsets[p + 1].
        rows_read, missing, below_rating: rows of the piece, and how many of them were left out and why.
    """

    path: Path
    schema: pa.Schema
    offsets: np.ndarray
    rows_read: int
    missing: int
    below_rating: int


def spill_piece(piece: Piece, columns: Columns, min_rating: float | None, partitions: int, path: Path) -> Spill:
    """Read a piece, drop what does not count, and write it grouped by partition."""
    table = piece.read()
    rows_read = table.num_rows
    table, missing, below_rating = _select(table, columns, min_rating)
    bucket = _bucket(table.column(USER), partitions)
    order = np.argsort(bucket, kind="stable")
    offsets = np.zeros(partitions + 1, dtype=np.int64)
    np.cumsum(np.bincount(bucket, minlength=partitions), out=offsets[1:])
    grouped = table.take(pa.array(order))
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, grouped.schema) as writer:
        writer.write_table(grouped.combine_chunks())
    return Spill(path, grouped.schema, offsets, rows_read, missing, below_rating)


def _select(table: pa.Table, columns: Columns, min_rating: float | None) -> tuple[pa.Table, int, int]:
    """(user, item, time columns of the rows that count; rows with a missing value; rows rated too low)."""
    rows = table.num_rows
    selected = {
        USER: _id_column(table.column(columns.user)),
        ITEM: _id_column(table.column(columns.item)),
        TIME: _time_column(table.column(columns.time)),
    }
    if min_rating is not None and columns.rating is not None:
        rating = table.column(columns.rating)
        selected["rating"] = pc.cast(pc.cast(rating, value_type(rating.type)), pa.float64())
    result = pa.table(selected)
    if any(column.null_count for column in result.columns):
        result = result.drop_null()
    missing = rows - result.num_rows
    if min_rating is None:
        return result, missing, 0
    complete = result.num_rows
    result = result.filter(pc.greater_equal(result.column("rating"), min_rating)).select([USER, ITEM, TIME])
    return result, missing, complete - result.num_rows


def _id_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """int32 where all values fit, else int64; text stays text."""
    column = pc.cast(column, value_type(column.type))
    if not pa.types.is_integer(column.type):
        return pc.cast(column, pa.large_string())
    try:
        column = pc.cast(column, pa.int64())
    except pa.ArrowInvalid as err:
        raise UserError(f"an id is beyond 64-bit integers ({err}); make these ids text") from None
    span = pc.min_max(column)
    low, high = span["min"].as_py() or 0, span["max"].as_py() or 0
    return pc.cast(column, pa.int32()) if low >= -(2**31) and high < 2**31 else column


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


def _bucket(users: pa.ChunkedArray, partitions: int) -> np.ndarray:
    """uint16 partition of each row, by a hash of the user's id that no other row influences."""
    if pa.types.is_integer(users.type):
        hashed = mix(users.to_numpy().astype(np.int64))
    else:
        encoded = users.combine_chunks().dictionary_encode()
        encoded = encoded if isinstance(encoded, pa.DictionaryArray) else encoded.combine_chunks()
        names = encoded.dictionary.to_numpy(zero_copy_only=False)
        hashed = pd.util.hash_array(names, categorize=False).view(np.int64)[encoded.indices.to_numpy()]
    high = (hashed >> 32) & ((1 << 32) - 1)
    return ((high * partitions) >> 32).astype(np.uint16)


def common_schema(spills: Sequence[Spill]) -> pa.Schema:
    """The schema all partitions share: the widest type of each column."""
    return pa.unify_schemas([spill.schema for spill in spills], promote_options="permissive")


def load_partition(partition: int, spills: Sequence[Spill], schema: pa.Schema, device: FrameDevice):
    """The rows of one partition as a dataframe (pandas or cuDF)."""
    slices = []
    for spill in spills:
        start, stop = int(spill.offsets[partition]), int(spill.offsets[partition + 1])
        if stop > start:
            with pa.memory_map(str(spill.path)) as source:
                slices.append(pa.ipc.open_file(source).read_all().slice(start, stop - start).cast(schema))
    return device.from_arrow(pa.concat_tables(slices) if slices else schema.empty_table())
