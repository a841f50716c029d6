"""Several text files as one log, and text without a header."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from preprocessing.sources.delimited import csv_log
from preprocessing.sources.detect import open_log
from preprocessing.sources.log import Log, LogColumns, ReadOptions
from preprocessing.sources.unpack import SourceFile
from workflows.common.errors import UserError

_COLUMNS = LogColumns(user="who", item="what", time="when")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def written(name: str, content: str) -> Path:
        (tmp_path / name).write_text(content, newline="")
        return tmp_path / name

    return written


def _open(*paths: Path, columns: LogColumns | None = _COLUMNS, names: Sequence[str] | None = None) -> Log:
    return csv_log(
        [SourceFile(path, path.name, path) for path in paths],
        columns,
        with_rating=False,
        options=ReadOptions(names=tuple(names) if names else None),
    )


def test_columns_are_matched_by_name_in_each_file(
    write: Callable[[str, str], Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    a = write("a.csv", "who,what,when\n1,2,3\n")
    b = write("b.tsv", "x\twhen\twho\twhat\n0\t6\t4\t5\n")
    assert log_rows(_open(a, b)).to_numpy().tolist() == [[1, 2, 3], [4, 5, 6]]
    c = write("c.csv", "who,what\n1,2\n")
    with pytest.raises(UserError, match=r"^c\.csv has no column 'when'; its columns are 'who', 'what'"):
        _open(a, b, c)


def test_files_without_rows_are_skipped(
    write: Callable[[str, str], Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    empty = [write("0.csv", ""), write("1.csv", "other\n"), write("2.csv", "who,what,when\r\n\r\n")]
    full = write("3.csv", "who,what,when\n1,2,3\n")
    log = _open(*empty, full)
    assert log_rows(log).to_numpy().tolist() == [[1, 2, 3]]
    assert len(log.pieces) == 1
    with pytest.raises(UserError, match=r"^2\.csv has no rows"):
        _open(empty[2], empty[2])


def test_text_ids_in_one_file_make_ids_text_in_all_files(
    write: Callable[[str, str], Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    a = write("a.csv", "who,what,when\n" + "1,2,3\n" * 100)
    b = write("b.csv", "who,what,when\nann,5,6\n")
    c = write("c.csv", "who,what,when\n7,08,6\n")
    found = log_rows(_open(a, b, c))
    assert found.iloc[[0, 100, 101]].to_numpy().tolist() == [["1", "2", 3], ["ann", "5", 6], ["7", "08", 6]]


def test_a_file_with_empty_first_rows_does_not_affect_the_types(
    write: Callable[[str, str], Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    a = write("a.csv", "who,what,when\n,,\nNULL,nan,\n")
    b = write("b.csv", "who,what,when\nann,5,2024-01-31\n")
    found = log_rows(_open(a, b))
    assert found.isna().all(axis=1).tolist() == [True, True, False]
    assert found.loc[2, "when"] == pd.Timestamp(2024, 1, 31)


@pytest.mark.parametrize(
    ("first", "second", "kind", "unit_per_s"),
    [
        ("2024-01-31 00:00:01", "2024-01-31T00:00:02Z", pa.timestamp("us"), 10**6),
        ("2024-01-31 00:00:01", "2024-01-31 00:00:02.0000000", pa.timestamp("ns"), 10**9),
        ("2024-01-31 02:00:01+02:00", "2024-01-31T00:00:02.0000000Z", pa.timestamp("ns", "UTC"), 10**9),
    ],
)
def test_dates_in_different_files_share_one_type(
    write: Callable[[str, str], Path], first: str, second: str, kind: pa.DataType, unit_per_s: int
) -> None:
    paths = [write(f"{n}.csv", f"who,what,when\n1,2,{time}\n") for n, time in enumerate((first, second))]
    columns = [piece.read().column("when") for piece in _open(*paths).pieces]
    assert [column.type for column in columns] == [kind, kind]
    a, b = (column.cast(pa.int64())[0].as_py() for column in columns)
    assert b - a == unit_per_s


def test_integers_and_floats_in_different_files_become_floats(write: Callable[[str, str], Path]) -> None:
    paths = [write(f"{n}.csv", f"who,what,when\n1,2,{time}\n") for n, time in enumerate(("5", "4.5"))]
    assert [piece.read().column("when").to_pylist() for piece in _open(*paths).pieces] == [[5.0], [4.5]]


def test_numbers_in_one_file_and_dates_in_another_are_refused(write: Callable[[str, str], Path]) -> None:
    a, b = (write(f"{n}.csv", f"who,what,when\n1,2,{time}\n") for n, time in enumerate(("5", "2024-01-31")))
    with pytest.raises(UserError, match=r"times are numbers in 0\.csv and dates in 1\.csv"):
        _open(a, b)


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_text_without_a_header_is_read_by_the_given_names(
    write: Callable[[str, str], Path], log_rows: Callable[[Log], pd.DataFrame], delimiter: str, bom: str
) -> None:
    rows = [["1", "tea, hot" if delimiter == "\t" else "tea", "4.5", "9"], ["2", "x", "3", "8"]]
    path = write("log", bom + "".join(delimiter.join(row) + "\n" for row in rows))
    log = _open(path, columns=None, names=["user", "item", "rating", "time"])
    assert log.columns == LogColumns(user="user", item="item", time="time")
    assert log_rows(log).to_numpy().tolist() == [[1, rows[0][1], 9], [2, "x", 8]]
    own = LogColumns(user="d", item="a", time="c")
    assert log_rows(_open(path, columns=own, names=["a", "b", "c", "d"]))["d"].tolist() == [9, 8]


def test_a_single_row_without_a_header_is_a_log(
    write: Callable[[str, str], Path], log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    log = _open(write("log", "1,2,3"), names=["who", "what", "when"])
    assert log_rows(log).to_numpy().tolist() == [[1, 2, 3]]
    assert log.pieces[0].place(0) == "log, line 1"


@pytest.mark.parametrize("names", [["user", "item", "time"], ["user", "item", "rating", "time", "more"]])
def test_the_number_of_names_must_match_the_number_of_fields(
    write: Callable[[str, str], Path], names: list[str]
) -> None:
    fits = write("fits", ",".join("1" * len(names)) + "\n")
    log = write("log", "1,2,3,4\n")
    with pytest.raises(UserError, match=rf"^log: expected {len(names)} fields per row, .*\(user, .*got 4: '1,2,3,4'"):
        _open(fits, log, columns=None, names=names)


def test_a_header_despite_given_names_is_detected(write: Callable[[str, str], Path]) -> None:
    with pytest.raises(UserError, match=r"^log names its columns in its first line; leave out --columns"):
        _open(write("log", "user, item,time\n1,2,3\n"), columns=None, names=["user", "item", "time"])


@pytest.mark.parametrize("header", ['"wh\no",what,when', 'who,"what,when'])
def test_a_column_name_with_a_newline_is_refused(write: Callable[[str, str], Path], header: str) -> None:
    with pytest.raises(UserError, match=r"^log, line 1: a column name is not closed or contains a newline"):
        _open(write("log", header + "\n1,2,3\n"), columns=None)


def test_ids_written_as_1_0_are_integers(tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame]) -> None:
    (tmp_path / "whole.csv").write_text("user_id,item_id,timestamp\n1,7,1\n2,8,2\n")
    (tmp_path / "gaps.csv").write_text("user_id,item_id,timestamp\n1.0,7,3\n,8,4\n9007199254740993.00,9,5\n")
    log = open_log([tmp_path / "whole.csv", tmp_path / "gaps.csv"], None, False, tmp_path / "scratch")
    assert log_rows(log)["user_id"].tolist() == [1, 2, 1, None, 2**53 + 1]
