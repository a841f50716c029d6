"""Columns of text as the types of their log; for spellings that Arrow's CSV reader does not take as they are."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.sources.fields import MISSING_WORDS, NULLS, PADDED


def converted(column: pa.ChunkedArray, kind: pa.DataType, is_id: bool, ascii_only: bool = False) -> pa.ChunkedArray:
    """Text as integers, numbers, dates or trimmed text; missing values as nulls.

    Args:
        column: text.
        kind: int64, float64, string, or a timestamp.
        is_id: an integer with a leading zero is invalid (007 is not 7).
        ascii_only: the text is known to be ASCII, which is faster.

    Raises:
        pa.ArrowInvalid: a value is not of this type.
    """
    if kind == pa.string():
        return trimmed(column, ascii_only)
    column = pc.utf8_trim_whitespace(column)
    column = pc.if_else(pc.is_in(column, pa.array([*NULLS, *MISSING_WORDS], column.type)), None, column)
    if pa.types.is_integer(kind):
        if is_id and pc.any(pc.match_substring_regex(column, PADDED)).as_py():
            raise pa.ArrowInvalid("a leading zero")
        if pc.all(pc.match_substring_regex(column, r"^-?[0-9]+(\.0+)?$")).as_py() is False:
            raise pa.ArrowInvalid("not an integer")  # Arrow takes 0x1f for one
        column = pc.replace_substring_regex(column, r"\.0+$", "")  # as pandas writes integers if some are missing
    return pc.cast(column, kind)


def trimmed(column: pa.ChunkedArray, ascii_only: bool) -> pa.ChunkedArray:
    """Strip surrounding blanks; text of blanks alone becomes null."""
    column = pc.ascii_trim_whitespace(column) if ascii_only else pc.utf8_trim_whitespace(column)  # ASCII: 4x faster
    empty = pc.equal(column, "")
    return pc.if_else(empty, None, column) if pc.any(empty).as_py() else column


def first_invalid(column: pa.ChunkedArray, convert: Callable[[pa.ChunkedArray], object]) -> int:
    """The first row that cannot be converted, in a column that cannot."""

    def fails(rows: int) -> bool:
        try:
            convert(column.slice(0, rows))
        except pa.ArrowInvalid:
            return True
        return False

    # It is the last row of the shortest invalid prefix.
    return bisect_left(range(len(column)), True, key=lambda row: fails(row + 1))
