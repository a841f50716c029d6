"""The members of zip and tar archives that may be logs."""

from __future__ import annotations

import re
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from preprocessing.sources.packings import UNPACK_FIRST, Stream, damaged
from workflows.common.errors import UserError

RATINGS_FILES = ("ratings.csv", "ratings.dat", "u.data")
TITLES_FILES = {"ratings.csv": "movies.csv", "ratings.dat": "movies.dat", "u.data": "u.item"}
_BLOCK_BYTES = 1 << 20
_MAX_ENDS = 64  # reads at the end of a tar; a sound one is read a few times there
# Members that are no logs, by name.
_OTHER_STEMS = {"readme", "license", "licence", "copying", "changelog", "notice", "citation"}
_OTHER_SUFFIX = re.compile(
    r"\.(md|rst|pdf|tex|bib|rtf|docx?|odt|xlsx?|html?|css|js|xml|ya?ml|toml|ini|cfg|png|jpe?g|gif|svg|webp|bmp|tiff?|mp[34]"
    r"|wav|py|ipynb|r|sh|bat|pl|java|sql|md5|sha1|sha256|pkl|np[yz]|pt|h5)"
)
Members = Iterator[tuple[PurePosixPath, Stream | None]]


def zip_members(archive: Path, display_name: str, movielens: bool) -> Members:
    """(path in the archive, content) of each member; None for one that is no log by name, or a link.

    Args:
        movielens: if there is one MovieLens ratings file, only that and its titles.

    Raises:
        UserError: the archive is damaged, or a member is encrypted or compressed in a way that is not read.
    """
    with _opened_zip(archive, display_name) as zipped:
        members = {info: PurePosixPath(info.filename) for info in zipped.infolist() if not info.is_dir()}
        ratings = [path for path in members.values() if path.name in RATINGS_FILES]
        if movielens and len(ratings) == 1:
            wanted = (ratings[0], ratings[0].with_name(TITLES_FILES[ratings[0].name]))
            members = {info: path for info, path in members.items() if path in wanted}
        for info, path in members.items():
            may_be_log = not stat.S_ISLNK(info.external_attr >> 16) and _may_be_log(path)
            yield path, _opened_member(zipped, info, f"{path} in {display_name}") if may_be_log else None


def tar_members(stream: Stream) -> Members:
    """As `zip_members`, of a tar that is read from beginning to end: a content is gone when the next is asked for."""
    source: Any = _Ending(stream)  # only read
    try:
        with tarfile.open(fileobj=source, mode="r|", tarinfo=_TarMember, errors="replace") as tar:
            for info in tar:
                path = PurePosixPath(info.name)
                if info.isreg() and _may_be_log(path):
                    yield path, Stream(tar.extractfile(info), f"{path} in {stream.display_name}", "tar", info.size)
                elif not info.isdir():
                    yield path, None
            assert tar.fileobj is not None
            while block := tar.fileobj.read(_BLOCK_BYTES):  # to the end of the packing, too, where it may be damaged
                if block.strip(b"\0"):
                    raise tarfile.ReadError("it goes on after its end")
    except (tarfile.TarError, struct.error) as err:
        raise damaged(stream.display_name, "tar", err) from None


class _Ending:
    """A stream that is not read on and on after its end.

    `tarfile` passes over a member by reads, as many as its header asks for, whether there is data or not
    (CVE-2026-11972): a header may ask for 2**63 bytes.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream, self._n_ends = stream, 0

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self._n_ends += not data
        if self._n_ends > _MAX_ENDS:
            raise tarfile.ReadError("unexpected end of data")
        return data


class _TarMember(tarfile.TarInfo):
    """Reports a damaged header, which `tarfile` by itself takes for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> _TarMember:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.HeaderError as err:
            if type(err).__name__ == "EOFHeaderError":  # the regular end
                raise
            raise tarfile.ReadError(str(err)) from None


def _may_be_log(path: PurePosixPath) -> bool:
    if any(is_hidden(part) for part in path.parts if part != ".."):
        return False
    return path.stem.lower() not in _OTHER_STEMS and not _OTHER_SUFFIX.fullmatch(path.suffix.lower())


def is_hidden(name: str) -> bool:
    """Whether to skip a name: hidden files, and side files of Spark (_SUCCESS, .crc, _metadata) and macOS."""
    return name.startswith((".", "_"))


def _opened_zip(archive: Path, display_name: str) -> zipfile.ZipFile:
    try:
        zipped = zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, EOFError) as err:
        raise damaged(display_name, "zip", err) from None
    if "[Content_Types].xml" in zipped.NameToInfo:
        zipped.close()
        raise UserError(f"{display_name} is an Excel workbook or another office document; convert it to CSV")
    return zipped


def _opened_member(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, display_name: str) -> Stream:
    if info.flag_bits & 1:
        raise UserError(f"{display_name} is encrypted{UNPACK_FIRST}")
    try:
        return Stream(zipped.open(info), display_name, "zip", info.file_size)
    except NotImplementedError as err:
        raise UserError(f"{display_name} is compressed in a way that is not read ({err}){UNPACK_FIRST}") from None
    except (zipfile.BadZipFile, struct.error, RuntimeError, ValueError) as err:
        raise damaged(display_name, "zip", err) from None
