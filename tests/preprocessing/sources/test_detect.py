from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import PACKINGS, tarred, zipped

from preprocessing.sources.detect import open_log
from preprocessing.sources.log import Log, LogColumns, ReadOptions
from workflows.common.errors import UserError

_OWN = LogColumns(user="who", item="what", time="when")


@pytest.mark.parametrize("delimiter", [",", "\t", ";", "|"])
@pytest.mark.parametrize("name", ["log.csv", "log.parquet", "log"])
def test_text_is_recognised_by_content(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], tmp_path: Path, delimiter: str, name: str
) -> None:
    rows = [("when", "who", "what"), ("5", "ann", "12"), ("6", "bob", "13")]
    log = open_log(write_lines(name, [delimiter.join(row) for row in rows]), _OWN, False, tmp_path)
    assert (log.name, log.titles) == ("CSV log", None)
    assert log_rows(log).to_numpy().tolist() == [["ann", 12, 5], ["bob", 13, 6]]


def test_parquet_is_recognised_by_content(tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame]) -> None:
    path = tmp_path / "log.csv"
    pq.write_table(pa.table({"who": [1], "what": ["x"], "when": [3]}), path)
    log = open_log(path, _OWN, False, tmp_path)
    assert log.name == "Parquet log"
    assert log_rows(log).to_numpy().tolist() == [[1, "x", 3]]


@pytest.mark.parametrize(
    "names", [("user_id", "item_id", "timestamp"), ("userId", "movieId", "timestamp"), ("user", "item", "time")]
)
@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_well_known_column_names_need_no_flags(
    write_lines: Callable[..., Path], tmp_path: Path, names: tuple[str, str, str], kind: str
) -> None:
    user, item, time = names
    if kind == "csv":
        path = write_lines("log", [f"extra,{time},{item},{user}", "0,1,2,3"])
    else:
        path = tmp_path / "log"
        pq.write_table(pa.table({"extra": [0], time: [1], item: [2], user: [3]}), path)
    log = open_log(path, None, False, tmp_path)
    assert log.columns == LogColumns(user=user, item=item, time=time)
    with pytest.raises(UserError, match="which columns hold user, item, time and rating"):
        open_log(path, None, True, tmp_path)


def test_named_columns_take_precedence_over_well_known_ones(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], tmp_path: Path
) -> None:
    path = write_lines("ratings.csv", ["userId,movieId,rating,timestamp", "1,2,3,4"])
    log = open_log(path, LogColumns(user="movieId", item="userId", time="timestamp"), False, tmp_path)
    assert log_rows(log).to_numpy().tolist() == [[2, 1, 4]]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_an_unused_rating_may_be_text(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], tmp_path: Path, kind: str
) -> None:
    if kind == "csv":
        path = write_lines("log", ["user,item,time,rating", "1,2,3,good"])
    else:
        path = tmp_path / "log"
        pq.write_table(pa.table({"user": [1], "item": [2], "time": [3], "rating": ["good"]}), path)
    assert len(log_rows(open_log(path, None, False, tmp_path))) == 1


def test_unknown_columns_must_be_named_by_flags(write_lines: Callable[..., Path], tmp_path: Path) -> None:
    path = write_lines("log.csv", ["who,what,when", "1,2,3"])
    with pytest.raises(
        UserError, match=r"log\.csv: .*--user, --item.* --time.*; its columns are 'who', 'what', 'when'"
    ):
        open_log(path, None, False, tmp_path)


@pytest.mark.parametrize("header", ["x" * 1_000_000, ",".join(f"column{n}" for n in range(10_000))])
def test_the_message_about_unknown_columns_is_short(
    write_lines: Callable[..., Path], tmp_path: Path, header: str
) -> None:
    path = write_lines("log.csv", [header, header])
    with pytest.raises(UserError, match=r"log\.csv") as raised:
        open_log(path, None, False, tmp_path)
    assert len(str(raised.value)) < 5_000


def test_a_path_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.csv does not exist; --input takes"):
        open_log(tmp_path / "gone.csv", None, False, tmp_path)


