from __future__ import annotations

import datetime as dt
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.prepare.partition import SpilledLog, load_partition, spill_log
from preprocessing.prepare.row_filter import Selection
from preprocessing.prepare.text_ids import text_keys
from preprocessing.sources.log import Log, LogColumns, Piece
from workflows.cluster import thread_cluster
from workflows.common.errors import UserError
from workflows.device.frames import frame_device
from workflows.operators.encode import IdTable

_COLUMNS = LogColumns(user="u", item="i", time="t", rating="r")
_CPU = frame_device("cpu")


@dataclass(frozen=True)
class _Tables(Piece):
    """A piece made of several tables."""

    parts: list[pa.Table]

    def read(self) -> pa.Table:
        return pa.concat_tables(self.parts)

    def tables(self) -> Iterator[pa.Table]:
        yield from self.parts

    def place(self, row: int) -> str:
        return f"log, row {row + 1}"

    @property
    def size_bytes(self) -> int:
        return sum(table.nbytes for table in self.parts)

    @property
    def rows_estimate(self) -> int:
        return sum(table.num_rows for table in self.parts)


def _table(users: Any, items: Any, times: Any, ratings: Any = None) -> pa.Table:
    ratings = [3.0] * len(users) if ratings is None else ratings
    return pa.table({"u": users, "i": items, "t": times, "r": ratings})


def _piece(*columns: Any) -> _Tables:
    return _Tables([_table(*columns)])


def _spill(folder: Path, pieces: list[_Tables], partitions: int, **selection: Any) -> SpilledLog:
    log = Log("a log", _COLUMNS, list(pieces))
    with thread_cluster(2) as cluster:
        return spill_log(log, Selection(columns=_COLUMNS, **selection), partitions, cluster, folder, _CPU)


def _bits(number: float) -> int:
    """IEEE 754 bits of the magnitude; negative numbers are mirrored around -0.5."""
    (bits,) = struct.unpack("<q", struct.pack("<d", abs(number)))
    return bits if number >= 0 else -1 - bits


def _parts(spilled: SpilledLog) -> list[pd.DataFrame]:
    return [load_partition(number, spilled.folder, _CPU) for number in range(spilled.partitions)]


_USERS = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=30),
)


@given(users=_USERS, partitions=st.sampled_from([1, 2, 7]), cuts=st.lists(st.integers(0, 30), max_size=4))
def test_every_row_is_in_the_single_partition_of_its_user(
    fresh: Callable[[], Path], users: list[Any], partitions: int, cuts: list[int]
) -> None:
    # Two pieces, each in several tables, any of which may be empty.
    is_text = bool(users) and isinstance(users[0], str)
    column = pa.array(users, pa.string() if is_text else pa.int64())
    places = np.arange(len(users))
    whole = _table(column, places, places * 2)
    bounds = sorted({0, len(users), *(min(cut, len(users)) for cut in cuts)})
    tables = [whole.slice(start, stop - start) for start, stop in pairwise(bounds)] or [whole]
    spilled = _spill(fresh(), [_Tables(tables[::2]), _Tables(tables[1::2])], partitions)
    assert [spill.counts.rows_read for spill in spilled.spills] == [
        table.num_rows for table in tables[::2] + tables[1::2]
    ]
    for spill in spilled.spills:
        assert (spill.offsets[0], spill.offsets[-1], len(spill.offsets)) == (0, spill.counts.rows_read, partitions + 1)
        assert (np.diff(spill.offsets) >= 0).all()
        assert (spill.counts.missing, spill.counts.below_rating, spill.counts.unknown) == (0, 0, 0)
        assert spill.text == (("user",) if is_text else ())
    assert spilled.rows == len(users)
    home: dict[Any, int] = {}
    found = []
    for partition, part in enumerate(_parts(spilled)):
        for row in part.itertuples(index=False, name=None):
            assert home.setdefault(row[0], partition) == partition
            found.append(row)
    keys = text_keys(column).tolist() if is_text else users
    assert sorted(found, key=lambda row: row[1]) == list(zip(keys, places, places * 2, strict=True))


