"""URLs, with fsspec's file system in memory in place of a bucket."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from packed import PACKINGS, zipped

from preprocessing.sources.detect import open_log
from preprocessing.sources.log import Log, LogColumns
from preprocessing.sources.remote import is_url
from workflows.common.errors import UserError

_ROWS = "user,item,time\n1,2,3\n4,5,6\n"


@pytest.fixture
def bucket() -> Iterator[Callable[[str, bytes], None]]:
    """Writes a file to memory://bucket/, which is empty before and after the test."""
    files = MemoryFileSystem()

    def write(name: str, content: bytes) -> None:
        files.pipe(f"/bucket/{name}", content)

    yield write
    files.store.clear()
    files.pseudo_dirs[:] = [""]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("a.csv", ["a.csv"]),
        ("2024/", ["2024/1.csv.zst", "2024/more/2.csv"]),
        ("2024", ["2024/1.csv.zst", "2024/more/2.csv"]),
        ("*.csv", ["a.csv", "b.csv", "log[1].csv"]),
        ("20*", ["2024/1.csv.zst", "2024/more/2.csv"]),
        ("**/?.csv*", ["2024/1.csv.zst", "2024/more/2.csv", "a.csv", "b.csv"]),
        ("log[1].csv", ["log[1].csv"]),
        ("ml", ["ml/ratings.csv"]),
    ],
)
def test_files_folders_and_patterns_are_read(
    bucket: Callable[[str, bytes], None],
    log_rows: Callable[[Log], pd.DataFrame],
    tmp_path: Path,
    given: str,
    names: list[str],
) -> None:
    for name in ("a.csv", "b.csv", "2024/more/2.csv", "log[1].csv"):
        bucket(name, _ROWS.encode())
    bucket("2024/1.csv.zst", PACKINGS["zstd"](_ROWS.encode()))
    bucket("ml/ratings.csv", b"userId,movieId,rating,timestamp\n1,2,3,3\n4,5,6,6\n")
    for other in ("2024/_SUCCESS", "2024/_temporary/x.csv", "2024/.hidden.csv", "ml/tags.csv"):
        bucket(other, b"x")
    log = open_log(f"memory://bucket/{given}", None, False, tmp_path)
    assert log_rows(log).to_numpy().tolist() == [[1, 2, 3], [4, 5, 6]] * len(names)
    places = [piece.place(0).removesuffix(", line 2").removeprefix("memory://").lstrip("/") for piece in log.pieces]
    assert places == [f"bucket/{name}" for name in names]


def test_archives_and_local_files_are_read_beside_urls(
    bucket: Callable[[str, bytes], None], log_rows: Callable[[Log], pd.DataFrame], tmp_path: Path
) -> None:
    bucket("archive.zip", zipped([("date=7/log.csv", b"user,item\n1,2\n")]))
    bucket("date=8/log.csv", b"user,item\n1,3\n")
    local = tmp_path / "date=9"
    local.mkdir()
    (local / "log.csv").write_text("user,item\n1,4\n")
    given = ["memory://bucket/archive.zip", "memory://bucket/date=*/log.csv", local, "memory://bucket/date=8/log.csv"]
    log = open_log(given[:3], LogColumns(user="user", item="item", time="date"), False, tmp_path / "scratch")
    assert log_rows(log).to_numpy().tolist() == [[1, 2, 7], [1, 3, 8], [1, 4, 9]]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/log.csv", r"s3:// needs a package that is not installed .*pip install s3fs, or download"),
        ("gs://bucket/log.csv", r"gs:// needs .*pip install gcsfs"),
        ("https://example.org/log.csv?x=1", r"https:// needs .*pip install aiohttp"),
        ("foo://bucket/log.csv", r"cannot be read \(Protocol not known: foo\)"),
        ("memory://bucket/gone.csv", r"cannot be read .*check the address, the network and your access rights"),
        ("memory://bucket/gone*", r"cannot be read \(no file to read\)"),
    ],
)
def test_what_cannot_be_read_is_named_as_it_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, message: str
) -> None:
    for package in ("s3fs", "gcsfs", "aiohttp"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=message) as caught:
        open_log(url, None, False, tmp_path)
    assert str(caught.value).startswith(f"{url}: ")


@pytest.mark.parametrize("error", [RuntimeError("403 Forbidden\nby the proxy"), TimeoutError(), OSError("reset")])
def test_a_failing_network_is_a_message(
    bucket: Callable[[str, bytes], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Exception
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise error

    bucket("log.csv", _ROWS.encode())
    reason = str(error).partition("\n")[0] or "TimeoutError"
    for method in ("get_file", "info"):
        monkeypatch.setattr(MemoryFileSystem, method, fails)
        with pytest.raises(UserError, match=rf"^memory://bucket/log\.csv: cannot be read \({reason}\); check"):
            open_log("memory://bucket/log.csv", None, False, tmp_path)


def test_a_copy_that_ends_early_is_refused(
    bucket: Callable[[str, bytes], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bucket("log.csv", _ROWS.encode())
    monkeypatch.setattr(MemoryFileSystem, "get_file", lambda self, name, copy: Path(copy).write_bytes(b"user"))
    with pytest.raises(UserError, match=f"it ended after 4 of {len(_ROWS)} bytes"):
        open_log("memory://bucket/log.csv", None, False, tmp_path)


@pytest.mark.parametrize("path", ["log.csv", "a:b.csv", "/a//b", "c:/x", "file:///a", "a/b://c"])
def test_paths_are_not_urls(path: str) -> None:
    assert not is_url(path)
    assert is_url("s3://a")
    assert is_url("simplecache::s3://a")


def test_parquet_is_read_by_url(bucket: Callable[[str, bytes], None], tmp_path: Path) -> None:
    target = pa.BufferOutputStream()
    pq.write_table(pa.table({"user": [1], "item": [2], "time": [3]}), target)
    bucket("log.parquet", bytes(target.getvalue()))
    assert open_log("memory://bucket/log.parquet", None, False, tmp_path).name == "Parquet log"
