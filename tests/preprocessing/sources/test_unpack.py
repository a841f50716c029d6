"""Gzip and archive checksums; MovieLens zips are tested in test_movielens.py."""

from __future__ import annotations

import errno
import gzip
import hashlib
import random
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.sources import unpack
from preprocessing.sources.unpack import SourceFile, unpacked
from workflows.common.errors import UserError

_LINES = random.Random(0).randbytes(5000).hex().encode()  # does not compress to almost nothing


@given(parts=st.lists(st.binary(max_size=50), min_size=1, max_size=4), block=st.integers(1, 60))
def test_all_gzip_members_are_unpacked(
    tmp_path_factory: pytest.TempPathFactory, parts: list[bytes], block: int
) -> None:
    folder = tmp_path_factory.mktemp("gzip")
    archive = folder / "log.csv.gz"
    archive.write_bytes(b"".join(map(gzip.compress, parts)))  # concatenated members, as `cat` produces
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpack, "_BLOCK_BYTES", block)
        source = unpacked(archive, folder / "scratch")
    assert source == SourceFile(folder / "scratch" / "log.csv", str(archive), archive)
    assert source.path.read_bytes() == b"".join(parts)


def test_gzip_is_recognised_by_content(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(gzip.compress(b"a,b\n"))
    assert unpacked(tmp_path / "log", tmp_path / "scratch").path.read_bytes() == b"a,b\n"
    plain = tmp_path / "log.csv.gz"
    plain.write_bytes(b"a,b\n")
    assert unpacked(plain, tmp_path / "scratch") == SourceFile(plain, str(plain), plain)


def test_a_relative_path_becomes_absolute_for_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.csv").write_bytes(b"a,b\n")
    monkeypatch.chdir(tmp_path)
    named = Path("log.csv")
    assert unpacked(named, tmp_path / "scratch") == SourceFile(tmp_path / "log.csv", "log.csv", named)


@pytest.mark.parametrize("keep", [3, 12, 300, -1, -8])
def test_truncated_gzip_is_refused(tmp_path: Path, keep: int) -> None:
    archive = tmp_path / "log.gz"
    archive.write_bytes(gzip.compress(_LINES)[:keep])
    with pytest.raises(UserError, match=r"log\.gz: not a readable gzip .*; download it again"):
        unpacked(archive, tmp_path / "scratch")


@pytest.mark.parametrize("place", [2, 15, 1000, -6])
def test_damaged_gzip_is_refused(tmp_path: Path, place: int) -> None:
    data = bytearray(gzip.compress(_LINES))
    data[place] ^= 0xFF
    (tmp_path / "log.gz").write_bytes(data)
    with pytest.raises(UserError, match=r"log\.gz: not a readable gzip"):
        unpacked(tmp_path / "log.gz", tmp_path / "scratch")


def test_gzip_that_unpacks_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpack, "_BLOCK_BYTES", 100)
    monkeypatch.setattr(unpack, "_MAX_UNPACKED_BYTES", 1000)
    archive = tmp_path / "log.gz"
    archive.write_bytes(gzip.compress(b"0" * 1000))
    assert unpacked(archive, tmp_path / "fits").path.stat().st_size == 1000
    archive.write_bytes(gzip.compress(b"0" * 10_000_000))
    with pytest.raises(UserError, match=r"log\.gz would unpack to more than 1,000 bytes"):
        unpacked(archive, tmp_path / "scratch")
    assert (tmp_path / "scratch" / "log").stat().st_size <= 1100


def test_a_full_disk_is_not_blamed_on_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "log.gz").write_bytes(gzip.compress(_LINES))
    monkeypatch.setattr(unpack, "_copy", full)
    with pytest.raises(OSError, match="No space left"):
        unpacked(tmp_path / "log.gz", tmp_path / "scratch")


@pytest.mark.parametrize("name", ["ml-1m.zip", "ml-20m.zip"])
def test_an_archive_with_a_known_name_must_match_its_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    archive = tmp_path / name
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("ml/ratings.dat", "1::2::3::4\n")
    found = hashlib.md5(archive.read_bytes()).hexdigest()
    expected = unpack._MD5[name]
    with pytest.raises(UserError, match=rf"{name}: expected .*{expected}, found {found}; download it again, or rename"):
        unpacked(archive, tmp_path / "scratch")
    assert unpacked(archive.rename(tmp_path / "mine.zip"), tmp_path / "a").path.name == "ratings.dat"
    monkeypatch.setitem(unpack._MD5, "mine.zip", found)
    monkeypatch.setattr(unpack, "_BLOCK_BYTES", 7)
    assert unpacked(tmp_path / "mine.zip", tmp_path / "b").path.name == "ratings.dat"


def test_checksums_match_those_published_by_grouplens() -> None:
    assert unpack._MD5 == {
        "ml-1m.zip": "c4d9eecfca2ab87c1945afe126590906",
        "ml-20m.zip": "cd245b17a1ae2cc31bb14903e1204af3",
    }
