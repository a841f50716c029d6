"""Times spelled as text: ISO 8601, the directives of `--time-format`, and numbers."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from workflows.common.errors import UserError

# Patterns for both `re` and RE2 (Arrow).
NUMBER = r"^-?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_INTEGER = r"^-?[0-9]{1,19}$"
_SLASHES = r"^([0-9]{4})/([0-9]{1,2})/"
_DATE = (
    r"^(?P<year>[0-9]{4})-(?P<month>[0-9]{1,2})-(?P<day>[0-9]{1,2})"
    r"(?:(?:[Tt]| +)(?P<hour>[0-9]{1,2})"
    r"(?::(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:[.,](?P<fraction>[0-9]{1,9}))?)?)?"
    r"(?P<zone> *(?:[Zz]|UTC|GMT|(?P<sign>[+-])(?P<zone_hour>[0-9]{2})(?::?(?P<zone_minute>[0-9]{2}))?(?: UTC)?))?)?$"
)
_LIMITS = {"hour": 24, "minute": 60, "second": 60, "zone_hour": 24, "zone_minute": 60}
_PER_SECOND = {"us": 10**6, "ns": 10**9}
_SAMPLE_VALUES = 100
_FEW = 8

# Common spellings, to suggest a --time-format; which one it is, only the user can know.
_DAYS: tuple[str, ...] = (
    "%d.%m.%Y",
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d-%m-%Y",
    "%m-%d-%Y",
    "%d.%m.%y",
    "%d/%m/%y",
    "%m/%d/%y",
)
_DAYS += ("%d %b %Y", "%d-%b-%Y", "%b %d, %Y", "%d %B %Y", "%B %d, %Y", "%m %d, %Y", "%Y.%m.%d")
_HOURS = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p", ", %H:%M", " %H:%M:%S %z")
_SPELLINGS = [day + hour for day, hour in itertools.product(_DAYS, _HOURS)]
_SPELLINGS += ["%a %b %d %H:%M:%S %z %Y", "%a %b %d %H:%M:%S %Y", "%a, %d %b %Y %H:%M:%S %z", "%d/%b/%Y:%H:%M:%S %z"]


def date_type(value: str) -> pa.DataType | None:
    """The timestamp type of an ISO 8601 date and time; None if it is not a valid one."""
    found = re.fullmatch(_DATE, re.sub(_SLASHES, r"\1-\2-", value))
    if not found:
        return None
    numbers = {name: int(found[name] or 0) for name in ("year", "month", "day", *_LIMITS)}
    try:
        datetime(numbers["year"], numbers["month"], numbers["day"])
    except ValueError:
        return None
    if any(numbers[name] >= limit for name, limit in _LIMITS.items()):
        return None
    # Arrow's nanoseconds end in 2262 and overflow silently, so use them only if the text has that precision.
    return pa.timestamp("ns" if len(found["fraction"] or "") > 6 else "us", "UTC" if found["zone"] else None)


def time_type(values: Sequence[str]) -> pa.DataType:
    """Dates or numbers, whichever are more frequent; anything else is ignored."""
    is_number = re.compile(NUMBER).fullmatch
    numbers = [value for value in values if is_number(value)]
    dates = [kind for value in values if not is_number(value) and (kind := date_type(value)) is not None]
    if len(dates) > len(numbers):
        ((zone, _),) = Counter(kind.tz for kind in dates).most_common(1)
        return pa.timestamp("ns" if any(kind.unit == "ns" for kind in dates) else "us", zone)
    return pa.int64() if all(map(_is_integer, numbers)) else pa.float64()


def _is_integer(value: str) -> bool:
    return bool(re.fullmatch(_INTEGER, value)) and -(2**63) <= int(value) < 2**63


def time_kind(values: Sequence[str], column: str, display_name: str) -> pa.DataType:
    """The type of a column of times, decided on the values of its first rows.

    Args:
        values: trimmed, without missing ones; at least one.

    Raises:
        UserError: none is a time.
    """
    kind = time_type(values)
    fits = date_type if pa.types.is_timestamp(kind) else re.compile(NUMBER).fullmatch
    if not any(map(fits, values)):
        raise UserError(
            f"{display_name}: column {column!r} holds {values[0][:60]!r}; expected times as integers, numbers or "
            f"ISO 8601 dates (2024-01-31, 2024-01-31T12:00:00); {_suggestion(values)}"
        )
    return kind


def formatted_type(time_format: str) -> pa.DataType:
    """The type of times spelled in a format of `strptime`.

    Raises:
        UserError: that is not a format of dates.
    """
    import pandas as pd  # imported here so that other logs do not wait for pandas

    problem = "it has no year (%Y or %y)" if not re.search("%[YyGcx]", time_format) else None
    try:
        pd.to_datetime(pd.Series(["x"], dtype=object), format=time_format, errors="coerce", utc=True)
    except ValueError as err:
        problem = str(err)
    if problem is not None:
        raise UserError(
            f"--time-format {time_format!r}: {problem}; write it with the directives of Python's strptime, such as "
            "'%d.%m.%Y %H:%M', and leave it out for seconds or milliseconds since 1970"
        )
    return pa.timestamp("us", "UTC")


def parse_times(
    texts: pa.ChunkedArray, kind: pa.DataType, time_format: str | None, column: str, place: Callable[[int], str]
) -> pa.ChunkedArray:
    """Convert times spelled as text.

    Dates without a zone are UTC. Digits of a second beyond those of `kind` are cut off.

    Args:
        texts: trimmed, null where missing.
        kind: int64, float64, or a timestamp of microseconds or nanoseconds; the common type of all times of the log.
        time_format: of `--time-format`; then `kind` is a timestamp.
        column, place: name of the column and location of a row (from 0), for messages.

    Raises:
        UserError: a text is not a time; names its place.
    """
    if not pa.types.is_timestamp(kind):
        found = _numbers(texts, kind)
    else:
        found = _dates(texts, kind) if time_format is None else _formatted(texts, time_format, kind)
    row = pc.index(pc.and_(pc.is_valid(texts), pc.is_null(found)), True).as_py()
    if row >= 0:
        raise UserError(f"{place(row)}: column {column!r} {_mismatch(texts[row].as_py(), kind, time_format)}")
    return found


def _numbers(texts: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """Numbers; null where a text is none."""
    whole = pa.types.is_integer(kind)
    if whole:
        texts = pc.replace_substring_regex(texts, r"\.0+$", "")
    texts = pc.if_else(pc.match_substring_regex(texts, _INTEGER if whole else NUMBER), texts, None)
    try:
        return pc.cast(texts, kind)
    except pa.ArrowInvalid:  # 19 digits beyond 64 bits
        return pa.chunked_array([[int(t) if t and _is_integer(t) else None for t in texts.to_pylist()]], kind)


def _dates(texts: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    """ISO 8601 dates; null where a text is none, or beyond the range of `kind`."""
    found = _strict_dates(texts, kind)  # several times faster
    if found is not None:
        return found
    texts = pc.replace_substring_regex(texts, _SLASHES, r"\1-\2-")
    found = _strict_dates(pc.replace_substring_regex(texts, " *(UTC|GMT|Z)$", "Z"), kind)
    if found is not None:
        return found
    parts = pc.extract_regex(texts, _DATE).combine_chunks()
    numbers = {name: _group(parts, name) for name in ("year", "month", "day", *_LIMITS)}
    months = ((numbers["year"] - 1970) * 12 + numbers["month"] - 1).astype("M8[M]")
    days = months.astype("M8[D]") + (numbers["day"] - 1).astype("m8[D]")
    valid = (numbers["year"] > 0) & (numbers["month"] <= 12) & (days.astype("M8[M]") == months)
    for name, limit in _LIMITS.items():
        valid &= numbers[name] < limit
    west = pc.fill_null(pc.equal(pc.struct_field(parts, "sign"), "-"), False).to_numpy(zero_copy_only=False)
    offset = (numbers["zone_hour"] * 60 + numbers["zone_minute"]) * np.where(west, -60, 60)
    seconds = days.astype(np.int64) * 86400 + numbers["hour"] * 3600 + numbers["minute"] * 60 + numbers["second"]
    seconds -= offset
    nanoseconds = pc.utf8_rpad(pc.struct_field(parts, "fraction"), 9, "0")
    per_second = _PER_SECOND[kind.unit]
    valid &= np.abs(seconds) < 2**63 // per_second - 1
    values = np.where(valid, seconds, 0) * per_second + _integers(nanoseconds) // (10**9 // per_second)
    return pa.chunked_array([pa.array(values, mask=~valid).cast(kind)])


def _strict_dates(texts: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | None:
    """Dates as Arrow reads them; None if it does not read them all, or they do not fit in `kind`."""
    for zone in (None, "UTC"):
        try:
            for some in (texts.slice(0, _FEW), texts):  # Arrow describes each value that it does not read
                found = pc.cast(pc.cast(some, pa.timestamp("us", zone)), kind)
            return found
        except pa.ArrowInvalid:
            continue
    return None


def _group(parts: pa.StructArray, name: str) -> np.ndarray:
    return _integers(pc.struct_field(parts, name))


def _integers(digits: pa.Array) -> np.ndarray:
    """int64; 0 for no digits."""
    return pc.cast(pc.if_else(pc.equal(digits, ""), "0", digits), pa.int64()).fill_null(0).to_numpy()


def _formatted(texts: pa.ChunkedArray, time_format: str, kind: pa.DataType) -> pa.ChunkedArray:
    """Dates in a format of `strptime`; null where a text does not match."""
    import pandas as pd

    texts = pc.if_else(pc.is_in(texts, pa.array(["now", "today"], texts.type)), None, texts)  # pandas reads the clock
    values = pd.Series(texts.to_numpy(zero_copy_only=False), dtype=object)
    found = pd.to_datetime(values, format=time_format, errors="coerce", utc=True)
    return pa.chunked_array([pa.array(found.dt.as_unit("us"), from_pandas=True).cast(kind)])


def _mismatch(value: str, kind: pa.DataType, time_format: str | None) -> str:
    """What is wrong with a text that is not a time of this type."""
    if time_format is not None:
        remedy = "it is for all rows, so fix or remove this one, or convert the column"
        if re.fullmatch(NUMBER, value):
            remedy = "leave it out if times are numbers that count from 1970"
        return f"holds {value[:60]!r}, which does not match --time-format {time_format!r}; {remedy}"
    if pa.types.is_timestamp(kind):
        if date_type(value) is not None:
            return f"holds {value!r}, which is out of range for {kind}, the common type of all times"
        remedy = f"fix or remove that row, or {_suggestion([value])}"
        return f"should hold a date and time, as the first rows do, got {value[:60]!r}; {remedy}"
    expected = "an integer below 2^63" if pa.types.is_integer(kind) else "a number"
    return f"should hold {expected}, as the first rows do, got {value[:60]!r}; fix or remove it"


def _suggestion(values: Sequence[str]) -> str:
    """What to do about texts that are not times."""
    fitting = [
        spelling for spelling in _SPELLINGS if all(_matches(value, spelling) for value in values[:_SAMPLE_VALUES])
    ]
    if fitting:
        return "say how they are spelled: " + " or ".join(f"--time-format '{spelling}'" for spelling in fitting[:3])
    example = "--time-format, such as '%d.%m.%Y %H:%M' for 31.12.2024 23:59"
    return f"convert them, or say how they are spelled with {example}"


def _matches(value: str, time_format: str) -> bool:
    try:
        datetime.strptime(value, time_format)
    except ValueError:
        return False
    return True
