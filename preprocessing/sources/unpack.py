"""Unpack gzip files and MovieLens zips to disk in bounded memory."""

from __future__ import annotations

import errno
import gzip
import hashlib
import lzma
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from workflows.common.errors import UserError

RATINGS_FILES = ("ratings.csv", "ratings.dat", "u.data")
TITLES_FILES = {"ratings.csv": "movies.csv", "ratings.dat": "movies.dat", "u.data": "u.item"}
_MAX_UNPACKED_BYTES = 64 << 30  # MovieLens 32M has 0.9 GB
_BLOCK_BYTES = 1 << 20
# The archives used for published figures, by GroupLens' file names.
_MD5 = {"ml-1m.zip": "c4d9eecfca2ab87c1945afe126590906", "ml-20m.zip": "cd245b17a1ae2cc31bb14903e1204af3"}


@dataclass(frozen=True)
class SourceFile:
    """A file of a log, ready to be read.

    Attributes:
        path: the unpacked file; absolute, since workers run in their own folders.
        shown: display name.
        origin: the input file, packed or not.
    """

    path: Path
    display_name: str
    origin: Path

    @property
    def head(self) -> bytes:
        """The first bytes, which identify the format."""
        with self.path.open("rb") as file:
            return file.read(4)


def unpacked(origin: Path, into: Path) -> SourceFile:
    """Unpack a gzip file or MovieLens zip; other files are returned as they are.

    Args:
        into: this file's own folder for unpacked content; created if needed.

    Raises:
        UserError: the file cannot be unpacked, or is not the archive that its name claims.
    """
    plain = SourceFile(origin.absolute(), str(origin), origin)
    if plain.head.startswith((b"PK\x03\x04", b"PK\x05\x06")) or origin.suffix == ".zip":
        _check_md5(origin)
        into.mkdir(parents=True, exist_ok=True)
        ratings = _unzip_ratings(origin, into)
        return SourceFile(ratings, f"{ratings.name} in {origin}", origin)
    if plain.head.startswith(b"\x1f\x8b"):
        into.mkdir(parents=True, exist_ok=True)
        return SourceFile(_gunzip(origin, into / origin.name.removesuffix(".gz")), str(origin), origin)
    return plain


def _check_md5(archive: Path) -> None:
    expected = _MD5.get(archive.name)
    if expected is None:
        return
    digest = hashlib.md5(usedforsecurity=False)
    with archive.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    if digest.hexdigest() != expected:
        raise UserError(
            f"{archive}: expected the archive with MD5 {expected}, found {digest.hexdigest()}; "
            "download it again, or rename it to use it as it is"
        )


def _gunzip(archive: Path, target: Path) -> Path:
    try:
        with gzip.open(archive) as packed:
            _copy(cast(IO[bytes], packed), target, str(archive))
    except (zlib.error, EOFError, OSError) as err:
        raise _unreadable(archive, "gzip", err) from None
    return target


def _unzip_ratings(archive: Path, into: Path) -> Path:
    """Extract the ratings file of a MovieLens zip and the titles beside it; returns the ratings file."""
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = [info for info in zipped.infolist() if not info.is_dir()]
            by_name = {name: info for info in members for name in RATINGS_FILES if Path(info.filename).name == name}
            if not by_name:
                raise UserError(
                    f"{archive} holds none of {', '.join(RATINGS_FILES)}; unpack it and pass the log itself as --input"
                )
            name = next(name for name in RATINGS_FILES if name in by_name)
            ratings = by_name[name]
            titles = str(Path(ratings.filename).parent / TITLES_FILES[name])
            for info in [ratings] + [info for info in members if str(Path(info.filename)) == titles]:
                if info.file_size > _MAX_UNPACKED_BYTES:
                    raise _too_large(f"{info.filename} in {archive}")
                with zipped.open(info) as packed:
                    _copy(packed, into / Path(info.filename).name, f"{info.filename} in {archive}")
            return into / name
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        NotImplementedError,
        RuntimeError,
        EOFError,
        OSError,
    ) as err:
        raise _unreadable(archive, "zip", err) from None


def _copy(packed: IO[bytes], target: Path, display_name: str) -> None:
    """Write a decompressed stream, up to a bound: the size an archive declares cannot be trusted."""
    written = 0
    with target.open("wb") as file:
        while block := packed.read(_BLOCK_BYTES):
            written += file.write(block)
            if written > _MAX_UNPACKED_BYTES:
                raise _too_large(display_name)


def _too_large(display_name: str) -> UserError:
    return UserError(
        f"{display_name} would unpack to more than {_MAX_UNPACKED_BYTES:,} bytes; unpack it yourself and pass "
        "the log as --input"
    )


def _unreadable(archive: Path, kind: str, err: Exception) -> Exception:
    """The exception for failed unpacking: a full disk is not the archive's fault."""
    if isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return err
    return UserError(f"{archive}: not a readable {kind} ({err}); download it again, as it may be truncated or damaged")
