"""Packings, archives and encodings as files on disk; MovieLens zips are tested in test_movielens.py."""

from __future__ import annotations

import errno
import hashlib
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from packed import PACKINGS, tarred, zipped

from preprocessing.sources import unpack
from preprocessing.sources.unpack import SourceFile, path_keys, unpacked
from workflows.common.errors import UserError

_LINES = random.Random(0).randbytes(5000).hex().encode()  # does not compress to almost nothing
_LETTERS = dict.fromkeys(["utf-8", "utf-16", "utf-16-be", "utf-32", "gb18030"], 'a1,;"é€яカ語😀')
_LETTERS |= {"latin-1": "aé,ÿþï»¿", "cp1252": "aé€,“", "koi8-r": "aяЮ,", "shift_jis": "aカ語,表", "ascii": "a,1"}


def _contents(archive: Path, scratch: Path, **options: str) -> list[bytes]:
    return [source.path.read_bytes() for source in unpacked(archive, scratch, **options).sources]


@settings(max_examples=60)
@given(
    parts=st.lists(st.binary(max_size=50), min_size=1, max_size=4),
    block=st.integers(1, 60),
    packing=st.sampled_from(sorted(PACKINGS)),
)
def test_all_members_of_a_compressed_file_are_unpacked(
    fresh: Callable[[], Path], parts: list[bytes], block: int, packing: str
) -> None:
    folder = fresh()
    archive = folder / "log.csv"
    parts.insert(0, b"user,item\n")
    archive.write_bytes(b"".join(map(PACKINGS[packing], parts)))  # concatenated, as `cat` produces
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpack, "_BLOCK_BYTES", block)
        (source,) = unpacked(archive, folder / "scratch").sources
    assert (source.display_name, source.origin) == (str(archive), archive)
    assert source.path.is_relative_to(folder / "scratch")
    assert source.path.read_bytes() == b"".join(parts)


@settings(max_examples=60)
@given(
    data=st.data(),
    encoding=st.sampled_from(sorted(_LETTERS)),
    layers=st.lists(st.sampled_from(["tar", "zip", *PACKINGS]), max_size=3),
    block=st.integers(1, 30),
)
def test_text_of_every_encoding_comes_out_of_every_packing_and_archive(
    fresh: Callable[[], Path], data: st.DataObject, encoding: str, layers: list[str], block: int
) -> None:
    lines = data.draw(st.lists(st.text(_LETTERS[encoding], max_size=8), max_size=5))
    text = "\r\n".join(["user,item,time", *lines])
    pack = PACKINGS | {
        "tar": lambda content: tarred([("log.csv", content)]),
        "zip": lambda content: zipped([("log.csv", content)]),
    }
    content = text.encode(encoding)
    for layer in layers:
        content = pack[layer](content)
    folder = fresh()
    (folder / "log").write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpack, "_BLOCK_BYTES", block)
        (found,) = _contents(folder / "log", folder / "scratch", encoding=encoding)
    assert found.decode("utf-8-sig") == text


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_packing_is_recognised_by_content(tmp_path: Path, packing: str) -> None:
    (tmp_path / "log.csv").write_bytes(PACKINGS[packing](b"a,b\n"))
    assert _contents(tmp_path / "log.csv", tmp_path / "scratch") == [b"a,b\n"]


@pytest.mark.parametrize("name", ["log.csv.gz", "log.bz2", "log.tar", "log.7z", "log.snappy"])
def test_a_plain_file_is_not_copied_whatever_its_name(tmp_path: Path, name: str) -> None:
    plain = tmp_path / name
    plain.write_bytes(b"BZh,a\n")
    assert unpacked(plain, tmp_path / "scratch", encoding="UTF8").sources == [SourceFile(plain, str(plain), plain)]


def test_a_relative_path_becomes_absolute_for_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "log.csv").write_bytes(b"a,b\n")
    monkeypatch.chdir(tmp_path)
    named = Path("log.csv")
    assert unpacked(named, tmp_path / "scratch").sources == [SourceFile(tmp_path / "log.csv", "log.csv", named)]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("in_tar", [False, True])
