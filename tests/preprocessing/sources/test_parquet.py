from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.sources.log import DETECT, Log, LogColumns, Piece, ReadOptions
from preprocessing.sources.parquet import parquet_log
from preprocessing.sources.unpack import SourceFile
from workflows.common.errors import UserError

_COLUMNS = LogColumns(user="user", item="item", time="time")


def _log(*paths: Path, columns: LogColumns = _COLUMNS, options: ReadOptions = DETECT) -> Log:
    return parquet_log([SourceFile(path, str(path), path) for path in paths], columns, False, options)


def _pieces(path: Path, columns: LogColumns = _COLUMNS) -> list[Piece]:
    return _log(path, columns=columns).pieces


def _written(path: Path, row_group_size: int = 1 << 20, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=row_group_size)
    return path


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 40), group=st.integers(1, 41))
def test_each_row_group_is_a_piece(
    fresh: Callable[[], Path], log_rows: Callable[[Log], pd.DataFrame], rows: int, group: int
) -> None:
    numbers = list(range(rows))
    users = pa.array([f"u{n}" for n in numbers]).dictionary_encode()
    path = _written(fresh() / "log", group, other=numbers, time=numbers, user=users, item=pa.array(numbers, pa.int16()))
    pieces = _pieces(path, _COLUMNS)
    assert len(pieces) == -(-rows // group)
    assert all(piece.size_bytes > 0 for piece in pieces)
    found = log_rows(Log("Parquet log", _COLUMNS, pieces))
    assert found.to_numpy().tolist() == [[f"u{n}", n, n] for n in numbers]


def test_empty_row_groups_are_skipped(tmp_path: Path) -> None:
    table = pa.table({"user": [1], "item": [2], "time": [3]})
    with pq.ParquetWriter(tmp_path / "log", table.schema) as writer:
        for part in (table.slice(0, 0), table, table.slice(0, 0), table):
            writer.write_table(part)
    assert [piece.read().num_rows for piece in _pieces(tmp_path / "log", _COLUMNS)] == [1, 1]


def test_nulls_stay_nulls(tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame]) -> None:
    path = _written(tmp_path / "log", user=[1, None, 2**40], item=["a", "b", None], time=[0.5, 1.5, None])
    found = log_rows(Log("", _COLUMNS, _pieces(path, _COLUMNS)))
    assert found["user"].tolist() == [1, None, 2**40]
    assert found.isna().sum().tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("user", pa.array([0], pa.timestamp("s")), "integers or text"),
        ("user", pa.array([b"0" * 16], pa.binary(16)), "integers or text"),
        ("item", pa.array([[1]]), "integers or text"),
        ("item", pa.array([True]), "integers or text"),
        ("item", pa.nulls(1, pa.float16()), "integers or text"),
        ("time", pa.array([True]), "numbers, dates or text"),
        ("rating", pa.array(["good"]), "numbers"),
        ("rating", pa.array([0], pa.timestamp("ms")), "numbers"),
    ],
)
def test_a_type_unsuitable_for_its_column_is_refused(
    tmp_path: Path, column: str, values: pa.Array, expected: str
) -> None:
    path = _written(tmp_path / "log", **{"user": [1], "item": [2], "time": [3], "rating": [4], column: values})
    with pytest.raises(UserError, match=rf"log: column '{column}' holds .*, expected {expected}"):
        _pieces(path, replace(_COLUMNS, rating="rating"))


def test_missing_columns_and_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"log has no column 'item', 'time'; its columns are 'user', 'thing'"):
        _pieces(_written(tmp_path / "log", user=[1], thing=[2]), _COLUMNS)
    none = pa.array([], pa.int64())
    with pytest.raises(UserError, match="log has no rows"):
        _pieces(_written(tmp_path / "log", user=none, item=none, time=none), _COLUMNS)


