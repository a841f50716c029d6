"""Convert times of several files to one type, so that they compare correctly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.sources.convert import first_invalid
from preprocessing.sources.dates import parse_times
from preprocessing.sources.ids import TEXT, is_text, present
from workflows.common.errors import UserError


def common_time(kinds: Sequence[tuple[str, pa.DataType]]) -> pa.DataType:
    """The common type in which the times of all files are compared.

    Integers keep their unit, which must be the same in all files. Dates and times of different units become
    microseconds, or nanoseconds if any file has them; times without a zone are taken as UTC.

    Args:
        kinds: (display name of the file, type of its times: a number, date or timestamp), at least one.

    Raises:
        UserError: some are numbers and some are dates.
    """
    dates = [(display_name, kind) for display_name, kind in kinds if pa.types.is_temporal(kind)]
    numbers = [(display_name, kind) for display_name, kind in kinds if not pa.types.is_temporal(kind)]
    if dates and numbers:
        raise UserError(
            f"times are numbers in {numbers[0][0]} and dates in {dates[0][0]}; they cannot be compared, so convert one "
            "or read the files separately"
        )
    found = {kind for _, kind in kinds}
    if numbers:
        if len(found) == 1 and not any(map(_is_awkward, found)):
            return numbers[0][1]
        return pa.int64() if all(map(pa.types.is_integer, found)) else pa.float64()
    if len(found) == 1:
        return dates[0][1]
    stamps = [kind for kind in found if pa.types.is_timestamp(kind)]
    unit = "ns" if any(kind.unit == "ns" for kind in stamps) else "us"
    return pa.timestamp(unit, "UTC" if len(stamps) == len(found) and all(kind.tz for kind in stamps) else None)


def _is_awkward(kind: pa.DataType) -> bool:
    """Whether numbers of this type are unsuitable for later arithmetic."""
    return pa.types.is_decimal(kind) or pa.types.is_uint64(kind)


def as_time(column: pa.ChunkedArray, kind: pa.DataType, display_name: str) -> pa.ChunkedArray:
    """Cast times to the common type.

    Raises:
        UserError: a time is out of range (nanoseconds end in 2262).
    """
    if column.type == kind:
        return column
    try:
        return pc.cast(column, kind, safe=not pa.types.is_floating(kind))  # integers may lose their last digits
    except pa.ArrowInvalid as err:
        raise UserError(
            f"{display_name}: a time is out of range for {kind}, the common type of all times ({err})"
        ) from None


def column_times(
    column: pa.ChunkedArray,
    kind: pa.DataType,
    time_format: str | None,
    name: str,
    display_name: str,
    place: Callable[[int], str],
) -> pa.ChunkedArray:
    """Times of any type as the common type.

    Args:
        time_format: of times spelled as text or in digits; None: ISO 8601 or numbers.
        name, display_name, place: of the column, its file, and a row (from 0), for messages.

    Raises:
        UserError: a value is not a time, or out of range.
    """
    if time_format is None and not is_text(column.type):
        return as_time(column, kind, display_name)
    try:
        texts = _spelled(column)
    except pa.ArrowInvalid as err:
        row = first_invalid(column, _spelled)
        raise UserError(
            f"{place(row)}: column {name!r} holds {column[row].as_py()!r}, expected a time as an integer or as UTF-8 "
            f"text ({err}); convert that column"
        ) from None
    return parse_times(texts, kind, time_format, name, place)


def _spelled(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text or whole numbers as text, trimmed, null where missing.

    Raises:
        pa.ArrowInvalid: a number is not whole, or bytes are not UTF-8.
    """
    if is_text(column.type):
        return present(column, False)
    if pa.types.is_floating(column.type):
        column = pc.if_else(pc.is_nan(column), None, column)
    return pc.cast(pc.cast(column, pa.int64()), TEXT)
