from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocessing.spec.titles import read_titles
from workflows.common.errors import UserError


def test_u_item_is_latin_1_with_pipes(write_lines: Callable[..., Path]) -> None:
    path = write_lines("u.item", ["1|Café (1990)|01-Jan-1990||x|0|1", "2|Plain|y"], encoding="latin-1")
    assert read_titles(path) == {"1": "Café (1990)", "2": "Plain"}


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_movies_dat_has_double_colons(write_lines: Callable[..., Path], encoding: str) -> None:
    path = write_lines("movies.dat", ["1::Él: the | one (1953)::Drama|War", "20::B::C"], encoding=encoding)
    assert read_titles(path) == {"1": "Él: the | one (1953)", "20": "B"}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_movies_csv_has_quotes(write_lines: Callable[..., Path], newline: str, bom: str) -> None:
    lines = [bom + "movieId,title,genres", '1,"One, the ""first"" (1990)",A|B', "2,Two::2,C", "", "3,Ünï,", "4,"]
    expected = {"1": 'One, the "first" (1990)', "2": "Two::2", "3": "Ünï", "4": ""}
    assert read_titles(write_lines("movies.csv", lines, newline)) == expected


@pytest.mark.parametrize("delimiter", ["\t", ";"])
def test_other_delimiters_and_column_order(write_lines: Callable[..., Path], delimiter: str) -> None:
    rows = [("name", "item_id"), ("Anna, or", "x-1"), ("B", "y")]
    assert read_titles(write_lines("t.txt", [delimiter.join(row) for row in rows])) == {"x-1": "Anna, or", "y": "B"}


@pytest.mark.parametrize("ids", [[3, 1], ["3", "1"]])
def test_titles_from_parquet(tmp_path: Path, ids: list[int | str]) -> None:
    pq.write_table(pa.table({"year": [1, 2], "movie_title": ["C", "A"], "movie_id": ids}), tmp_path / "t")
    assert read_titles(tmp_path / "t") == {"3": "C", "1": "A"}


def test_parquet_rows_without_id_or_title(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1, None, 3], "title": ["A", "B", None]}), tmp_path / "t")
    assert read_titles(tmp_path / "t") == {"1": "A", "3": ""}


def test_only_newlines_terminate_a_line(tmp_path: Path) -> None:
    (tmp_path / "u.item").write_bytes(b"1|And so on\x85 (1990)|x\n2|B\xe9|y\n")
    assert read_titles(tmp_path / "u.item")["2"] == "Bé"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"a,b\n1,2\n", "no id column"),
        (b"movieId,b\n1,2\n", "no title column"),
        (b"\0\xff\xfe", "no id column"),
        (b"PAR1 and no more", "not a readable Parquet file"),
    ],
)
def test_files_without_titles_are_refused_with_their_name(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=rf"t\.csv.*{message}"):
        read_titles(tmp_path / "t.csv")


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": [1], "title": ["A"]}), tmp_path / "t")
    (tmp_path / "t").write_bytes((tmp_path / "t").read_bytes()[:-9])
    with pytest.raises(UserError, match="not a readable Parquet file"):
        read_titles(tmp_path / "t")


def test_a_field_longer_than_the_csv_modules_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,title,plot\n1,A," + "x" * 200_000 + "\n")
    with pytest.raises(UserError, match=r"t\.csv: not readable as delimited text"):
        read_titles(tmp_path / "t.csv")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gone"):
        read_titles(tmp_path / "gone")
    with pytest.raises(UserError, match=str(tmp_path)):
        read_titles(tmp_path)
