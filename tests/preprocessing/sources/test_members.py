from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packed import PACKINGS, tarred, zipped

from preprocessing.sources.detect import open_log
from preprocessing.sources.log import Log, LogColumns, ReadOptions
from workflows.common.errors import UserError

_EVENTS = LogColumns(user="visitor", item="item", time="when")
_HEADER = "when,visitor,item\n"
_FORMS: dict[str, Callable[[Sequence[tuple[str, bytes]]], bytes]] = {"zip": zipped, "tar": tarred} | {
    f"tar.{name}": lambda members, pack=pack: pack(tarred(members)) for name, pack in PACKINGS.items()
}


def _parquet(**columns: list[int]) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.table(columns), target)
    return target.getvalue()


def _opened(
    folder: Path, members: Sequence[tuple[str, bytes | str]], columns: LogColumns | None, **options: object
) -> Log:
    content = zipped([(name, data.encode() if isinstance(data, str) else data) for name, data in members])
    (folder / "a.zip").write_bytes(content)
    return open_log(folder / "a.zip", columns, False, folder / "scratch", ReadOptions(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize("form", _FORMS)
def test_the_files_with_the_columns_of_the_log_are_one_log(
    tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame], capsys: pytest.CaptureFixture[str], form: str
) -> None:
    members = [
        ("events/part-1.csv", f"{_HEADER}5,1,2\n".encode()),
        ("items.csv", b"item,title\n2,Two\n"),
        ("events/part-2.csv.gz", PACKINGS["gzip"](b"item,when,visitor\n3,6,1\n")),
        ("README.txt", b"when,visitor,item: see the paper\n"),
        ("empty.csv", b""),
        ("notes.txt", b"hello\n"),
        ("model.bin", bytes(range(256))),
    ]
    archive = tmp_path / f"archive.{form}"
    archive.write_bytes(_FORMS[form](members))
    log = open_log(archive, _EVENTS, False, tmp_path / "scratch")
    assert log_rows(log).to_numpy().tolist() == [[1, 2, 5], [1, 3, 6]]
    assert log.files == [archive]
    assert log.pieces[0].place(0) == f"events/part-1.csv in {archive}, line 2"
    printed = capsys.readouterr().out
    assert f"one log in {archive}: events/part-1.csv, events/part-2.csv.gz\n" in printed
    assert f"left out of {archive}: README.txt, items.csv, notes.txt, model.bin\n" in printed


@pytest.mark.parametrize("columns", [_EVENTS, None])
def test_a_single_log_needs_no_columns_to_be_found(
    tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame], columns: LogColumns | None
) -> None:
    header = _HEADER if columns else "time,user,item\n"
    log = _opened(tmp_path, [("a.csv", f"{header}5,1,2\n"), ("b.md", "x")], columns)
    assert log_rows(log).to_numpy().tolist() == [[1, 2, 5]]


def test_well_known_columns_choose_members_too(tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame]) -> None:
    members = [
        ("b.parquet", _parquet(user=[1], item=[2], time=[3])),
        ("users.parquet", _parquet(user=[1], age=[2])),
        ("c.parquet", _parquet(user=[4], item=[5], time=[6])),
    ]
    assert log_rows(_opened(tmp_path, members, None)).to_numpy().tolist() == [[1, 2, 3], [4, 5, 6]]


def test_without_headers_the_number_of_fields_chooses(tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame]) -> None:
    members = [("plays.tsv", "1\t2\tx\t3\n"), ("profile.tsv", "1\tf\t22\n"), ("README", "a\tb\tc\td")]
    log = _opened(tmp_path, members, None, names=("user", "item", "name", "time"))
    assert log_rows(log).to_numpy().tolist() == [[1, 2, 3]]


def test_movielens_ratings_are_chosen_unless_the_columns_are_others(
    tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame], capsys: pytest.CaptureFixture[str]
) -> None:
    members = [
        ("ml/tags.csv", "userId,movieId,tag,timestamp\n9,9,x,9\n"),
        ("ml/movies.csv", "movieId,title,genres\n2,Two,x\n"),
        ("ml/ratings.csv", "userId,movieId,rating,timestamp\n1,2,3.5,4\n"),
    ]
    for columns in (None, LogColumns(user="userId", item="movieId", time="timestamp")):
        log = _opened(tmp_path, members, columns)
        assert log_rows(log).to_numpy().tolist() == [[1, 2, 4]]
    assert capsys.readouterr().out == f"left out of {tmp_path / 'a.zip'}: ml/tags.csv\n"
    (tmp_path / "ml.tar").write_bytes(tarred([(name, text.encode()) for name, text in members]))
    log = open_log(tmp_path / "ml.tar", None, False, tmp_path / "tar")
    assert (log.name, log.titles is not None) == ("MovieLens 20M or newer", True)
    log = _opened(tmp_path, members, LogColumns(user="userId", item="tag", time="timestamp"))
    assert log_rows(log).to_numpy().tolist() == [[9, "x", 9]]


def test_parts_in_a_movielens_layout_are_one_log(tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame]) -> None:
    log = _opened(
        tmp_path, [("part1.dat", "1::2::3::4\n"), ("part2.dat", "5::6::3::8\n"), ("x.csv", "a,b\n1,2\n")], None
    )
    assert log_rows(log).to_numpy().tolist() == [[1, 2, 4], [5, 6, 8]]


def test_undecided_archives_list_their_files(tmp_path: Path) -> None:
    events, tags = f"{_HEADER}1,2,3\n", "when,visitor,item,tag\n1,2,3,x\n"
    with pytest.raises(
        UserError, match=r"a\.zip holds files with different columns: a\.csv \('when', 'visitor', 'item'\), b\.csv"
    ):
        _opened(tmp_path, [("a.csv", events), ("b.csv", tags)], _EVENTS)
    other = LogColumns(user="who", item="item", time="when")
    message = (
        r"a\.zip: none of its files has the columns 'who', 'item', 'when': a\.csv \('when', 'visitor', 'item'\), "
        r"b\.csv \(.*\); unpack it and pass the files you mean"
    )
    with pytest.raises(UserError, match=message):
        _opened(tmp_path, [("a.csv", events), ("b.csv", tags)], other)
    with pytest.raises(UserError, match=r"none of its files has columns that are known: .*; name yours with --user"):
        _opened(tmp_path, [("a.csv", events), ("b.csv", tags)], None)
