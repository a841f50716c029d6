"""Columns of delimited text as numbers on a GPU, by the same rules as on the CPU (`fields`, Arrow's CSV reader).

The kernels read each field's bytes. They settle the usual spellings only; a field spelled in any other way is UNSURE,
and the CPU's reader decides about its piece.
"""

from __future__ import annotations

from typing import Any

from workflows.device.frames import FrameDevice, text_memory
from workflows.device.kernels import launch

Array = Any  # of CuPy
VALUE, MISSING, UNSURE = 0, 1, 2

# What Arrow trims from text ids: `ascii_trim_whitespace` where a piece is ASCII, otherwise `utf8_trim_whitespace`.
ASCII_BLANKS = "\t\n\v\f\r "
UTF8_BLANKS = ASCII_BLANKS + "\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008"
UTF8_BLANKS += "\u2009\u200a\u2028\u2029\u202f\u205f\u3000"


def integers(column: Any, device: FrameDevice) -> tuple[Array, Array]:
    """(int64 [N], what became of each field: uint8 [N]) of a text column without nulls."""
    return _parsed("parse_integers", column, device.arrays.int64, device)


def decimals(column: Any, device: FrameDevice) -> tuple[Array, Array]:
    """(float64 [N], what became of each field: uint8 [N])."""
    return _parsed("parse_decimals", column, device.arrays.float64, device)


def dates(column: Any, zone: bool, device: FrameDevice) -> tuple[Array, Array]:
    """(microseconds since 1970, int64 [N]; what became of each field: uint8 [N]).

    Args:
        zone: each has a time and ends in Z; otherwise none does.
    """
    return _parsed("parse_dates", column, device.arrays.int64, device, int(zone))


def _parsed(kernel: str, column: Any, dtype: Any, device: FrameDevice, *options: int) -> tuple[Array, Array]:
    rows = len(column)
    values, states = device.arrays.empty(rows, dtype=dtype), device.arrays.empty(rows, dtype=device.arrays.uint8)
    launch(kernel, rows, rows, *text_memory(column), *options, values, states)
    return values, states


def texts(column: Any, ascii_only: bool, device: FrameDevice) -> tuple[Any, Array]:
    """(the trimmed texts, what became of each field: uint8 [N])."""
    trimmed = column.str.strip(ASCII_BLANKS if ascii_only else UTF8_BLANKS)
    rows = len(column)
    states = device.arrays.empty(rows, dtype=device.arrays.uint8)
    launch("missing_texts", rows, rows, *text_memory(column), *text_memory(trimmed), states)
    return trimmed, states


def ordered_bits(numbers: Array, device: FrameDevice) -> Array:
    """int64 [N] in the order of finite float64 [N] numbers, as `row_filter` makes them on the CPU."""
    numbers = numbers + 0.0  # -0.0 is 0.0
    values = device.arrays.empty(numbers.shape[0], dtype=device.arrays.int64)
    launch("ordered_bits", values.shape[0], values.shape[0], numbers, values)
    return values
