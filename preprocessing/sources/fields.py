"""Parsing rules for fields of delimited text, and type inference for columns of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from datetime import datetime

import numpy as np
import pyarrow as pa

NULLS = ("", "\\N", "NULL", "null", "NaN", "nan")
MISSING_WORDS = frozenset(
    ("NA", "N/A", "n/a", "None", "none", "NONE", "<NA>", "#N/A", "na", "nil", "Nil", "undefined")
)  # missing among integers; among text, they may be ids
PADDED = r"^-?0[0-9]"  # 007 is not 7
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_BLOCK_BYTES = 1 << 17  # fits in a CPU cache


def describe(kind: pa.DataType) -> str:
    """Describe the values of a column type, for messages."""
    if pa.types.is_integer(kind):
        return "an integer below 2^63"
    if pa.types.is_floating(kind):
        return "a number"
    return "a date and time" if pa.types.is_timestamp(kind) else "text"


def holds(kind: pa.DataType) -> Callable[[str], bool]:
    """A predicate: whether a column of this type can hold a field."""
    if pa.types.is_integer(kind):
        return lambda value: bool(_INTEGER.fullmatch(value)) and -(2**63) <= int(value) < 2**63
    if pa.types.is_floating(kind):
        return lambda value: bool(_NUMBER.fullmatch(value))
    if pa.types.is_timestamp(kind):
        return lambda value: date_type(value) in (kind, pa.timestamp("us", kind.tz))
    return lambda _: True


_DATE = re.compile(r"(\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d)?)?)(?(3)(\.\d{1,9})?)(?(2)(Z|[+-]\d\d(:?\d\d)?)?)", re.ASCII)


def date_type(value: str) -> pa.DataType | None:
    """The timestamp type of an ISO 8601 date and time; None if it is not a valid one."""
    found = _DATE.fullmatch(value)
    if not found:
        return None
    try:
        datetime.fromisoformat(found[1])
    except ValueError:
        return None
    # Arrow's nanoseconds end in 2262 and overflow silently, so use them only if the text has that precision.
    return pa.timestamp("ns" if len(found[4] or "") > len(".123456") else "us", "UTC" if found[5] else None)


def id_type(values: list[str]) -> pa.DataType:
    """Integer, unless most ids are not integers or one has a leading zero (007 is not 7)."""
    whole = sum(map(holds(pa.int64()), values))
    padded = any(map(re.compile(PADDED).match, values))
    return pa.int64() if 2 * whole >= len(values) and not padded else pa.string()


def time_type(values: list[str]) -> pa.DataType:
    """Dates or numbers, whichever are more frequent; anything else is ignored."""
    dates = [kind for kind in map(date_type, values) if kind is not None]
    numbers = list(filter(holds(pa.float64()), values))
    if len(dates) > len(numbers):
        ((zone, _),) = Counter(kind.tz for kind in dates).most_common(1)
        return pa.timestamp("ns" if any(kind.unit == "ns" for kind in dates) else "us", zone)
    return pa.int64() if all(map(holds(pa.int64()), numbers)) else pa.float64()


def may_be_padded(data: bytes, delimiter: str) -> bool:
    """Whether delimited text may contain a field matching `PADDED`; False is certain. A single fast pass.

    Args:
        delimiter: one character.
    """
    if re.match(rb'[\s"]*-?0[0-9]', data):
        return True
    text = np.frombuffer(data, dtype=np.uint8)
    for start in range(0, len(text) - 2, _BLOCK_BYTES):
        block = text[start : start + _BLOCK_BYTES + 2]
        found = block[1:-1] == ord("0")
        found &= _begins_field(block[:-2], delimiter)
        found &= block[2:] - ord("0") < 10  # unsigned: characters below "0" wrap around
        if not found.any():
            continue
        zeros = np.flatnonzero(found) + start + 1
        # The zeros of 2024-01-31 03:04 follow a sign or a blank, but inside a field.
        within = np.isin(text[zeros - 1], (ord("-"), ord(" "))) & ~_begins_field(text[zeros - 2], delimiter)
        if not within.all():
            return True
    return False


def _begins_field(before: np.ndarray, delimiter: str) -> np.ndarray:
    """Mask: whether a field may begin after each character, or continue after a sign, blank or quote."""
    low = before <= ord("-")  # \t \n \r " , - blank, and a few others
    return low if ord(delimiter) <= ord("-") else low | (before == ord(delimiter))