def test_a_repeated_column_is_refused_only_if_it_is_read(tmp_path: Path) -> None:
    numbers = pa.array([1])
    path = tmp_path / "log"
    pq.write_table(pa.table([numbers] * 4, names=["user", "item", "time", "item"]), path)
    with pytest.raises(UserError, match="log: column 'item' appears more than once"):
        _pieces(path, _COLUMNS)
    pq.write_table(pa.table([numbers] * 5, names=["user", "item", "time", "note", "note"]), path)
    assert len(_pieces(path, _COLUMNS)) == 1


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = _written(tmp_path / "log", user=[1], item=[2], time=[3])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="log: not a readable Parquet file"):
        _pieces(path, _COLUMNS)


def test_a_damaged_row_group_is_refused_on_reading(tmp_path: Path) -> None:
    path = _written(tmp_path / "log", user=[1] * 99, item=[2] * 99, time=[3] * 99)
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * 60 + data[64:])
    (piece,) = _pieces(path, _COLUMNS)
    with pytest.raises(UserError, match="log, row group 0: not readable"):
        piece.read()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1.0, float("nan"), None, -3.0, 2.0**53 - 1]), [1, None, None, -3, 2**53 - 1]),
        (pa.array([1.0, 2.0], pa.float32()), [1, 2]),
        (pa.array([Decimal("7.00"), Decimal("-8")], pa.decimal128(20, 2)), [7, -8]),
        (pa.array([0, 2**63 - 1], pa.uint64()), [0, 2**63 - 1]),
        (pa.array([1.0, 2.0, 1.0]).dictionary_encode(), [1, 2, 1]),
        (pa.array(["x", "y", "x"]).dictionary_encode(), ["x", "y", "x"]),
        (pa.array(["é".encode(), None]), ["é", None]),
        (pa.array(["6fa459ea-ee8a-3ca4-894e-db77e160355e"]), ["6fa459ea-ee8a-3ca4-894e-db77e160355e"]),
    ],
)
def test_ids_may_be_whole_numbers_or_text_of_any_type(tmp_path: Path, values: pa.Array, expected: list[Any]) -> None:
    path = _written(tmp_path / "log", user=values, item=[0] * len(values), time=[0] * len(values))
    (piece,) = _pieces(path)
    column = piece.read().column("user")
    assert column.to_pylist() == expected
    assert column.type in (pa.int64(), pa.large_string())


@settings(max_examples=30)
@given(before=st.lists(st.integers(0, 9), max_size=20), after=st.lists(st.integers(0, 9), max_size=20))
@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (1.5, pa.float64()),
        (float("inf"), pa.float64()),
        (2.0**53, pa.float64()),
        (2.0**24, pa.float32()),
        (Decimal("1.50"), pa.decimal128(22, 2)),
        (Decimal(2**64), pa.decimal128(22, 2)),
        (b"\xff", pa.binary()),
    ],
)
def test_an_invalid_id_is_reported_with_file_and_row(
    fresh: Callable[[], Path], before: list[int], after: list[int], bad: Any, kind: pa.DataType
) -> None:
    around = [[b"%d" % n for n in ns] if pa.types.is_binary(kind) else ns for ns in (before, after)]
    values = pa.array([*around[0], bad, *around[1]], kind)
    path = _written(fresh() / "log", 7, user=[0] * len(values), item=values, time=[0] * len(values))
    pieces = _pieces(path)
    for piece in pieces[: len(before) // 7]:
        piece.read()
    message = rf"log, row {len(before) + 1}: column 'item' holds {re.escape(repr(bad))[:20]}.*convert .* to text"
    with pytest.raises(UserError, match=message):
        pieces[len(before) // 7].read()


@settings(max_examples=20)
@given(groups=st.lists(st.integers(0, 5), min_size=1, max_size=6).filter(any))
def test_row_locations_count_through_the_file(fresh: Callable[[], Path], groups: list[int]) -> None:
    path = fresh() / "log"
    table = pa.table({"user": range(sum(groups)), "item": range(sum(groups)), "time": range(sum(groups))})
    start = 0
    with pq.ParquetWriter(path, table.schema) as writer:
        for rows in groups:
            writer.write_table(table.slice(start, rows))
            start += rows
    for piece in _pieces(path):
        for row, user in enumerate(piece.read().column("user").to_pylist()):
            assert piece.place(row) == f"{path}, row {user + 1}"


def test_columns_are_matched_by_name_in_each_file(tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame]) -> None:
    a = _written(tmp_path / "a", user=pa.array([1], pa.int16()), item=["x"], time=[3])
    b = _written(tmp_path / "b", time=[6], other=[0], item=pa.array(["y"]).dictionary_encode(), user=[4.0])
    none = _written(tmp_path / "none", user=pa.array([], pa.null()))
    assert log_rows(_log(none, a, b)).to_numpy().tolist() == [[1, "x", 3], [4, "y", 6]]
    with pytest.raises(UserError, match=r"c has no column 'item', 'time'; its columns are 'user'"):
        _log(a, b, _written(tmp_path / "c", user=[1]))
    with pytest.raises(UserError, match="none has no rows"):
        _log(none, none)


def test_ids_cannot_be_integers_in_one_file_and_text_in_another(tmp_path: Path) -> None:
    a = _written(tmp_path / "a", user=[1], item=[1], time=[3])
    b = _written(tmp_path / "b", user=[1], item=["1"], time=[3])
    with pytest.raises(UserError, match=r"column 'item' holds integers in .*a and text in .*b; convert one"):
        _log(b, a)


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int8(), pa.string())],
    ids=str,
)
def test_text_ids_are_trimmed_and_may_be_missing(tmp_path: Path, kind: pa.DataType) -> None:
    spelled = [" u1", "u1\t", "\u2003é b", "", " ", "NULL", "nan", "NA", None, "007"]
    values = pa.array([None if text is None else text.encode() for text in spelled], pa.binary())
    path = _written(tmp_path / "log", user=values.cast(pa.string()).cast(kind), item=[0] * 10, time=[0] * 10)
    expected = ["u1", "u1", "é b", None, None, None, None, "NA", None, "007"]
    assert _pieces(path)[0].read().column("user").to_pylist() == expected


