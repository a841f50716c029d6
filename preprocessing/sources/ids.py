"""Id columns of files whose values have types (Parquet, JSON lines), as integers or as text."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.sources.convert import converted, first_invalid
from preprocessing.sources.fields import MISSING_WORDS, NULLS
from preprocessing.sources.log import LogColumns, ReadOptions
from workflows.common.errors import UserError

TEXT = pa.large_string()
_MAX_EXACT = {pa.float32(): 2.0**24, pa.float64(): 2.0**53}  # from here on, not every integer is representable


def id_types(columns: LogColumns, text: dict[str, bool], options: ReadOptions) -> dict[str, pa.DataType]:
    """int64 or `TEXT` by column.

    Args:
        text: whether the files hold text or integers beyond 64 bits in a column.
        options: what to read as text, or as integers, anyway.
    """
    types = {}
    for role, name in (("user", columns.user), ("item", columns.item)):
        as_text = role in options.text_ids or (text[name] and role not in options.whole_ids)
        types[name] = TEXT if as_text else pa.int64()
    return types


def is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or kind in _MAX_EXACT or pa.types.is_decimal(kind)


def is_text(kind: pa.DataType) -> bool:
    # Impala and old Spark versions write text as plain binary.
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return text or pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def present(texts: pa.ChunkedArray, of_text: bool) -> pa.ChunkedArray:
    """Trim blanks, with null for what is missing in delimited text.

    Args:
        of_text: the values are text; else they are numbers or dates, among which `MISSING_WORDS` are missing, too.

    Raises:
        pa.ArrowInvalid: bytes are not UTF-8.
    """
    texts = pc.cast(texts, TEXT)
    trimmed = pc.utf8_trim_whitespace(texts)
    if of_text:
        missing = pc.or_(pc.is_in(texts, pa.array(NULLS, TEXT)), pc.equal(trimmed, ""))
    else:
        missing = pc.is_in(trimmed, pa.array([*NULLS, *MISSING_WORDS], TEXT))
    return pc.if_else(missing, None, trimmed) if pc.any(missing).as_py() else trimmed


def as_ids(column: pa.ChunkedArray, kind: pa.DataType, name: str, place: Callable[[int], str]) -> pa.ChunkedArray:
    """Numbers or text as ids.

    Floats and decimals with only whole values become integers: pandas writes ids with gaps as float64 with NaN.

    Args:
        kind: int64 or `TEXT`.
        name, place: name of the column and location of a row (from 0), for messages.

    Raises:
        UserError: a value is not an id of this type; names its place.
    """
    try:
        return _converted(column, kind)
    except pa.ArrowInvalid as err:
        row = first_invalid(column, lambda some: _converted(some, kind))
        if is_text(column.type) and kind != TEXT:
            expected, remedy = "an integer below 2^63", "fix that row, or read these ids as text with --text-ids"
        else:
            expected = "ids as integers below 2^63 (2^53 in float64, 2^24 in float32) or as UTF-8 text"
            remedy = "convert that column to text"
        raise UserError(
            f"{place(row)}: column {name!r} holds {column[row].as_py()!r}, expected {expected} ({err}); {remedy}"
        ) from None


def _converted(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if is_text(column.type):
        return present(column, True) if kind == TEXT else converted(column, kind, is_id=True)
    if column.type in _MAX_EXACT:
        column = pc.if_else(pc.is_nan(column), None, column)
        if pc.any(pc.greater_equal(pc.abs(column), _MAX_EXACT[column.type])).as_py():
            raise pa.ArrowInvalid("too large for a float to be exact")
        column = pc.cast(column, pa.int64())
    elif pa.types.is_decimal(column.type):
        column = pc.cast(column, pa.decimal128(38, 0))
    return pc.cast(column, kind)