def test_the_maximum_number_of_partitions(tmp_path: Path) -> None:
    users = list(range(1000))
    spilled = _spill(tmp_path, [_piece(users, users, users)], 65536)
    occupied = np.flatnonzero(np.diff(spilled.spills[0].offsets))
    assert len(occupied) > 950  # about eight of 1,000 users collide in 65,536 partitions
    found = pd.concat([load_partition(int(partition), tmp_path, _CPU) for partition in occupied])
    assert sorted(found["user"]) == users


def test_a_users_partition_does_not_depend_on_other_rows_or_on_the_width_of_ids(tmp_path: Path) -> None:
    users = list(range(200))
    together = _parts(_spill(tmp_path, [_piece(users, users, users)], 8))
    (tmp_path / "wide").mkdir()
    wide = _parts(_spill(tmp_path / "wide", [_piece([2**40, *users[::-1]], [0, *users], [0, *users])], 8))
    for narrow_part, wide_part in zip(together, wide, strict=True):
        assert set(narrow_part["user"]) == set(wide_part["user"]) - {2**40}


def test_users_are_spread_evenly(fresh: Callable[[], Path]) -> None:
    for users in (list(range(8000)), [f"user {n}" for n in range(8000)]):
        spilled = _spill(fresh(), [_piece(users, list(range(8000)), [0] * 8000)], 8)
        # Expected: 1000, with standard deviation 30.
        assert (np.abs(np.diff(spilled.spills[0].offsets) - 1000) < 160).all()


def test_rows_with_a_missing_value_are_counted_and_dropped(tmp_path: Path) -> None:
    piece = _piece([1, None, 3, 4, 5, 6], ["a", "b", None, "d", "e", "f"], [1.0, 2.0, 3.0, None, np.nan, np.inf])
    spilled = _spill(tmp_path, [piece], 1)
    (spill,) = spilled.spills
    assert (spill.counts.rows_read, spill.counts.missing, spill.counts.below_rating) == (6, 5, 0)
    (part,) = _parts(spilled)
    assert part.to_numpy().tolist() == [[1, text_keys(pa.array(["a"]))[0], _bits(1.0)]]


@pytest.mark.parametrize(
    ("column", "values"),
    [("u", ([1, 2, None], [1, 2, None], [1, 2, None])), ("i", ([1, 2, 3], ["a", "b", None], [1, 2, 3]))],
)
def test_strict_names_the_first_row_with_a_missing_value(tmp_path: Path, column: str, values: tuple) -> None:
    # The row follows another piece and another table of its piece; rows are counted within the piece.
    good = _table([1, 1], values[1][:1] * 2, [1, 2])
    pieces = [_Tables([good]), _Tables([good, _table(*values)])]
    with pytest.raises(UserError, match=f"log, row 5: column '{column}' is empty, and --strict"):
        _spill(tmp_path, pieces, 2, strict=True)


def test_strict_accepts_complete_rows_and_ignores_unused_ratings(tmp_path: Path) -> None:
    assert _spill(tmp_path, [_piece([1, 2], [1, 2], [1, 2], [None, 1.0])], 1, strict=True).rows == 2


def test_a_missing_rating_matters_only_if_ratings_are_used(fresh: Callable[[], Path]) -> None:
    piece = _piece([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 4], [None, 1.5, 2.0, 5.0])
    assert [(s.counts.missing, s.counts.below_rating, s.offsets[-1]) for s in _spill(fresh(), [piece], 1).spills] == [
        (0, 0, 4)
    ]
    spilled = _spill(fresh(), [piece], 1, min_rating=2.0)
    (spill,) = spilled.spills
    assert (spill.counts.missing, spill.counts.below_rating) == (1, 1)
    assert _parts(spilled)[0]["user"].tolist() == [3, 4]


