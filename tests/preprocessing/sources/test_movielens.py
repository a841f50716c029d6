from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from preprocessing.sources import movielens, text, unpack
from preprocessing.sources.detect import open_log
from preprocessing.sources.log import Log
from workflows.common.errors import UserError

# (user, item, rating, time), unsorted and with an id that needs more than 16 bits.
_ROWS = [(2, 7, 3.0, 900), (1, 131262, 4.5, 100), (1, 7, 0.5, 50), (30, 1, 5.0, 1_500_000_000)]


def _whole(rating: float) -> int:
    return int(rating + 0.5)


# layout name → (ratings file, its lines, titles file, its lines, expected ratings)
_LAYOUTS = {
    "MovieLens 100K": (
        "u.data",
        [f"{u}\t{i}\t{_whole(r)}\t{t}" for u, i, r, t in _ROWS],
        "u.item",
        ["1|One|x", "7|Seven|x"],
        [float(_whole(r)) for _, _, r, _ in _ROWS],
    ),
    "MovieLens 1M/10M": (
        "ratings.dat",
        [f"{u}::{i}::{_whole(r)}::{t}" for u, i, r, t in _ROWS],
        "movies.dat",
        ["1::One::x", "7::Seven::x"],
        [float(_whole(r)) for _, _, r, _ in _ROWS],
    ),
    "MovieLens 1M/10M, half stars": (
        "ratings.dat",
        # As in 10M: whole stars have no decimal point.
        [f"{u}::{i}::{r:g}::{t}" for u, i, r, t in _ROWS],
        "movies.dat",
        ["1::One::x", "7::Seven::x"],
        [r for _, _, r, _ in _ROWS],
    ),
    "MovieLens 20M or newer": (
        "ratings.csv",
        ["userId,movieId,rating,timestamp", *(f"{u},{i},{r},{t}" for u, i, r, t in _ROWS)],
        "movies.csv",
        ["movieId,title,genres", '1,"One",x', "7,Seven,x"],
        [r for _, _, r, _ in _ROWS],
    ),
}


def _lay_out(folder: Path, layout: str, newline: str = "\n") -> Path:
    name, lines, titles, title_lines, _ = _LAYOUTS[layout]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes("".join(line + newline for line in lines).encode())
    (folder / titles).write_text("\n".join(title_lines) + "\n")
    return folder / name


def _zipped(folder: Path, layout: str, inner: str, method: int = zipfile.ZIP_DEFLATED) -> Path:
    ratings = _lay_out(folder / "plain", layout)
    archive = folder / "archive.zip"
    with zipfile.ZipFile(archive, "w", method) as file:
        for path in sorted(ratings.parent.iterdir()):
            file.write(path, f"{inner}{path.name}")
    return archive


def _scratch(folder: Path) -> Path:
    scratch = folder / "scratch"
    scratch.mkdir()
    return scratch


def _gzipped(ratings: Path) -> Path:
    packed = ratings.with_name(ratings.name + ".gz")
    packed.write_bytes(gzip.compress(ratings.read_bytes()))
    ratings.unlink()
    return packed


def _input(folder: Path, layout: str, form: str) -> Path:
    if form == "gzip":
        return _gzipped(_lay_out(folder, layout))
    if form == "file":
        return _lay_out(folder, layout)
    if form == "file with CRLF":
        return _lay_out(folder, layout, "\r\n")
    if form == "folder":
        return _lay_out(folder / "ml", layout).parent
    if form == "nested folder":
        return _lay_out(folder / "ml" / "ml-inner", layout).parent.parent
    return _zipped(folder, layout, "ml-inner/" if form == "zip with folder" else "")


@pytest.mark.parametrize(
    "form", ["file", "gzip", "file with CRLF", "folder", "nested folder", "zip", "zip with folder"]
)
@pytest.mark.parametrize("layout", list(_LAYOUTS))
@pytest.mark.parametrize("piece_bytes", [1, 16 << 20])
def test_every_layout_in_every_packaging(
    tmp_path: Path,
    log_rows: Callable[[Log], pd.DataFrame],
    monkeypatch: pytest.MonkeyPatch,
    layout: str,
    form: str,
    piece_bytes: int,
) -> None:
    monkeypatch.setattr(text, "PIECE_BYTES", piece_bytes)
    log = open_log(_input(tmp_path, layout, form), None, True, _scratch(tmp_path))
    ratings = _LAYOUTS[layout][4]
    assert log.name == layout.partition(",")[0]
    assert log.columns.names == ["userId", "movieId", "timestamp", "rating"]
    expected = [[user, item, time, rating] for (user, item, _, time), rating in zip(_ROWS, ratings, strict=True)]
    assert log_rows(log).to_numpy().tolist() == expected
    assert log.titles is not None
    assert log.titles.name == _LAYOUTS[layout][2]
    assert [path.is_file() for path in log.files] == [True]
    assert not log.files[0].is_relative_to(tmp_path / "scratch")
    if piece_bytes == 1:
        assert len(log.pieces) == len(_ROWS)


def test_a_renamed_file_is_recognised_by_content(tmp_path: Path) -> None:
    path = _lay_out(tmp_path, "MovieLens 1M/10M").rename(tmp_path / "mine.txt")
    log = open_log(path, None, False, _scratch(tmp_path))
    assert (log.name, log.titles) == ("MovieLens 1M/10M", None)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_may_use_any_compression_method(
    tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame], method: int
) -> None:
    archive = _zipped(tmp_path, "MovieLens 100K", "ml/", method)
    assert len(log_rows(open_log(archive, None, False, _scratch(tmp_path)))) == len(_ROWS)


