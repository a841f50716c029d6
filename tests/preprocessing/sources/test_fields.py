"""Types of columns from the spelling of their fields."""

from __future__ import annotations

import pyarrow as pa
import pytest

from preprocessing.sources.fields import date_type, describe, holds, id_type, time_type

_US, _NS, _UTC = pa.timestamp("us"), pa.timestamp("ns"), pa.timestamp("us", "UTC")


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
        ("2020-01-02T24:01", None),
        ("20200102", None),
        ("", None),
    ],
)
def test_the_type_of_a_date(value: str, expected: pa.DataType | None) -> None:
    assert date_type(value) == expected


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (pa.int64(), ["0", "-5", str(2**63 - 1), str(-(2**63))], ["", "1.0", "+1", " 1", "1_0", "²", str(2**63)]),
        (pa.float64(), ["1", "-1.5", ".5", "2.", "1e-3"], ["", ".", "1e", "inf", "nan", "1,5", "٣"]),
        (_US, ["2020-01-02", "2020-01-02 03:04:05.1"], ["2020-01-02Z", "2020-01-02T03:04Z", "2020"]),
        (_UTC, ["2020-01-02T03:04Z"], ["2020-01-02"]),
        (_NS, ["2020-01-02", "2020-01-02 03:04:05.1234567"], ["2020-01-02 03:04:05.1234567Z"]),
        (pa.string(), ["", "anything"], []),
    ],
)
def test_what_a_column_can_hold(kind: pa.DataType, good: list[str], bad: list[str]) -> None:
    fits = holds(kind)
    assert [value for value in good if not fits(value)] == []
    assert [value for value in bad if fits(value)] == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "2"], pa.int64()),
        (["1", "a"], pa.int64()),  # half: the other half is reported as mistakes
        (["1", "a", "b"], pa.string()),
        (["1", "2", "03"], pa.string()),
        (["0", "10"], pa.int64()),
        ([], pa.int64()),
    ],
)
def test_the_type_of_ids(values: list[str], expected: pa.DataType) -> None:
    assert id_type(values) == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "2"], pa.int64()),
        (["1", "2.5"], pa.float64()),
        (["2020-01-02", "1", "2020-01-03"], _US),
        (["2020-01-02", "1", "2"], pa.int64()),
        (["2020-01-02", "2020-01-02 03:04:05.1234567"], _NS),
        (["2020-01-02T03:04Z", "2020-01-02T03:05Z", "2020-01-02"], _UTC),
        (["yesterday", "3"], pa.int64()),  # what is neither does not count
    ],
)
def test_the_type_of_times(values: list[str], expected: pa.DataType) -> None:
    assert time_type(values) == expected


def test_types_are_described_for_people() -> None:
    described = [describe(kind) for kind in (pa.int64(), pa.float64(), _UTC, pa.string())]
    assert described == ["an integer below 2^63", "a number", "a date and time", "text"]