def test_rows_with_unknown_ids_are_counted_and_dropped(tmp_path: Path) -> None:
    known = {
        "user": IdTable(pd.Series([3, 1])),
        "item": IdTable(pd.Series(text_keys(pa.array(["b", "a"])))),
    }
    piece = _piece([1, 2, 3, 3, None], ["a", "a", "z", "b", "a"], [1, 2, 3, 4, 5])
    spilled = _spill(tmp_path, [piece], 1, known=known)
    (spill,) = spilled.spills
    assert (spill.counts.rows_read, spill.counts.missing, spill.counts.unknown) == (5, 1, 2)
    assert sorted(_parts(spilled)[0]["time"]) == [1, 4]


@pytest.mark.parametrize(
    ("low", "high", "kind"), [(-(2**31), 2**31 - 1, "int32"), (0, 2**31, "int64"), (-(2**31) - 1, 0, "int64")]
)
def test_ids_are_int32_if_they_fit(tmp_path: Path, low: int, high: int, kind: str) -> None:
    (part,) = _parts(_spill(tmp_path, [_piece([low, high], [1, 2], [1, 2])], 1))
    assert part["user"].tolist() == [low, high]
    assert part.dtypes.astype(str).tolist() == [kind, "int32", "int32"]


def test_pieces_of_different_widths_share_one_schema(tmp_path: Path) -> None:
    parts = _parts(_spill(tmp_path, [_piece([1], [2**33], [1]), _piece([2**33], [1], [2])], 2))
    assert {str(part["user"].dtype) for part in parts} == {"int64"}
    assert sorted(pd.concat(parts).to_numpy().tolist()) == [[1, 2**33, 1], [2**33, 1, 2]]


def test_no_partial_file_is_left(tmp_path: Path) -> None:
    _spill(tmp_path, [_piece(["a"], ["x"], [1]), _piece(["b"], ["y"], [1])], 2)
    names = {path.name for path in tmp_path.iterdir()}
    spills = {f"00000{piece}-000000.{kind}" for piece in range(2) for kind in ("rows", "user", "item")}
    assert names == spills | {"offsets.npy", "item_sizes.npy", "names.txt"}


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
def test_times_are_integers_in_their_original_unit(tmp_path: Path, times: pa.Array, expected: list[int]) -> None:
    (part,) = _parts(_spill(tmp_path, [_piece([1, 2], [1, 2], times)], 1))
    assert part["time"].tolist() == expected


_FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.7e9, 1.7e15, 1.7e18])


@given(times=st.lists(_FLOATS, min_size=1, max_size=20))
def test_numbers_of_any_size_keep_their_order(fresh: Callable[[], Path], times: list[float]) -> None:
    places = list(range(len(times)))
    (part,) = _parts(_spill(fresh(), [_piece(places, places, times)], 1))
    order = dict(zip(part["user"], part["time"], strict=True))
    ranks = [sorted(set(times)).index(time) for time in times]
    assert [sorted(set(order.values())).index(order[place]) for place in places] == ranks


def test_unsigned_ids_that_do_not_fit_int64_are_refused(tmp_path: Path) -> None:
    assert _spill(tmp_path, [_piece(pa.array([1, 2**63 - 1], pa.uint64()), [1, 2], [1, 2])], 1).rows == 2
    with pytest.raises(UserError, match=r"beyond 64-bit integers.*make these ids text"):
        _spill(tmp_path, [_piece(pa.array([1, 2**63], pa.uint64()), [1, 2], [1, 2])], 1)


@given(users=st.lists(st.integers(-50, 50), min_size=1, max_size=60), splits=st.sampled_from([2, 3, 8]))
def test_split_partitions_hold_whole_users_and_every_row_once(
    fresh: Callable[[], Path], users: list[int], splits: int
) -> None:
    rows = len(users)
    table = pa.table({"u": users, "i": range(rows), "t": range(rows)})
    spilled = _spill(fresh(), [_Tables([table])], 3)
    parts = [load_partition(number, spilled.folder, _CPU, splits) for number in range(3 * splits)]
    assert sorted(item for part in parts for item in part["item"]) == list(range(rows))
    homes = {}
    for number, part in enumerate(parts):
        for user in part["user"]:
            assert homes.setdefault(user, number) == number
