from __future__ import annotations

import datetime as dt
from fractions import Fraction

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.sources.times import as_time, common_time
from workflows.common.errors import UserError

_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_STAMPS = st.builds(pa.timestamp, st.sampled_from(list(_PER_SECOND)), st.sampled_from([None, "UTC", "Asia/Tokyo"]))


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        ([pa.int32()], pa.int32()),
        ([pa.int32(), pa.int64(), pa.uint8()], pa.int64()),
        ([pa.int64(), pa.float32()], pa.float64()),
        ([pa.uint64()], pa.int64()),
        ([pa.decimal128(20, 3)], pa.float64()),
        ([pa.date32(), pa.date32()], pa.date32()),
        ([pa.date32(), pa.timestamp("s")], pa.timestamp("us")),
        ([pa.timestamp("ms", "Asia/Tokyo")] * 2, pa.timestamp("ms", "Asia/Tokyo")),
        ([pa.timestamp("ms", "Asia/Tokyo"), pa.timestamp("ns", "UTC")], pa.timestamp("ns", "UTC")),
        ([pa.timestamp("us", "UTC"), pa.timestamp("us")], pa.timestamp("us")),
    ],
)
def test_common_types(kinds: list[pa.DataType], expected: pa.DataType) -> None:
    assert common_time([("log", kind) for kind in kinds]) == expected
    assert common_time([("log", kind) for kind in reversed(kinds)]) == expected


@given(parts=st.lists(st.tuples(st.integers(-(10**6), 10**6), _STAMPS), min_size=1))
def test_instants_of_any_unit_and_zone_compare_correctly(parts: list[tuple[int, pa.DataType]]) -> None:
    kind = common_time([("log", part) for _, part in parts])
    cast = [
        as_time(pa.chunked_array([pa.array([number], pa.int64()).cast(part)]), kind, "log") for number, part in parts
    ]
    assert {column.type for column in cast} == {kind}
    seconds = [Fraction(number, _PER_SECOND[part.unit]) for number, part in parts]
    assert [Fraction(column.cast(pa.int64())[0].as_py(), _PER_SECOND[kind.unit]) for column in cast] == seconds


def test_dates_become_midnight() -> None:
    days = pa.chunked_array([pa.array([dt.date(1969, 12, 31), None])])
    assert as_time(days, pa.timestamp("us"), "log").to_pylist() == [dt.datetime(1969, 12, 31), None]


def test_numbers_and_dates_cannot_be_compared() -> None:
    with pytest.raises(UserError, match=r"times are numbers in a\.csv and dates in b\.csv"):
        common_time([("b.csv", pa.date32()), ("a.csv", pa.int64()), ("c.csv", pa.timestamp("s"))])


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        (pa.array([dt.datetime(2500, 1, 1)], pa.timestamp("s")), pa.timestamp("ns")),
        (pa.array([2**63], pa.uint64()), pa.int64()),
    ],
)
def test_a_time_outside_the_range_of_the_common_type_is_refused(column: pa.Array, kind: pa.DataType) -> None:
    with pytest.raises(UserError, match=r"^log\.csv: a time is out of range"):
        as_time(pa.chunked_array([column]), kind, "log.csv")
