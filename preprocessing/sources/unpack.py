"""Unpack compressed files and archives, and convert text to UTF-8: to disk, in one pass, in bounded memory."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from preprocessing.sources.archives import RATINGS_FILES, TITLES_FILES, Members, tar_members, zip_members
from preprocessing.sources.encodings import encoding_to_convert, utf8_blocks
from preprocessing.sources.packings import UNPACK_FIRST, Stream, is_tar, is_zip, packing_of
from workflows.common.errors import UserError

_MAX_UNPACKED_BYTES = 64 << 30  # MovieLens 32M has 0.9 GB
_MAX_MEMBERS = 100_000
_MAX_DEPTH = 5  # a zip may hold itself
_BLOCK_BYTES = 1 << 20
# The archives used for published figures, by GroupLens' file names.
_MD5 = {"ml-1m.zip": "c4d9eecfca2ab87c1945afe126590906", "ml-20m.zip": "cd245b17a1ae2cc31bb14903e1204af3"}
_Keys = dict[str, str | None]


@dataclass(frozen=True)
class SourceFile:
    """A file of a log, ready to be read.

    Attributes:
        path: the unpacked file; absolute, since workers run in their own folders.
        display_name: for messages.
        origin: the input file, packed or not.
        keys: columns that stand in its path (date=2024-01-31/); None is a missing value.
    """

    path: Path
    display_name: str
    origin: Path
    keys: _Keys = field(default_factory=dict, hash=False)

    @property
    def head(self) -> bytes:
        """The first bytes, which identify the format."""
        with self.path.open("rb") as file:
            return file.read(4)


@dataclass(frozen=True)
class Unpacked:
    """The content of an input file.

    Attributes:
        display_name: of the input file.
        sources: the file itself, or the members of an archive that may be logs.
        left_out: names of the other members.
    """

    display_name: str
    sources: list[SourceFile]
    left_out: list[str]


def unpacked(
    origin: Path, into: Path, display_name: str | None = None, encoding: str | None = None, movielens: bool = False
) -> Unpacked:
    """Unpack a file as far as it is packed, and convert its text to UTF-8; another file is returned as it is.

    Args:
        into: this file's own folder for unpacked content; created if needed.
        display_name: the path or address as it was given; by default that of `origin`.
        encoding: of text without a byte order mark; None for UTF-8.
        movielens: whether of a zip with a MovieLens ratings file only that and its titles are wanted.

    Raises:
        UserError: the file cannot be unpacked, holds no log, is not the archive that its name claims, or is not text
            in this encoding.
    """
    display_name = display_name or str(origin)
    keys = path_keys(PurePosixPath(display_name).parent.parts)
    work = _Unpacking(origin, into, encoding, movielens)
    with origin.open("rb") as file:
        stream = Stream(file, display_name)
        if is_zip(stream.head) or origin.suffix == ".zip":
            _check_md5(origin, display_name)
            work.add_members(zip_members(origin, display_name, movielens), keys, 0)
        elif work.is_plain(stream):
            return Unpacked(display_name, [SourceFile(origin.absolute(), display_name, origin, keys)], [])
        else:
            work.add(stream, PurePosixPath(origin.name), keys, 0)
    if not work.sources:
        raise UserError(f"{display_name} holds no log ({listed(work.left_out) or 'no files'}){UNPACK_FIRST}")
    return Unpacked(display_name, work.sources, work.left_out)


def path_keys(folders: Iterable[str]) -> _Keys:
    """The columns that stand in the names of folders, as Hive and Spark write them: date=2024-01-31."""
    pairs = (folder.split("=", 1) for folder in folders if "=" in folder[1:])
    missing = ("", "__HIVE_DEFAULT_PARTITION__")
    return {unquote(name): None if value in missing else unquote(value) for name, value in pairs}


def listed(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - 10:,} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more


class _Unpacking:
    """The unpacking of one input file, however deep its members are packed."""

    def __init__(self, origin: Path, into: Path, encoding: str | None, movielens: bool) -> None:
        self.sources: list[SourceFile] = []
        self.left_out: list[str] = []
        self._origin, self._into, self._encoding, self._movielens = origin, into, encoding, movielens
        self._written = self._members = 0
        self._folders: dict[tuple[str, int], Path] = {}
        self._seen: Counter[tuple[str, str]] = Counter()

    def is_plain(self, stream: Stream) -> bool:
        """Whether a file can be read as it is."""
        return not (packing_of(stream) or is_tar(stream.head) or self._converts_from(stream))

    def add(self, stream: Stream, path: PurePosixPath, keys: _Keys, depth: int) -> None:
        """Unpack a file of this path in its archive."""
        if depth > _MAX_DEPTH:
            raise UserError(f"{stream.display_name} is packed more than {_MAX_DEPTH} times over{UNPACK_FIRST}")
        packing = packing_of(stream)
        if packing is not None:
            self.add(Stream(packing.open(stream), stream.display_name, packing.name), path, keys, depth + 1)
        elif is_tar(stream.head):
            self.add_members(tar_members(stream), keys, depth)
        elif is_zip(stream.head):
            archive = self._write(stream, path)
            self.add_members(zip_members(archive, stream.display_name, self._movielens), keys, depth)
            archive.unlink()
        else:
            target = self._write(stream, path, self._converts_from(stream))
            self.sources.append(SourceFile(target, stream.display_name, self._origin, keys))

    def add_members(self, members: Members, keys: _Keys, depth: int) -> None:
        """Unpack the members of an archive; `keys` stand in its path."""
        for path, stream in members:
            self._members += 1
            if self._members > _MAX_MEMBERS:
                raise UserError(f"{self._origin} holds more than {_MAX_MEMBERS:,} files{UNPACK_FIRST}")
            if stream is None:
                self.left_out.append(str(path))
            else:
                self.add(stream, path, keys | path_keys(path.parent.parts), depth + 1)

    def _converts_from(self, stream: Stream) -> str | None:
        """The encoding that a file is converted from; None for UTF-8.

        Raises:
            UserError: an encoding was named for a Parquet file.
        """
        if not stream.head.startswith(b"PAR1"):
            return encoding_to_convert(stream.head, self._encoding)
        if self._encoding is not None:
            raise UserError(f"{stream.display_name} is Parquet, and --encoding is for text; leave it out")
        return None

    def _write(self, stream: Stream, path: PurePosixPath, encoding: str | None = None) -> Path:
        """Write a stream to a new file, up to a bound: the size an archive declares cannot be trusted."""
        blocks = utf8_blocks(stream, encoding, _BLOCK_BYTES) if encoding else stream.blocks(_BLOCK_BYTES)
        self._require_space(stream, stream.declared_bytes)
        target = self._target(path)
        with target.open("wb") as file:
            for block in blocks:
                self._written += file.write(block)
                self._require_space(stream)
        return target

    def _require_space(self, stream: Stream, more: int = 0) -> None:
        if self._written + more > _MAX_UNPACKED_BYTES:
            raise UserError(
                f"{stream.display_name} would unpack to more than {_MAX_UNPACKED_BYTES:,} bytes; unpack it yourself "
                "and pass the log as --input"
            )

    def _target(self, path: PurePosixPath) -> Path:
        """A new file; MovieLens' files keep their names, so that titles are found beside ratings.

        No other part of a member's path is used, so that it leads nowhere else.
        """
        known = (name for name in (*RATINGS_FILES, *TITLES_FILES.values()) if f"{path.name}.".startswith(f"{name}."))
        name = next(known, f"log-{self._seen.total()}")
        beside = str(path.parent)
        self._seen[beside, name] += 1  # an archive may hold one path twice
        folder = self._folders.setdefault((beside, self._seen[beside, name]), self._into / str(len(self._folders)))
        folder.mkdir(parents=True, exist_ok=True)
        return folder / name


def _check_md5(archive: Path, display_name: str) -> None:
    expected = _MD5.get(archive.name)
    if expected is None:
        return
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != expected:
        raise UserError(
            f"{display_name}: expected the archive with MD5 {expected}, found {found}; "
            "download it again, or rename it to use it as it is"
        )