@settings(max_examples=25)
@given(
    rows=st.lists(
        st.tuples(
            st.one_of(st.integers(-99, 99), st.sampled_from(["ann", 'b"ob', "c,d"])), st.integers(), st.integers(0, 9)
        ),
        min_size=1,
        max_size=12,
    ),
    forms=st.lists(st.sampled_from([",", "\t", ";", "|"]), min_size=1, max_size=4),
    packed=st.lists(st.booleans(), min_size=4, max_size=4),
    parquet=st.booleans(),
    how=st.sampled_from(["files", "folder", "pattern", "nested"]),
)
def test_a_log_is_the_same_however_it_is_split_into_files(
    fresh: Callable[[], Path],
    log_rows: Callable[[Log], pd.DataFrame],
    rows: list[tuple[Any, int, int]],
    forms: list[str],
    packed: list[bool],
    parquet: bool,
    how: str,
) -> None:
    # Ids of the second column are small or text, so that every format can hold them; all users are text if any is.
    frame = pd.DataFrame(rows, columns=["who", "what", "when"])
    frame["what"] = "i" + frame["what"].astype(str)
    if frame["who"].map(type).eq(str).any():
        frame["who"] = "u" + frame["who"].astype(str)
    folder = fresh()
    paths = []
    for number, delimiter in enumerate(forms):
        part = frame.iloc[number :: len(forms)]
        path = folder / ("day=1" if how == "nested" else "") / f"part-{number}"
        path.parent.mkdir(exist_ok=True)
        if parquet:
            part.to_parquet(path, row_group_size=2)
        else:
            data = part.sample(frac=1, axis=1, random_state=number).to_csv(sep=delimiter, index=False).encode()
            path.write_bytes(gzip.compress(data) if packed[number] else data)
        paths.append(path)
    (folder / "_SUCCESS").touch()
    inputs: Any = {"files": paths, "folder": folder, "pattern": str(folder / "part-*"), "nested": [folder]}[how]
    log = open_log(inputs, _OWN, False, fresh())
    assert log.files == paths
    expected = pd.concat(frame.iloc[number :: len(forms)] for number in range(len(forms)))
    assert log_rows(log).to_numpy().tolist() == expected.to_numpy().tolist()
    assert len({str(piece.read().schema.field("when").type) for piece in log.pieces}) == 1


def test_the_log_name_includes_the_number_of_files(write_lines: Callable[..., Path], tmp_path: Path) -> None:
    paths = [write_lines("log.csv", ["user,item,time", "1,2,3"]) for _ in range(3)]
    assert open_log(paths, None, False, tmp_path).name == "CSV log, 3 files"


def test_text_and_parquet_cannot_be_mixed(write_lines: Callable[..., Path], tmp_path: Path) -> None:
    text = write_lines("log.csv", ["user,item,time", "1,2,3"])
    table = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user": [1], "item": [2], "time": [3]}), table)
    with pytest.raises(UserError) as caught:
        open_log([text, table], None, False, tmp_path)
    assert f"{table} is Parquet, {text} is not" in str(caught.value)


def test_empty_files_are_ignored_when_detecting_the_format(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], tmp_path: Path
) -> None:
    table = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user": [1], "item": [2], "time": [3]}), table)
    empty, blank = write_lines("log.csv", []), write_lines("blank.csv", [" ", ""])
    log = open_log([empty, blank, table], None, False, tmp_path)
    assert (len(log_rows(log)), log.files) == (1, [empty, blank, table])
    with pytest.raises(UserError, match=r"log\.csv is empty"):
        open_log([empty, empty], None, False, tmp_path)


def test_names_are_for_text_only_and_must_be_unique(write_lines: Callable[..., Path], tmp_path: Path) -> None:
    table = tmp_path / "log.parquet"
    pq.write_table(pa.table({"user": [1], "item": [2], "time": [3]}), table)
    with pytest.raises(UserError, match=r"log\.parquet is Parquet, and --columns is for delimited text; leave it out"):
        open_log(table, None, False, tmp_path, ReadOptions(names=("user", "item", "time")))
    with pytest.raises(UserError, match="--columns should name each column once, got user,item,item"):
        open_log(write_lines("log", ["1,2,3"]), None, False, tmp_path, ReadOptions(names=("user", "item", "item")))