def test_truncated_and_damaged_files_are_refused(tmp_path: Path, packing: str, in_tar: bool) -> None:
    content = tarred([("a.csv", _LINES), ("b.csv", b"x")]) if in_tar else _LINES
    whole, more = PACKINGS[packing](content), PACKINGS[packing](_LINES[:300])
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 0xFF
    wrong = [whole[:keep] for keep in (8, len(whole) // 2, len(whole) - 1)]  # within a header, the data, the trailer
    wrong += [whole + more[: len(more) // 2], whole + b"garbage"]
    if packing not in ("zstd", "lz4"):  # Arrow writes these without checksums
        wrong.append(bytes(damaged))
    for number, content in enumerate(wrong):
        archive = tmp_path / f"log-{number}"
        archive.write_bytes(content)
        with pytest.raises(UserError, match=rf"log-{number}: not a readable {packing} .*; download it again"):
            unpacked(archive, tmp_path / f"scratch-{number}")


def test_truncated_and_damaged_tars_are_refused(tmp_path: Path) -> None:
    archive = tmp_path / "log.tar"
    whole = tarred([("a.csv", _LINES), ("b.csv", b"x")])
    damaged = bytearray(whole)
    damaged[whole.index(b"b.csv")] ^= 1  # the name is part of the header that the checksum is for
    for content in (whole[:5000], whole[:10752], whole[:11264], bytes(damaged), whole + whole):
        archive.write_bytes(content)
        with pytest.raises(UserError, match=r"log\.tar: not a readable tar .*; download it again"):
            unpacked(archive, tmp_path / "scratch")


@pytest.mark.parametrize("name", ["README.md", "a.csv", "x/"])
def test_a_member_that_claims_an_endless_size_is_no_endless_wait(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "log.tar"
    header = tarfile.TarInfo(name)
    header.size = 1 << 62
    archive.write_bytes(tarred([("b.csv", _LINES)])[:-10240] + header.tobuf(tarfile.GNU_FORMAT) + _LINES)
    with pytest.raises(UserError, match=r"log\.tar.* not a readable tar .*; download it again"):
        unpacked(archive, tmp_path / "scratch")


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"7z\xbc\xaf\x27\x1c\0\4", "is packed by 7-Zip; unpack it first"),
        (b"Rar!\x1a\x07\x01\0", "is packed by RAR; unpack it first"),
        (b"\x1f\x9d\x90", r"is packed by compress \(\.Z\); unpack it first"),
        (b"\xff\x06\0\0sNaPpY", "is packed by Snappy; unpack it first"),
        (b"ARROW1\0\0", r"is an Arrow \(Feather\) file; convert it to CSV or Parquet"),
        (zipped([("[Content_Types].xml", b"")]), "is an Excel workbook"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, head: bytes, message: str) -> None:
    (tmp_path / "log").write_bytes(head)
    with pytest.raises(UserError, match=f"log {message}"):
        unpacked(tmp_path / "log", tmp_path / "scratch")
    (tmp_path / "log.zst").write_bytes(PACKINGS["zstd"](head))
    with pytest.raises(UserError, match=f"log.zst {message}"):
        unpacked(tmp_path / "log.zst", tmp_path / "scratch")


def test_a_packing_without_a_header_is_known_by_name(tmp_path: Path) -> None:
    (tmp_path / "log.csv.snappy").write_bytes(b"\x05\x10a,b\n\xff\0")
    with pytest.raises(UserError, match=r"log\.csv\.snappy is packed by Snappy; unpack it first"):
        unpacked(tmp_path / "log.csv.snappy", tmp_path / "scratch")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_members_that_are_no_logs_are_left_out(tmp_path: Path, pack: Callable[..., bytes]) -> None:
    members = [
        ("data/a.csv", b"1"), ("data/README.md", b""), ("data/LICENSE", b""), ("data/cover.PNG", b""),
        ("__MACOSX/data/._a.csv", b""), ("data/.DS_Store", b""), ("data/b.csv.gz", PACKINGS["gzip"](b"2")),
        ("data/more.tar", tarred([("c", b"3"), ("readme.txt", b"")])), ("data/a.csv", b"4"),
        ("../../etc/d.csv", b"5"), ("/e.csv", b"6"), ("u.data", b"7"), ("u.data.gz", PACKINGS["xz"](b"8")),
    ]  # fmt: skip
    archive = tmp_path / "archive"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # zipfile, writing a name twice
        archive.write_bytes(pack(members))
    before = set(tmp_path.rglob("*"))
    content = unpacked(archive, tmp_path / "scratch")
    assert [source.path.read_bytes() for source in content.sources] == [str(n).encode() for n in range(1, 9)]
    names = ["data/a.csv", "data/b.csv.gz", "c in data/more.tar", "data/a.csv", "../../etc/d.csv", "/e.csv"]
    names += ["u.data", "u.data.gz"]
    assert [source.display_name for source in content.sources] == [f"{name} in {archive}" for name in names]
    assert content.left_out == [name for name, _ in members[1:6]] + ["readme.txt"]
    written = set(tmp_path.rglob("*")) - before
    assert all(path.is_relative_to(tmp_path / "scratch") for path in written)


def test_links_and_encrypted_members_are_not_unpacked(tmp_path: Path) -> None:
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as file:
        link = zipfile.ZipInfo("link.csv")
        link.external_attr = 0o120777 << 16
        file.writestr(link, "/etc/passwd")
    with pytest.raises(UserError, match=r"a\.zip holds no log \(link\.csv\); unpack it first"):
        unpacked(archive, tmp_path / "scratch")
    content = bytearray(zipped([("log.csv", _LINES)]))
    content[6] |= 1  # the flag of encryption, in the member's header and in the directory
    content[content.index(b"PK\1\2") + 8] |= 1
    archive.write_bytes(content)
    with pytest.raises(UserError, match=r"log\.csv in .*a\.zip is encrypted; unpack it first"):
        unpacked(archive, tmp_path / "scratch")


def test_archives_in_archives_without_end_are_refused(tmp_path: Path) -> None:
    content = b"a,b\n"
    for _ in range(9):
        content = zipped([("log.zip", content)])
    (tmp_path / "log.zip").write_bytes(content)
    with pytest.raises(UserError, match="is packed more than 5 times over"):
        unpacked(tmp_path / "log.zip", tmp_path / "scratch")


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_file_that_unpacks_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    monkeypatch.setattr(unpack, "_BLOCK_BYTES", 100)
    monkeypatch.setattr(unpack, "_MAX_UNPACKED_BYTES", 1000)
    archive = tmp_path / "log"
    archive.write_bytes(PACKINGS[packing](b"0" * 1000))
    assert _contents(archive, tmp_path / "fits") == [b"0" * 1000]
    for content in (b"0" * 1_000_000, tarred([("a", b"0" * 600), ("b", b"0" * 600)])):
        archive.write_bytes(PACKINGS[packing](content))
        with pytest.raises(UserError, match=r"log would unpack to more than 1,000 bytes"):
            unpacked(archive, tmp_path / "scratch")
    assert sum(path.stat().st_size for path in (tmp_path / "scratch").rglob("log-*")) <= 2200


def test_a_full_disk_is_not_blamed_on_the_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "log.gz").write_bytes(PACKINGS["gzip"](_LINES))
    monkeypatch.setattr(unpack._Unpacking, "_write", full)
    with pytest.raises(OSError, match="No space left"):
        unpacked(tmp_path / "log.gz", tmp_path / "scratch")


@pytest.mark.parametrize("name", ["ml-1m.zip", "ml-20m.zip"])
def test_an_archive_with_a_known_name_must_match_its_checksum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    archive = tmp_path / name
    archive.write_bytes(zipped([("ml/ratings.dat", b"1::2::3::4\n")]))
    found = hashlib.md5(archive.read_bytes()).hexdigest()
    expected = unpack._MD5[name]
    with pytest.raises(UserError, match=rf"{name}: expected .*{expected}, found {found}; download it again, or rename"):
        unpacked(archive, tmp_path / "scratch")
    (source,) = unpacked(archive.rename(tmp_path / "mine.zip"), tmp_path / "a").sources
    assert source.path.name == "ratings.dat"
    monkeypatch.setitem(unpack._MD5, "mine.zip", found)
    (source,) = unpacked(tmp_path / "mine.zip", tmp_path / "b").sources
    assert source.path.name == "ratings.dat"


def test_checksums_match_those_published_by_grouplens() -> None:
    assert unpack._MD5 == {
        "ml-1m.zip": "c4d9eecfca2ab87c1945afe126590906",
        "ml-20m.zip": "cd245b17a1ae2cc31bb14903e1204af3",
    }


def test_columns_that_stand_in_a_path_are_decoded() -> None:
    path = PurePosixPath("a=b/date=2024-01-31/name=J%C3%BCrgen%3D%2F/day=1/day=2/no=__HIVE_DEFAULT_PARTITION__/=x/x=/y")
    assert path_keys(path.parts) == {
        "a": "b", "date": "2024-01-31", "name": "Jürgen=/", "day": "2", "no": None, "x": None
    }  # fmt: skip
