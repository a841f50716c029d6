from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocessing.sources.detect import open_log
from preprocessing.sources.log import Log, LogColumns, ReadOptions
from workflows.common.errors import UserError

_KINDS = ["csv", "parquet", "names"]


def _write(folder: Path, kind: str, files: Mapping[str, Mapping[str, list[Any]]]) -> ReadOptions:
    """Write files of columns; returns how to read them."""
    for name, columns in files.items():
        path = folder / name / f"part-0.{kind}"
        path.parent.mkdir(parents=True)
        if kind == "parquet":
            pq.write_table(pa.table(columns), path, row_group_size=1)
        else:
            pd.DataFrame(columns).to_csv(path, index=False, header=kind == "csv")
    names = tuple(next(iter(files.values()))) if kind == "names" else None
    return ReadOptions(names=names)


@pytest.mark.parametrize("kind", _KINDS)
def test_a_time_may_stand_in_the_path(tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame], kind: str) -> None:
    files = {
        "date=2024-01-31/country=de": {"user": [1, 2], "item": ["a", "b"]},
        "date=2024-02-01/country=fr": {"user": [1], "item": ["c"]},
        "date=__HIVE_DEFAULT_PARTITION__/country=it": {"user": [3], "item": ["d"]},
    }
    options = _write(tmp_path / "log", kind, files)
    log = open_log(tmp_path / "log", LogColumns(user="user", item="item", time="date"), False, tmp_path / "s", options)
    january, february = datetime(2024, 1, 31), datetime(2024, 2, 1)
    expected = [[1, "a", january], [2, "b", january], [1, "c", february], [3, "d", pd.NaT]]
    rows = log_rows(log).where(lambda frame: frame.notna(), pd.NaT).to_numpy().tolist()
    assert [[row[0], row[1], row[2]] for row in rows] == expected
    assert "date=2024-02-01" in log.pieces[-2].place(0)
    again = pickle.loads(pickle.dumps(log.pieces[0]))
    assert (again.size_bytes, again.rows_estimate) == (log.pieces[0].size_bytes, log.pieces[0].rows_estimate)
    assert pa.concat_tables(again.tables()) == log.pieces[0].read()


@pytest.mark.parametrize("kind", _KINDS)
@pytest.mark.parametrize("role", ["user", "item"])
@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        (["7", "-8"], {}, [7, -8]),
        (["7", "007"], {}, ["7", "007"]),
        (["7", "J%C3%BCrgen"], {}, ["7", "Jürgen"]),
        (["7", "8"], {"text_ids": ["id"], "whole_ids": ["other"]}, ["7", "8"]),
        (["7", "8"], {"text_ids": ["other"]}, [7, 8]),
    ],
)
def test_an_id_may_stand_in_the_path(
    tmp_path: Path,
    log_rows: Callable[[Log], pd.DataFrame],
    kind: str,
    role: str,
    values: list[str],
    options: dict[str, Any],
    expected: list[Any],
) -> None:
    other = "item" if role == "user" else "user"
    files = {f"id={value}": {other: [number], "time": [5], "rating": [2.5]} for number, value in enumerate(values)}
    names = _write(tmp_path / "log", kind, files).names
    columns = LogColumns(**{role: "id", other: other}, time="time", rating="rating")  # type: ignore[arg-type]
    roles = {"id": role, "other": other}
    chosen: dict[str, Any] = {name: frozenset(roles[one] for one in options[name]) for name in options}
    log = open_log(tmp_path / "log", columns, True, tmp_path / "s", ReadOptions(names=names, **chosen))
    rows = log_rows(log).sort_values(other)[["id", other, "time", "rating"]].to_numpy().tolist()
    assert [[value, int(number), time, rating] for value, number, time, rating in rows] == [
        [value, number, 5, 2.5] for number, value in enumerate(expected)
    ]
    if "other" not in options.get("text_ids", []):
        assert all(isinstance(row[1], int) for row in rows)


def test_well_known_names_in_paths_and_all_other_roles(tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame]) -> None:
    files = {
        "timestamp=5/rating=4": {"user_id": [1], "item_id": [2]},
        "timestamp=6/rating=1.5": {"user_id": [3], "item_id": [4]},
    }
    _write(tmp_path / "log", "parquet", files)
    log = open_log(str(tmp_path / "log/*/*"), None, True, tmp_path / "s")
    assert log_rows(log).to_numpy().tolist() == [[1, 2, 5, 4.0], [3, 4, 6, 1.5]]


def test_a_columns_of_the_file_itself_counts(tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame]) -> None:
    _write(tmp_path / "log", "csv", {"time=9/user=8": {"user": [1], "item": [2], "time": [3]}})
    log = open_log(tmp_path / "log", None, False, tmp_path / "s")
    assert log_rows(log).to_numpy().tolist() == [[1, 2, 3]]


def test_files_without_a_header_may_lie_in_any_folder(tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame]) -> None:
    path = tmp_path / "run=5" / "u.data"
    path.parent.mkdir()
    path.write_text("1\t2\t3\t4\n")
    log = open_log(path, None, False, tmp_path / "s")
    assert (log.name, log_rows(log).to_numpy().tolist()) == ("MovieLens 100K", [[1, 2, 4]])


@pytest.mark.parametrize(
    ("files", "columns", "message"),
    [
        (
            {"date=1": {"user": [1], "item": [2]}, "day=1": {"user": [1], "item": [2]}},
            ("user", "item", "date"),
            r"column 'date' stands in the path of .*date=1.*, and not, or not only, in that of .*day=1.*; pass",
        ),
        (
            {"date=1": {"user": [1], "item": [2]}, "date=2": {"user": [1], "item": [2], "date": [3]}},
            ("user", "item", "date"),
            r"column 'date' stands in the path of .*date=1.* of .*date=2",
        ),
        (
            {"date=2024-01-01": {"user": [1], "item": [2]}, "date=soon": {"user": [1], "item": [2]}},
            ("user", "item", "date"),
            r"the path of .*date=soon.*: column 'date' should hold a date and time",
        ),
        (
            {"user=1/item=2": {"time": [1]}},
            ("user", "item", "time"),
            r"columns 'user' and 'item' both stand in the paths",
        ),
        ({"date=1": {"user": [1], "item": [2]}}, ("user", "item", "when"), r"has no column 'when'"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_paths_that_differ_or_do_not_suit_are_refused(
    tmp_path: Path, kind: str, files: Any, columns: tuple[str, str, str], message: str
) -> None:
    _write(tmp_path / "log", kind, files)
    user, item, time = columns
    with pytest.raises(UserError, match=message):
        open_log(tmp_path / "log", LogColumns(user=user, item=item, time=time), False, tmp_path / "s")
