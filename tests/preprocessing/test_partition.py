from __future__ import annotations

import datetime as dt
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.partition import Spill, common_schema, load_partition, spill_piece
from preprocessing.sources.log import Columns, Piece
from workflows.device import frame_device
from workflows.errors import UserError

_COLUMNS = Columns(user="u", item="i", time="t", rating="r")
_CPU = frame_device("cpu")


@dataclass(frozen=True)
class _Table(Piece):
    table: pa.Table

    def read(self) -> pa.Table:
        return self.table

    @property
    def size_bytes(self) -> int:
        return self.table.nbytes


def _piece(users: Any, items: Any, times: Any, ratings: Any = None) -> _Table:
    ratings = [3.0] * len(users) if ratings is None else ratings
    return _Table(pa.table({"u": users, "i": items, "t": times, "r": ratings}))


def _spill(folder: Path, pieces: list[_Table], partitions: int, min_rating: float | None = None) -> list[Spill]:
    return [
        spill_piece(piece, _COLUMNS, min_rating, partitions, folder / str(index)) for index, piece in enumerate(pieces)
    ]


def _bits(number: float) -> int:
    """IEEE 754 bits of the magnitude; a negative number is as far below -1 as its mirror is above 0."""
    (bits,) = struct.unpack("<q", struct.pack("<d", abs(number)))
    return bits if number >= 0 else -1 - bits


def _parts(spills: list[Spill], partitions: int) -> list[pd.DataFrame]:
    schema = common_schema(spills)
    return [load_partition(number, spills, schema, _CPU) for number in range(partitions)]


_USERS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=30),
)


@given(users=_USERS, partitions=st.sampled_from([1, 2, 7, 65536]), cut=st.integers(0, 30))
def test_every_row_is_in_one_partition_with_all_of_its_user(
    fresh: Callable[[], Path], users: list[Any], partitions: int, cut: int
) -> None:
    kind = pa.int64() if users and isinstance(users[0], int) else pa.string()
    rows = [(user, number, number * 2) for number, user in enumerate(users)]
    halves = [rows[:cut], rows[cut:]]
    pieces = []
    for half in halves:
        columns = zip(zip(*half, strict=True) if half else ([], [], []), (kind, pa.int64(), pa.int64()), strict=True)
        pieces.append(_piece(*(pa.array(values, value_type) for values, value_type in columns)))
    spills = _spill(fresh(), pieces, partitions)
    for spill, half in zip(spills, halves, strict=True):
        assert (spill.offsets[0], spill.offsets[-1], len(spill.offsets)) == (0, len(half), partitions + 1)
        assert (np.diff(spill.offsets) >= 0).all()
        assert (spill.rows_read, spill.missing, spill.below_rating) == (len(half), 0, 0)
    occupied = sorted({int(p) for spill in spills for p in np.nonzero(np.diff(spill.offsets))[0]})
    schema = common_schema(spills)
    home: dict[Any, int] = {}
    found = []
    for partition in occupied:
        for row in load_partition(partition, spills, schema, _CPU).itertuples(index=False, name=None):
            assert home.setdefault(row[0], partition) == partition
            found.append(row)
    assert sorted(found, key=lambda row: row[1]) == rows


def test_a_users_partition_does_not_depend_on_other_rows_or_on_the_width_of_ids(tmp_path: Path) -> None:
    users = list(range(200))
    together = _parts(_spill(tmp_path, [_piece(users, users, users)], 8), 8)
    (tmp_path / "wide").mkdir()
    wide = _parts(_spill(tmp_path / "wide", [_piece([2**40, *users[::-1]], [0, *users], [0, *users])], 8), 8)
    for narrow_part, wide_part in zip(together, wide, strict=True):
        assert set(narrow_part["user"]) == set(wide_part["user"]) - {2**40}


def test_users_are_spread_evenly(tmp_path: Path) -> None:
    for users in (list(range(8000)), [f"user {n}" for n in range(8000)]):
        (spill,) = _spill(tmp_path, [_piece(users, list(range(8000)), [0] * 8000)], 8)
        # 1000 expected, standard deviation 30.
        assert (np.abs(np.diff(spill.offsets) - 1000) < 160).all()


def test_rows_with_a_missing_value_are_counted_and_left_out(tmp_path: Path) -> None:
    piece = _piece([1, None, 3, 4, 5, 6], ["a", "b", None, "d", "e", "f"], [1.0, 2.0, 3.0, None, np.nan, np.inf])
    (spill,) = _spill(tmp_path, [piece], 1)
    assert (spill.rows_read, spill.missing, spill.below_rating) == (6, 5, 0)
    assert _parts([spill], 1)[0].to_numpy().tolist() == [[1, "a", _bits(1.0)]]