def test_member_names_in_a_zip_cannot_escape_the_scratch_folder(tmp_path: Path) -> None:
    archive = _zipped(tmp_path, "MovieLens 100K", "../../evil/")
    scratch = _scratch(tmp_path)
    before = set(tmp_path.rglob("*"))
    open_log(archive, None, False, scratch)
    written = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert {path.name for path in written} == {"u.data", "u.item"}
    assert all(path.is_relative_to(scratch) for path in written)


def test_a_zip_without_ratings_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(UserError, match=r"a\.zip holds no log \(readme\.txt\)"):
        open_log(tmp_path / "a.zip", None, False, _scratch(tmp_path))


@pytest.mark.parametrize("keep", [0, 3, 40, -30])
def test_a_truncated_zip_is_refused(tmp_path: Path, keep: int) -> None:
    archive = _zipped(tmp_path, "MovieLens 100K", "ml/")
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"archive\.zip: not a readable zip"):
        open_log(archive, None, False, _scratch(tmp_path))


@pytest.mark.parametrize(
    "method",
    [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA],
)
def test_a_damaged_zip_is_refused(tmp_path: Path, method: int) -> None:
    archive = tmp_path / "archive.zip"
    with zipfile.ZipFile(archive, "w", method) as file:
        file.writestr("u.data", "".join(f"{n}\t{n * n}\t3\t{n}\n" for n in range(500)))
    data = bytearray(archive.read_bytes())
    data[60:400] = b"\xff" * 340
    archive.write_bytes(data)
    with pytest.raises(UserError, match=r"archive\.zip: not a readable zip"):
        open_log(archive, None, False, _scratch(tmp_path))


def test_a_zip_that_would_unpack_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = _zipped(tmp_path, "MovieLens 100K", "")
    scratch = _scratch(tmp_path)
    monkeypatch.setattr(unpack, "_MAX_UNPACKED_BYTES", 10)
    with pytest.raises(UserError, match=r"u\.data in .* would unpack to"):
        open_log(archive, None, False, scratch)
    assert not [path for path in scratch.rglob("*") if path.is_file()]


def test_an_error_inside_a_zip_names_the_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("ratings.csv", "")
    with pytest.raises(UserError, match=r"a\.zip"):
        open_log(tmp_path / "a.zip", None, False, _scratch(tmp_path))


def test_files_of_one_layout_form_one_log(tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame]) -> None:
    first = _lay_out(tmp_path / "a", "MovieLens 1M/10M")
    second = _lay_out(tmp_path / "b", "MovieLens 1M/10M, half stars")
    log = open_log([first, second], None, False, _scratch(tmp_path))
    assert log.name == "MovieLens 1M/10M, 2 files"
    assert log.titles == tmp_path / "a" / "movies.dat"
    assert log_rows(log)["movieId"].tolist() == 2 * [item for _, item, _, _ in _ROWS]


@pytest.mark.parametrize("other", ["MovieLens 100K", "MovieLens 20M or newer", None])
def test_files_of_different_layouts_are_refused(tmp_path: Path, other: str | None) -> None:
    first = _lay_out(tmp_path / "a", "MovieLens 1M/10M")
    if other:
        second = _lay_out(tmp_path / "b", other)
    else:
        second = tmp_path / "log.csv"
        second.write_text("user,item,time\n1,2,3\n")
    scratch = _scratch(tmp_path)
    for paths in ([first, second], [second, first]):
        with pytest.raises(UserError, match="pass files of one format") as caught:
            open_log(paths, None, False, scratch)
        assert str(first) in str(caught.value)
        assert str(second) in str(caught.value)


def test_a_movielens_header_among_other_files_is_a_plain_csv_header(
    tmp_path: Path, log_rows: Callable[[Log], pd.DataFrame]
) -> None:
    first = _lay_out(tmp_path, "MovieLens 20M or newer")
    second = tmp_path / "more.csv"
    second.write_text("timestamp,movieId,userId\n7,8,9\n")
    log = open_log([first, second], None, False, _scratch(tmp_path))
    assert log.name == "CSV log, 2 files"
    assert log_rows(log).to_numpy().tolist()[-1] == [9, 8, 7]


def test_the_sample_contains_movielens_100k(log_rows: Callable[[Log], pd.DataFrame]) -> None:
    log = movielens.ml_100k_sample(with_rating=True)
    rows = log_rows(log)
    assert len(rows) == 100_000
    assert (rows["user_id"].nunique(), rows["movie_id"].nunique()) == (943, 1682)
    assert set(rows["rating"]) == {1, 2, 3, 4, 5}
    assert log.titles is not None
    assert pq.read_metadata(log.titles).num_rows == 1682


def test_ratings_are_read_only_on_request(tmp_path: Path) -> None:
    path = _lay_out(tmp_path, "MovieLens 1M/10M")
    for log in (open_log(path, None, False, _scratch(tmp_path)), movielens.ml_100k_sample(with_rating=False)):
        assert log.columns.rating is None
        assert log.pieces[0].read().column_names == log.columns.names


def test_a_missing_sample_package_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movielens, "_SAMPLE_PACKAGE", "no-such-package-of-ours")
    with pytest.raises(UserError, match=r"no-such-package-of-ours, which is not installed.*make setup"):
        movielens.ml_100k_sample(with_rating=False)


def test_a_leading_zero_under_a_movielens_header_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "ratings.csv"
    path.write_text("userId,movieId,rating,timestamp\n1,7,4.0,11\n1,007,4.0,12\n")
    log = open_log(path, None, False, tmp_path / "scratch")
    with pytest.raises(UserError, match=r"ratings.csv, line 3: column 'movieId' holds '007'"):
        log.pieces[0].read()
