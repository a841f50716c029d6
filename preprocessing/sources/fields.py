"""Parsing rules for fields of delimited text, and type inference for columns of them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from preprocessing.sources.dates import NUMBER, date_type

NULLS = ("", "\\N", "NULL", "null", "NaN", "nan")
# Missing, too, among integers, numbers and dates; in text they are values (someone's name may be None).
MISSING_WORDS = (
    *("NA", "na", "Na", "N/A", "n/a", "N/a", "#N/A", "#n/a", "#NA", "#N/A N/A", "<NA>", "<na>", "None", "none", "NONE"),
    *("Null", "NAN", "Nan", "-NaN", "-nan", "NaT", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"),
)
_WORDS = frozenset(MISSING_WORDS)
PADDED = r"^-?0[0-9]"  # 007 is not 7
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_WHOLE = re.compile(r"(-?[0-9]+)(\.0+)?")
_NUMBER = re.compile(NUMBER)
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
        return lambda value: date_type(value) is not None
    return lambda _: True


def without_words(values: Sequence[str]) -> list[str]:
    """The values but for `MISSING_WORDS`."""
    return [value for value in values if value not in _WORDS]


def id_type(values: list[str]) -> pa.DataType:
    """Integer, unless most ids are not, one has a leading zero (007 is not 7), or one is beyond 64 bits (a hash).

    Whole floats are integers (17850.0, as pandas writes integers if some are missing), and so are `MISSING_WORDS`.
    """
    values = without_words(values)
    whole = [found[1] for found in map(_WHOLE.fullmatch, values) if found]
    padded = any(map(re.compile(PADDED).match, values))
    return pa.int64() if 2 * len(whole) >= len(values) and not padded and all(map(_fits, whole)) else pa.string()


def is_respelled(value: str, is_id: bool) -> bool:
    """Whether an integer, number or date is missing, or spelled in a way that Arrow's CSV reader does not take."""
    return value in _WORDS or (is_id and value.endswith("0") and bool(_WHOLE.fullmatch(value)) and "." in value)


def _fits(integer: str) -> bool:
    """Whether an integer has 64 bits."""
    return len(integer) <= 18 or (len(integer.lstrip("-0")) <= 19 and -(2**63) <= int(integer) < 2**63)


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
