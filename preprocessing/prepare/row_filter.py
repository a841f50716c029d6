"""Select the rows of a log to keep, and convert its columns to the pipeline's types."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.config import BY_TIME
from preprocessing.sources.log import LogColumns, Piece
from preprocessing.sources.parquet_types import value_type
from workflows.common.errors import UserError
from workflows.sampling import counter_rng

if TYPE_CHECKING:
    from workflows.operators.encode import IdTable

USER, ITEM, TIME = COLUMNS = "user", "item", "time"
_ORDER_STREAM = 3  # those of negatives are 1 and 2


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which rows to keep.

    Attributes:
        columns: column names of the log.
        min_rating: drop rows rated lower; None: keep all.
        strict: a row with a missing value is an error.
        known: ids to keep, per id column; None: all.
        order: of a user's interactions, one of `config.ORDERS`; by time if and only if `columns` has one.
        seed: of the order, if it is drawn.
    """

    columns: LogColumns
    min_rating: float | None = None
    strict: bool = False
    known: dict[str, IdTable] | None = None
    order: str = BY_TIME
    seed: int = 0


@dataclass(frozen=True)
class ReadCounts:
    """Rows read, rows dropped for each reason, and rows that a GPU has parsed."""

    rows_read: int = 0
    missing: int = 0
    below_rating: int = 0
    unknown: int = 0
    on_gpu: int = 0

    @staticmethod
    def total(parts: Iterable[ReadCounts]) -> ReadCounts:
        return ReadCounts(*map(sum, zip(*map(astuple, [ReadCounts(), *parts]), strict=True)))

    def with_unknown(self, unknown: int) -> ReadCounts:
        return replace(self, unknown=unknown)


def select(table: pa.Table, piece: Piece, rows_before: int, selection: Selection) -> tuple[pa.Table, int, int]:
    """Returns (user, item, time columns of the kept rows; rows with a missing value; rows rated too low).

    Without times, the time of a row is its number in the table, from 0.
    """
    rows, columns = table.num_rows, selection.columns
    selected = {USER: _id_column(table.column(columns.user)), ITEM: _id_column(table.column(columns.item))}
    if columns.time is None:
        selected[TIME] = pa.chunked_array([np.arange(rows)])
    else:
        selected[TIME] = _time_column(table.column(columns.time))
    rating = None
    if selection.min_rating is not None and columns.rating is not None:
        rating = table.column(columns.rating)
        selected["rating"] = rating = pc.cast(pc.cast(rating, value_type(rating.type)), pa.float64())
    result = pa.table(selected)
    if any(column.null_count for column in result.columns):
        if selection.strict:
            raise _incomplete(result, piece, rows_before, columns.by_role)
        result = result.drop_null()
    missing = rows - result.num_rows
    if rating is None:
        return result, missing, 0
    complete = result.num_rows
    result = result.filter(pc.greater_equal(result.column("rating"), selection.min_rating)).drop_columns("rating")
    return result, missing, complete - result.num_rows


def drawn_times(users: Any, items: Any, seed: int) -> Any:
    """Times that put each user's items in a random order: int64 [N] in [0, 2^31), a function of (seed, user, item).

    Args:
        users, items: integer ids, or the keys of text ids; int64 [N] of NumPy or CuPy.
    """
    keys = counter_rng.keys(counter_rng.stream_seed(seed, _ORDER_STREAM), users)
    return (counter_rng.draws(keys, items) >> 33) & (2**31 - 1)


def _incomplete(table: pa.Table, piece: Piece, rows_before: int, names: dict[str, str]) -> UserError:
    """Error for the first row with a missing value."""
    first = {name: pc.index(pc.is_null(table.column(name)), True).as_py() for name in table.column_names}
    name, row = min(((name, row) for name, row in first.items() if row >= 0), key=lambda found: found[1])
    return UserError(
        f"{piece.place(rows_before + row)}: column {names[name]!r} is empty, and --strict allows no missing values; "
        "fill it, remove the row, or leave out --strict to drop and count such rows"
    )


def _id_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Integers as int64; text unchanged."""
    column = pc.cast(column, value_type(column.type))
    if not pa.types.is_integer(column.type):
        return column
    try:
        return pc.cast(column, pa.int64())
    except pa.ArrowInvalid as err:
        raise UserError(f"an id is beyond 64-bit integers ({err}); make these ids text") from None


def _time_column(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """int64 that preserves the order of the times, which is all the pipeline needs.

    Integers and dates keep their unit. Floats become their IEEE 754 bits, mirrored if negative, which preserves
    their order without choosing a scale; NaN and infinities become missing.
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
