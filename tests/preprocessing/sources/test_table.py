from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.sources.log import Columns, Log
from preprocessing.sources.table import parquet_pieces
from workflows.errors import UserError

_COLUMNS = Columns(user="user", item="item", time="time")


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
    pieces = parquet_pieces(path, _COLUMNS)
    assert len(pieces) == -(-rows // group)
    assert all(piece.size_bytes > 0 for piece in pieces)
    found = log_rows(Log("Parquet log", _COLUMNS, pieces))
    assert found.to_numpy().tolist() == [[f"u{n}", n, n] for n in numbers]


def test_empty_row_groups_are_left_out(tmp_path: Path) -> None:
    table = pa.table({"user": [1], "item": [2], "time": [3]})
    with pq.ParquetWriter(tmp_path / "log", table.schema) as writer:
        for part in (table.slice(0, 0), table, table.slice(0, 0), table):
            writer.write_table(part)
    assert [piece.read().num_rows for piece in parquet_pieces(tmp_path / "log", _COLUMNS)] == [1, 1]


def test_nulls_stay_nulls(tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame]) -> None:
    path = _written(tmp_path / "log", user=[1, None, 2**40], item=["a", "b", None], time=[0.5, 1.5, None])
    found = log_rows(Log("", _COLUMNS, parquet_pieces(path, _COLUMNS)))
    assert found["user"].tolist() == [1, None, 2**40]
    assert found.isna().sum().tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("column", "values", "expected"),
    [
        ("user", pa.array([1.5]), "integers or text"),
        ("item", pa.array([[1]]), "integers or text"),
        ("item", pa.array([True]), "integers or text"),
        ("time", pa.array(["2020-01-01"]), "numbers or dates"),
        ("rating", pa.array(["good"]), "numbers"),
        ("rating", pa.array([0], pa.timestamp("ms")), "numbers"),
    ],
)
def test_a_type_that_fits_no_id_time_or_rating_is_refused(
    tmp_path: Path, column: str, values: pa.Array, expected: str
) -> None:
    path = _written(tmp_path / "log", **{"user": [1], "item": [2], "time": [3], "rating": [4], column: values})
    with pytest.raises(UserError, match=rf"log: column '{column}' holds .*, expected {expected}"):
        parquet_pieces(path, replace(_COLUMNS, rating="rating"))


def test_missing_columns_and_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"log has no column 'item', 'time'; its columns are 'user', 'thing'"):
        parquet_pieces(_written(tmp_path / "log", user=[1], thing=[2]), _COLUMNS)
    none = pa.array([], pa.int64())
    with pytest.raises(UserError, match="log has no rows"):
        parquet_pieces(_written(tmp_path / "log", user=none, item=none, time=none), _COLUMNS)


def test_a_column_that_comes_twice_is_refused_where_it_is_read(tmp_path: Path) -> None:
    numbers = pa.array([1])
    path = tmp_path / "log"
    pq.write_table(pa.table([numbers] * 4, names=["user", "item", "time", "item"]), path)
    with pytest.raises(UserError, match="log: column 'item' comes more than once"):
        parquet_pieces(path, _COLUMNS)
    pq.write_table(pa.table([numbers] * 5, names=["user", "item", "time", "note", "note"]), path)
    assert len(parquet_pieces(path, _COLUMNS)) == 1


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = _written(tmp_path / "log", user=[1], item=[2], time=[3])
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(UserError, match="log: not a readable Parquet file"):
        parquet_pieces(path, _COLUMNS)


def test_a_damaged_row_group_is_refused_when_it_is_read(tmp_path: Path) -> None:
    path = _written(tmp_path / "log", user=[1] * 99, item=[2] * 99, time=[3] * 99)
    data = path.read_bytes()
    path.write_bytes(data[:4] + b"\xff" * 60 + data[64:])
    (piece,) = parquet_pieces(path, _COLUMNS)
    with pytest.raises(UserError, match="log, row group 0: not readable"):
        piece.read()