@pytest.mark.parametrize("statistics", [True, False])
def test_unsigned_ids_are_text_everywhere_if_one_is_too_large(
    tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame], statistics: bool
) -> None:
    numbers = [5, 2**63 - 1, None, 2**63, 2**64 - 1]
    large = {"user": pa.array(numbers, pa.uint64()), "item": pa.array([1, 2, 3, 4, 5], pa.uint64()), "time": [0] * 5}
    pq.write_table(pa.table(large), tmp_path / "a", row_group_size=2, write_statistics=statistics)
    small = _written(tmp_path / "b", user=[5, -1], item=[1, 2], time=[0, 0])
    found = log_rows(_log(small, tmp_path / "a"))
    assert found["user"].tolist() == ["5", "-1", "5", str(2**63 - 1), None, str(2**63), str(2**64 - 1)]
    assert found["item"].tolist() == [1, 2, 1, 2, 3, 4, 5]


def test_options_decide_the_type_of_ids(tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame]) -> None:
    a = _written(tmp_path / "a", user=pa.array([1.0, None]), item=["7", " -8.0"], time=[0, 0])
    b = _written(tmp_path / "b", user=["x"], item=pa.array([Decimal(9)]), time=[0])
    options = ReadOptions(text_ids=frozenset({"user"}), whole_ids=frozenset({"item"}))
    assert log_rows(_log(a, b, options=options)).to_numpy().tolist() == [["1", 7, 0], [None, -8, 0], ["x", 9, 0]]
    for bad in ("x", "07", "1.5", str(2**63)):
        path = _written(tmp_path / "c", user=["x"] * 3, item=["1", "NA", bad], time=[0] * 3)
        with pytest.raises(UserError, match=rf"c, row 3: column 'item' holds '{bad}', expected an integer below 2\^63"):
            log_rows(_log(path, options=options))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.binary(), pa.dictionary(pa.int8(), pa.string())])