def test_given_names_take_precedence_over_movielens_detection(
    write_lines: Callable[..., Path], log_rows: Callable[[Log], pd.DataFrame], tmp_path: Path
) -> None:
    path = write_lines("u.data", ["1\t2\t3\t4"])
    log = open_log(path, None, False, tmp_path, ReadOptions(names=("item", "user", "x", "time")))
    assert log_rows(log).to_numpy().tolist() == [[2, 1, 4]]


@pytest.mark.parametrize("columns", [None, _OWN])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n",
        bytes(range(256)) * 9,
        "user,item\n".encode("utf-16"),
        b"\x1f\x8b\x08",
        b"\x89PNG\r\n\x1a\n\xff\xd8",
        b"PAR1",
        b"PK\x03\x04",
    ],
)
def test_garbage_is_refused_with_the_file_name(tmp_path: Path, content: bytes, columns: LogColumns | None) -> None:
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(UserError, match=str(tmp_path / "log")):
        open_log(tmp_path / "log", columns, False, tmp_path)


def test_foreign_ids_under_a_movielens_header_are_a_plain_csv_log(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text("userId,movieId,rating,timestamp\nu1,a-7,4.0,11\nu2,a-8,3.5,12\n")
    log = open_log(path, None, False, tmp_path / "scratch")
    assert log.name == "CSV log"
    table = pa.concat_tables(piece.read() for piece in log.pieces)
    assert table.column(log.columns.user).to_pylist() == ["u1", "u2"]
    assert table.column(log.columns.item).to_pylist() == ["a-7", "a-8"]


@pytest.mark.parametrize("how", ["bz2 in latin-1", "tar.zst in shift_jis", "zip in UTF-16", "a URL", "dates in paths"])
def test_the_same_log_prepares_to_the_same_folder_however_it_is_packed(
    prepare_log: Callable[..., Path],
    folder_bytes: Callable[[Path], dict[str, bytes]],
    write_lines: Callable[..., Path],
    how: str,
) -> None:
    rows = [(f"Zo{'é' if 'latin' in how else 'カ'}{row % 5}", f"i{row * row % 11}", 1 + row // 20) for row in range(60)]
    text = "".join(f"{user},{item},2024-01-0{day}\n" for user, item, day in rows)
    path = write_lines("log.csv", ["user,item,time", *text.splitlines()])
    flags, given = [], str(path.with_name("packed"))
    if how == "bz2 in latin-1":
        Path(given).write_bytes(bz2.compress(path.read_text().encode("latin-1")))
        flags = ["--encoding", "latin-1"]
    elif how == "tar.zst in shift_jis":
        members = [("data/log.csv", path.read_text().encode("shift_jis")), ("data/README.md", b"")]
        Path(given).write_bytes(PACKINGS["zstd"](tarred(members)))
        flags = ["--encoding", "Shift-JIS"]
    elif how == "zip in UTF-16":
        Path(given).write_bytes(zipped([("log.csv", path.read_text().encode("utf-16"))]))
    elif how == "a URL":
        given = "memory://detect/log.csv"
        MemoryFileSystem().pipe("/detect/log.csv", path.read_bytes())
    else:
        for day in (1, 2, 3):
            file = Path(given) / f"time=2024-01-0{day}" / "part-0.csv"
            file.parent.mkdir(parents=True)
            file.write_text("user,item\n" + "".join(f"{row[0]},{row[1]}\n" for row in rows if row[2] == day))
    plain, packed = (
        folder_bytes(prepare_log(path, "--partitions", "2")),
        folder_bytes(prepare_log(given, *flags, "--partitions", "2")),
    )
    assert plain.keys() == packed.keys()
    counted = {"stats.json", "report.html"}  # name the number of files
    assert [name for name in plain if plain[name] != packed[name] and name not in counted] == []
