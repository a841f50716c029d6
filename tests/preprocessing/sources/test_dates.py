"""Times spelled as text, against the arithmetic of Python's datetime."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Sequence

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.sources.dates import date_type, formatted_type, parse_times, time_kind, time_type
from workflows.common.errors import UserError

_US, _NS, _UTC = pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("us", "UTC")
_EPOCH = dt.datetime(1970, 1, 1)


def _parsed(texts: Sequence[str | None], kind: pa.DataType, time_format: str | None = None) -> list[int | float | None]:
    column = pa.chunked_array([pa.array(texts, pa.large_string())])
    found = parse_times(column, kind, time_format, "when", lambda row: f"log, row {row + 1}")
    assert found.type == kind
    return (found.cast(pa.int64()) if pa.types.is_timestamp(kind) else found).to_pylist()


def _microseconds(moment: dt.datetime) -> int:
    return (moment - _EPOCH) // dt.timedelta(microseconds=1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2020-02-29", _US),
        ("2021-02-29", None),
        ("2020-01-02 03:04", _US),
        ("2020-01-02T03:04:05.123456", _US),
        ("2020-01-02T03:04:05.1234567", _NS),
        ("2020-01-02T03:04:05Z", _UTC),
        ("2020-01-02T03:04:05+0200", _UTC),
        ("2020-01-02 03:04:05 UTC", _UTC),
        ("2020/1/2 3:04", _US),
        ("2020/01-02", None),
        ("2020-01-02 03:04 +24:00", None),
        ("2020-01-02T24:01", None),
        ("01.02.2020", None),
        ("12/1/2010 8:26", None),
        ("20200102", None),
        ("", None),
    ],
)
def test_date_types(value: str, expected: pa.DataType | None) -> None:
    assert date_type(value) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "2"], pa.int64()),
        (["1", "2.5"], pa.float64()),
        (["2020-01-02", "1", "2020-01-03"], _US),
        (["2020-01-02", "1", "2"], pa.int64()),
        (["2020-01-02", "2020-01-02 03:04:05.1234567"], _NS),
        (["2020-01-02T03:04Z", "2020-01-02T03:05Z", "2020-01-02"], _UTC),
        (["yesterday", "3"], pa.int64()),  # values that are neither are ignored
        ([str(2**63)], pa.float64()),
    ],
)
def test_time_types(values: list[str], expected: pa.DataType) -> None:
    assert time_type(values) == expected


_ZONES = {"": 0, "Z": 0, " Z": 0, "UTC": 0, " UTC": 0, " GMT": 0, "+02:00": 120, "-0330": -210, "+05": 300}
_ZONES |= {" +0100": 60, "-00:45": -45, " +0530 UTC": 330}


@st.composite
def _spelled(draw: st.DrawFn) -> tuple[str, int]:
    """(a date, the microseconds from 1970 to it)"""
    moment = draw(st.datetimes(dt.datetime(1, 1, 2), dt.datetime(9999, 12, 30)))
    short = draw(st.booleans())
    month, day, hour = (f"{n}" if short else f"{n:02}" for n in (moment.month, moment.day, moment.hour))
    text = f"{moment.year:04}" + draw(st.sampled_from([f"-{month}-{day}", f"/{month}/{day}"]))
    precision = draw(st.integers(0, 4))
    if precision == 0:
        return text, _microseconds(dt.datetime(moment.year, moment.month, moment.day))
    text += draw(st.sampled_from(["T", " ", "  "])) + hour
    moment = moment.replace(microsecond=moment.microsecond if precision == 4 else 0)
    if precision == 1:
        moment = moment.replace(minute=0)
    else:
        text += f":{moment.minute:02}"
    if precision < 3:
        moment = moment.replace(second=0)
    else:
        text += f":{moment.second:02}"
    if precision == 4:
        text += draw(st.sampled_from(".,")) + (f"{moment.microsecond:06}".rstrip("0") or "0")
    zone = draw(st.sampled_from(list(_ZONES)))
    return text + zone, _microseconds(moment - dt.timedelta(minutes=_ZONES[zone]))


@settings(max_examples=100)
@given(dates=st.lists(_spelled(), max_size=6), zone=st.sampled_from([None, "UTC"]))
def test_dates_in_any_spelling_are_instants_in_utc(dates: list[tuple[str, int]], zone: str | None) -> None:
    texts = [None, *(text for text, _ in dates)]
    assert _parsed(texts, pa.timestamp("us", zone)) == [None, *(instant for _, instant in dates)]
    assert all(date_type(text) for text, _ in dates)


@given(st.integers(-(2**62), 2**62), st.sampled_from(["", "Z", "+01:00"]))
def test_nanoseconds_are_exact(instant: int, zone: str) -> None:
    seconds, fraction = divmod(instant, 10**9)
    moment = _EPOCH + dt.timedelta(seconds=seconds, minutes=_ZONES.get(zone, 60 if zone else 0))
    text = f"{moment.isoformat(timespec='seconds')}.{fraction:09}{zone}"
    assert _parsed([text, "2020-01-02"], _NS) == [instant, 1577923200 * 10**9]
    assert _parsed([text], _US) == [instant // 1000]  # digits finer than the log's unit are cut off


_FORMATS = ["%d.%m.%Y", "%d.%m.%Y %H:%M", "%m/%d/%y %I:%M %p", "%Y%m%d", "%Y%m%d%H%M%S", "%d %b %Y %H:%M:%S.%f"]
_FORMATS += ["%a %b %d %H:%M:%S %z %Y", "%Y-%m-%dT%H:%M:%S%z", "%B %d, %Y", "%j/%Y"]


@given(st.sampled_from(_FORMATS), st.lists(st.datetimes(dt.datetime(1970, 1, 2), dt.datetime(2060, 1, 1)), min_size=1))
def test_a_time_format_is_that_of_strptime(time_format: str, moments: list[dt.datetime]) -> None:
    zone = dt.timezone(dt.timedelta(hours=-7, minutes=30))
    texts = [moment.replace(tzinfo=zone).strftime(time_format) for moment in moments]
    texts = [re.sub(r"(?<![0-9:.])0(?=[0-9][./])", "", text) for text in texts]  # 1.2.2020
    expected = [dt.datetime.strptime(text, time_format) for text in texts]
    utc = [one.astimezone(dt.UTC).replace(tzinfo=None) if one.tzinfo else one for one in expected]
    assert _parsed([*texts, None], formatted_type(time_format), time_format) == [*map(_microseconds, utc), None]


@pytest.mark.parametrize(
    ("texts", "kind", "expected"),
    [
        (["5", "-7", None, "17850.0"], pa.int64(), [5, -7, None, 17850]),
        ([str(2**63 - 1)], pa.int64(), [2**63 - 1]),
        (["1", "2.5", "1e3"], pa.float64(), [1.0, 2.5, 1000.0]),
    ],
)
def test_numbers_as_text(texts: list[str | None], kind: pa.DataType, expected: list[float | None]) -> None:
    assert _parsed(texts, kind) == expected


@pytest.mark.parametrize(
    ("texts", "kind", "time_format", "message"),
    [
        (["2020-01-02", "2020-02-30"], _US, None, "row 2: column 'when' should hold a date and time, .* '2020-02-30'"),
        (["2020-01-02", "5"], _UTC, None, "row 2: column 'when' should hold a date and time, .* got '5'"),
        (["2020-01-02", "3.4.2020"], _US, None, r"row 2: .* got '3\.4\.2020'; .*--time-format '%d\.%m\.%Y'"),
        (["1500-01-02 03:04:05.1234567"], _NS, None, r"row 1: .* out of range for timestamp\[ns\]"),
        (["5", "", "x"], pa.int64(), None, "row 2: column 'when' should hold an integer below 2"),
        (["5", "0x1f"], pa.int64(), None, "row 2: .* got '0x1f'"),
        ([str(2**63)], pa.int64(), None, "row 1: .* an integer below 2"),
        (["5", "inf"], pa.float64(), None, "row 2: .* should hold a number"),
        (["01.02.2020", "2020-02-01"], _UTC, "%d.%m.%Y", "row 2: .* does not match --time-format '%d.%m.%Y'"),
        (["01.02.2020", "today"], _UTC, "%d.%m.%Y", "row 2: .* '%d.%m.%Y'"),
        (["1272369210"], _UTC, "%d.%m.%Y", "row 1: .* leave it out if times are numbers"),
    ],
)
def test_what_is_not_a_time_is_named_with_its_row(
    texts: list[str], kind: pa.DataType, time_format: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        _parsed(texts, kind, time_format)


@pytest.mark.parametrize(
    ("values", "formats"),
    [
        (["12/1/2010 8:26", "12/1/2010 8:28"], ["%d/%m/%Y %H:%M", "%m/%d/%Y %H:%M"]),  # which one, it does not guess
        (["12/1/2010 8:26", "12/13/2010 8:26"], ["%m/%d/%Y %H:%M"]),
        (["01.02.2020"], ["%d.%m.%Y"]),
        (["Fri Aug 25 13:55:02 -0700 2017"], ["%a %b %d %H:%M:%S %z %Y"]),
        (["06 3, 2014"], ["%m %d, %Y"]),
        (["Posted November 5, 2011"], ["%d.%m.%Y %H:%M"]),  # only an example
    ],
)
def test_other_dates_are_never_guessed_but_a_format_is_suggested(values: list[str], formats: list[str]) -> None:
    with pytest.raises(UserError, match=r"^log: column 'when' holds '.*'; expected times as integers, .*") as caught:
        time_kind(values, "when", "log")
    assert re.findall(r"'([^']*%[^']*)'", str(caught.value)) == formats


@pytest.mark.parametrize("time_format", ["%Q.%Y", "%H:%M", "ISO8601", "%s", ""])
def test_a_format_that_is_not_one_of_dates_is_refused(time_format: str) -> None:
    with pytest.raises(UserError, match=rf"^--time-format '{time_format}': .*strptime"):
        formatted_type(time_format)