@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (
            ["", " 2020-01-02", "2020/01/02 03:04 UTC", "2020-01-02T03:04:05+02:00", "NA"],
            [1577923200, 1577934240, 1577927045],
        ),
        ([None, "5", " -7"], [5, -7]),
        (["0.5", "", "2"], [0.5, 2.0]),
    ],
)
def test_times_as_text_are_read_as_in_csv(
    tmp_path: Path, kind: pa.DataType, texts: list[str | None], expected: list[float]
) -> None:
    rows = len(texts)
    path = _written(tmp_path / "log", 2, user=[1] * rows, item=[2] * rows, time=pa.array(texts, pa.string()).cast(kind))
    times = [time for piece in _pieces(path) for time in piece.read().column("time").to_pylist()]
    assert [time is None for time in times] == [not text or text == "NA" for text in texts]
    numbers = [time.replace(tzinfo=dt.UTC).timestamp() if isinstance(time, dt.datetime) else time for time in times]
    assert [number for number in numbers if number is not None] == expected


def test_a_time_format_is_for_text_and_digits(tmp_path: Path) -> None:
    options = ReadOptions(time_format="%Y%m%d")
    kinds = [pa.array(["20200201"]), pa.array([20200201]), pa.array([20200201.0]), pa.array([Decimal(20200201)])]
    paths = [_written(tmp_path / str(n), user=[1], item=[2], time=values) for n, values in enumerate(kinds)]
    times = [piece.read().column("time").to_pylist() for piece in _log(*paths, options=options).pieces]
    assert times == [[dt.datetime(2020, 2, 1, tzinfo=dt.UTC)]] * 4
    bad = _written(tmp_path / "bad", user=[1, 1], item=[2, 2], time=[20200201, 1272369210])
    with pytest.raises(UserError, match=r"bad, row 2: column 'time' holds '1272369210', which does not match"):
        _log(bad, options=options).pieces[0].read()
    dates = _written(tmp_path / "dates", user=[1], item=[2], time=pa.array([0], pa.timestamp("s")))
    with pytest.raises(UserError, match=r"dates: column 'time' holds timestamp\[.*\]; leave out --time-format"):
        _log(dates, options=options)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"5", "should hold a date and time, as the first rows do, got '5'"),
        (b"1.2.2020", "should hold a date .*--time-format '%d.%m.%Y'"),
        (b"\xff", "holds b'.xff', expected a time"),
    ],
)
def test_text_that_is_not_a_time_is_named_with_its_row(tmp_path: Path, bad: bytes, message: str) -> None:
    times = pa.array([b"2020-01-02"] * 5000 + [bad], pa.binary())
    path = _written(tmp_path / "log", 700, user=[1] * 5001, item=[1] * 5001, time=times)
    with pytest.raises(UserError, match=rf"log, row 5001: column 'time' {message}"):
        _pieces(path)[-1].read()
    path = _written(tmp_path / "log", user=[1], item=[1], time=pa.array([bad]))
    if not bad.isdigit():
        with pytest.raises(
            UserError, match=r"log: column 'time' (holds '1\.2\.2020'; expected times|is not UTF-8 text)"
        ):
            _pieces(path)


def test_times_in_different_files_share_one_type(tmp_path: Path) -> None:
    noon = dt.datetime(2024, 1, 31, 12)
    kinds = [pa.timestamp("s"), pa.timestamp("ms", "Asia/Tokyo"), pa.timestamp("us"), pa.date32()]
    paths = [
        _written(tmp_path / str(n), user=[1], item=[2], time=pa.array([noon]).cast(kind))
        for n, kind in enumerate(kinds)
    ]
    columns = [piece.read().column("time") for piece in _log(*paths).pieces]
    assert {column.type for column in columns} == {pa.timestamp("us")}
    assert [column[0].as_py() for column in columns] == [noon] * 3 + [dt.datetime(2024, 1, 31)]
    paths.append(_written(tmp_path / "n", user=[1], item=[2], time=[5]))
    with pytest.raises(UserError, match=r"times are numbers in .*n and dates in .*0"):
        _log(*paths)


def test_decimal_times_and_ratings_become_floats(tmp_path: Path) -> None:
    values = pa.array([Decimal("1.25")])
    path = _written(tmp_path / "log", user=[1], item=[2], time=values, rating=values)
    (piece,) = _pieces(path, replace(_COLUMNS, rating="rating"))
    assert piece.read().to_pydict() == {"user": [1], "item": [2], "time": [1.25], "rating": [1.25]}
