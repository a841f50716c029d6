"""Column types inferred from the spelling of their fields."""

from __future__ import annotations

import re

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.sources import fields
from preprocessing.sources.fields import PADDED, describe, holds, id_type, may_be_padded

_UTC = pa.timestamp("us", "UTC")


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (pa.int64(), ["0", "-5", str(2**63 - 1), str(-(2**63))], ["", "1.0", "+1", " 1", "1_0", "²", str(2**63)]),
        (pa.float64(), ["1", "-1.5", ".5", "2.", "1e-3"], ["", ".", "1e", "inf", "nan", "1,5", "٣"]),
        (_UTC, ["2020-01-02", "2020-01-02T03:04Z"], ["2020-01-02Z", "2020"]),
        (pa.string(), ["", "anything"], []),
    ],
)
def test_values_that_each_column_type_can_hold(kind: pa.DataType, good: list[str], bad: list[str]) -> None:
    fits = holds(kind)
    assert [value for value in good if not fits(value)] == []
    assert [value for value in bad if fits(value)] == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "2"], pa.int64()),
        (["1", "a"], pa.int64()),  # a tie: the others are reported as errors
        (["1", "a", "b"], pa.string()),
        (["1", "2", "03"], pa.string()),
        (["0", "10"], pa.int64()),
        (["1.0", "2.00", "NA", "-3"], pa.int64()),
        (["NA", "a", "<NA>"], pa.string()),
        (["1", "1.5", "0.0"], pa.int64()),
        (["1", "2", str(2**63)], pa.string()),
        (["9" * 5000], pa.string()),
        ([str(-(2**63)), str(2**63 - 1)], pa.int64()),
        ([], pa.int64()),
    ],
)
def test_id_types(values: list[str], expected: pa.DataType) -> None:
    assert id_type(values) == expected


def test_types_are_described_in_words() -> None:
    described = [describe(kind) for kind in (pa.int64(), pa.float64(), _UTC, pa.string())]
    assert described == ["an integer below 2^63", "a number", "a date and time", "text"]


_CELLS = st.from_regex(r"( ?-?[0-9]{1,3}|0?\.[0-9]|2024-01-0[1-9]( 0[1-9]:00)?|a0[0-9]|)", fullmatch=True)


@given(
    rows=st.lists(st.lists(_CELLS, min_size=1, max_size=3), min_size=1, max_size=6),
    delimiter=st.sampled_from([",", "\t", ";", "|"]),
    quote=st.booleans(),
    last=st.sampled_from(["", "\n"]),
    block=st.integers(1, 20),
)
def test_zero_padded_fields_are_always_found(
    rows: list[list[str]], delimiter: str, quote: bool, last: str, block: int
) -> None:
    spelled = [delimiter.join(f'"{cell}"' if quote else cell for cell in row) for row in rows]
    padded = any(re.match(PADDED, cell.strip()) for row in rows for cell in row)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fields, "_BLOCK_BYTES", block)
        assert may_be_padded(("\n".join(spelled) + last).encode(), delimiter) == padded


def test_dates_and_fractions_are_not_padded() -> None:
    assert not may_be_padded(b"1,2024-01-02 03:04:05,0.05\n0,2024-01-02T03:04:05,-0\n" * 9, ",")
