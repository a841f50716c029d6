from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocessing.sources.detect import open_log
from preprocessing.sources.log import Columns, Log
from workflows.errors import UserError

_OWN = Columns(user="who", item="what", time="when")


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("name", ["log.csv", "log.parquet", "log"])
def test_text_is_known_by_its_content(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], tmp_path: Path, delimiter: str, name: str
) -> None:
    rows = [("when", "who", "what"), ("5", "ann", "12"), ("6", "bob", "13")]
    log = open_log(write_lines(name, [delimiter.join(row) for row in rows]), _OWN, False, tmp_path)
    assert (log.name, log.titles) == ("CSV log", None)
    assert log_rows(log).to_numpy().tolist() == [["ann", 12, 5], ["bob", 13, 6]]


def test_parquet_is_known_by_its_content(tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame]) -> None:
    path = tmp_path / "log.csv"
    pq.write_table(pa.table({"who": [1], "what": ["x"], "when": [3]}), path)
    log = open_log(path, _OWN, False, tmp_path)
    assert log.name == "Parquet log"
    assert log_rows(log).to_numpy().tolist() == [[1, "x", 3]]


@pytest.mark.parametrize(
    "names", [("user_id", "item_id", "timestamp"), ("userId", "movieId", "timestamp"), ("user", "item", "time")]
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_known_column_names_need_no_flags(
    write_lines: Callable[..., Path], tmp_path: Path, names: tuple[str, str, str], kind: str
) -> None:
    user, item, time = names
    if kind == "csv":
        path = write_lines("log", [f"extra,{time},{item},{user}", "0,1,2,3"])
    else:
        path = tmp_path / "log"
        pq.write_table(pa.table({"extra": [0], time: [1], item: [2], user: [3]}), path)
    log = open_log(path, None, False, tmp_path)
    assert log.columns == Columns(user=user, item=item, time=time)
    with pytest.raises(UserError, match="which columns hold user, item, time and rating"):
        open_log(path, None, True, tmp_path)


def test_named_columns_win_over_the_known_ones(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], tmp_path: Path
) -> None:
    path = write_lines("ratings.csv", ["userId,movieId,rating,timestamp", "1,2,3,4"])
    log = open_log(path, Columns(user="movieId", item="userId", time="timestamp"), False, tmp_path)
    assert log_rows(log).to_numpy().tolist() == [[2, 1, 4]]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_rating_that_is_not_used_may_be_text(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], tmp_path: Path, kind: str
) -> None:
    if kind == "csv":
        path = write_lines("log", ["user,item,time,rating", "1,2,3,good"])
    else:
        path = tmp_path / "log"
        pq.write_table(pa.table({"user": [1], "item": [2], "time": [3], "rating": ["good"]}), path)
    assert len(log_rows(open_log(path, None, False, tmp_path))) == 1


def test_unknown_columns_are_asked_for_by_flag(write_lines: Callable[..., Path], tmp_path: Path) -> None:
    path = write_lines("log.csv", ["who,what,when", "1,2,3"])
    with pytest.raises(
        UserError, match=r"log\.csv: .*--user, --item, --time \(and --rating\); its columns are 'who', 'what', 'when'"
    ):
        open_log(path, None, False, tmp_path)


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.csv does not exist; --input takes"):
        open_log(tmp_path / "gone.csv", None, False, tmp_path)


def test_a_folder_without_ratings(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item,time\n1,2,3\n")
    with pytest.raises(UserError, match=r"holds none of ratings\.csv"):
        open_log(tmp_path, None, False, tmp_path)


@pytest.mark.parametrize("columns", [None, _OWN])
@pytest.mark.parametrize(
    "content", [b"", b"\n\n", bytes(range(256)) * 9, b"\x89PNG\r\n\x1a\n\xff\xd8", b"PAR1", b"PK\x03\x04"]
)
def test_garbage_is_refused_by_name(tmp_path: Path, content: bytes, columns: Columns | None) -> None:
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path / "log")):
        open_log(tmp_path / "log", columns, False, tmp_path)