def test_a_missing_rating_counts_only_where_ratings_do(tmp_path: Path) -> None:
    piece = _piece([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [None, 1.5, 2.0, 5.0])
    assert [(s.missing, s.below_rating, s.offsets[-1]) for s in _spill(tmp_path, [piece], 1)] == [(0, 0, 4)]
    (spill,) = _spill(tmp_path, [piece], 1, min_rating=2.0)
    assert (spill.missing, spill.below_rating) == (1, 1)
    assert _parts([spill], 1)[0]["user"].tolist() == [3, 4]


@pytest.mark.parametrize(
    ("low", "high", "kind"), [(-(2**31), 2**31 - 1, "int32"), (0, 2**31, "int64"), (-(2**31) - 1, 0, "int64")]
)
def test_ids_are_narrow_where_they_fit(tmp_path: Path, low: int, high: int, kind: str) -> None:
    (part,) = _parts(_spill(tmp_path, [_piece([low, high], [1, 2], [1, 2])], 1), 1)
    assert part["user"].tolist() == [low, high]
    assert part.dtypes.astype(str).tolist() == [kind, "int32", "int64"]


def test_pieces_of_different_widths_share_one_schema(tmp_path: Path) -> None:
    spills = _spill(tmp_path, [_piece([1], [2**33], [1]), _piece([2**33], [1], [2])], 2)
    parts = _parts(spills, 2)
    assert {str(part["user"].dtype) for part in parts} == {"int64"}
    assert sorted(pd.concat(parts).to_numpy().tolist()) == [[1, 2**33, 1], [2**33, 1, 2]]


_EPOCH = dt.datetime(1970, 1, 1)
_LATER = dt.datetime(2001, 2, 3, 4, 5, 6, 789_000)
_LATER_MS = (_LATER - _EPOCH) // dt.timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        (pa.array([5, -7], pa.int16()), [5, -7]),
        (pa.array([2**62, -(2**62)]), [2**62, -(2**62)]),
        (pa.array([1.5, -0.25]), [_bits(1.5), _bits(-0.25)]),
        (pa.array([1.5, -0.25], pa.float32()), [_bits(1.5), _bits(-0.25)]),
        (pa.array([_EPOCH, _LATER], pa.timestamp("ms")), [0, _LATER_MS]),
        (pa.array([_EPOCH, _LATER], pa.timestamp("ns")), [0, _LATER_MS * 1_000_000]),
        (pa.array([0, 1_000_000], pa.timestamp("us", "Europe/Berlin")), [0, 1_000_000]),
        (pa.array([0, 2], pa.date32()), [0, 2 * 86_400_000]),
        (pa.array([0, 86_400_000], pa.date64()), [0, 86_400_000]),
        (pa.array([3, 4]).dictionary_encode(), [3, 4]),
        (pa.array([1_001, 1_002], pa.timestamp("ns")), [1_001, 1_002]),
        (pa.array([1.5, 2.5]).dictionary_encode(), [_bits(1.5), _bits(2.5)]),
        (pa.array(np.array([1.5, 2.5], np.float16)), [_bits(1.5), _bits(2.5)]),
    ],
)
def test_times_are_integers_in_the_unit_they_come_in(tmp_path: Path, times: pa.Array, expected: list[int]) -> None:
    (part,) = _parts(_spill(tmp_path, [_piece([1, 2], [1, 2], times)], 1), 1)
    assert part["time"].tolist() == expected


_FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.7e9, 1.7e15, 1.7e18])


@given(times=st.lists(_FLOATS, min_size=1, max_size=20))
def test_numbers_of_any_size_keep_their_order(fresh: Callable[[], Path], times: list[float]) -> None:
    places = list(range(len(times)))
    (part,) = _parts(_spill(fresh(), [_piece(places, places, times)], 1), 1)
    order = dict(zip(part["user"], part["time"], strict=True))
    ranks = [sorted(set(times)).index(time) for time in times]
    assert [sorted(set(order.values())).index(order[place]) for place in places] == ranks


def test_unsigned_ids_are_refused_where_they_do_not_fit_int64(tmp_path: Path) -> None:
    (spill,) = _spill(tmp_path, [_piece(pa.array([1, 2**63 - 1], pa.uint64()), [1, 2], [1, 2])], 1)
    assert spill.offsets[-1] == 2
    with pytest.raises(UserError, match=r"beyond 64-bit integers.*make these ids text"):
        _spill(tmp_path, [_piece(pa.array([1, 2**63], pa.uint64()), [1, 2], [1, 2])], 1)
