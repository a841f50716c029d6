"""Compressed streams, recognised by their first bytes and read to their last, all members of a file included."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, cast

import pyarrow as pa

from workflows.common.errors import UserError

HEAD_BYTES = 1 << 10  # enough for the header of a tar
_BLOCK_BYTES = 1 << 16
_DAMAGED = (zlib.error, lzma.LZMAError, EOFError, zipfile.BadZipFile, tarfile.TarError, pa.ArrowException)


class Stream(io.RawIOBase):
    """A file that is read once, from beginning to end, and whose first bytes are known.

    Attributes:
        display_name: of the file, packed or not.
        head: its first bytes, at most `HEAD_BYTES`.
        declared_bytes: its size, according to its archive.
    """

    def __init__(self, file: Any, display_name: str, packing: str | None = None, declared_bytes: int = 0) -> None:
        """
        Args:
            file: has `read`.
            packing: what `file` is unpacked from, for messages.

        Raises:
            UserError: the beginning cannot be unpacked.
        """
        self.display_name, self.declared_bytes = display_name, declared_bytes
        self._file, self._packing = file, packing
        head = b""
        while len(head) < HEAD_BYTES and (block := self._unpack(HEAD_BYTES - len(head))):
            head += block
        self.head = self._unread = head

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._unread[: len(buffer)] or self._unpack(len(buffer))
        self._unread = self._unread[len(data) :]
        buffer[: len(data)] = data
        return len(data)

    def blocks(self, block_bytes: int) -> Iterator[bytes]:
        """All bytes, in blocks of at most this size."""
        while block := self.read(block_bytes):
            yield block

    def _unpack(self, size: int) -> bytes:
        try:
            return cast(bytes, self._file.read(size))
        except (*_DAMAGED, OSError) as err:
            if self._packing is None or (isinstance(err, OSError) and err.errno is not None):
                raise  # the disk's fault
            raise damaged(self.display_name, self._packing, err) from None


def damaged(display_name: str, packing: str, err: Exception) -> UserError:
    """The error for a file that cannot be unpacked."""
    return UserError(
        f"{display_name}: not a readable {packing} ({err}); download it again, as it may be truncated or damaged"
    )


class _Members:
    """Reads all members of a bzip2, xz or lzma file; `bz2` and `lzma` take garbage after one for the end."""

    def __init__(self, file: io.RawIOBase, new: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]) -> None:
        self._file, self._new, self._decompressor = file, new, new()

    def read(self, size: int) -> bytes:
        while True:
            if self._decompressor.eof:
                block = self._next_member(self._decompressor.unused_data)
                if not block:
                    return b""
                self._decompressor = self._new()
            elif self._decompressor.needs_input:
                block = self._file.read(_BLOCK_BYTES) or b""
                if not block:
                    raise EOFError("it ends before its last member does")
            else:
                block = b""
            if data := self._decompressor.decompress(block, size):
                return data

    def _next_member(self, data: bytes) -> bytes:
        """The first bytes after a member and the zeros that may pad it."""
        while not (data := data.lstrip(b"\0")):
            data = self._file.read(_BLOCK_BYTES) or b""
            if not data:
                return b""
        return data


def _by_members(new: Callable[[], bz2.BZ2Decompressor | lzma.LZMADecompressor]) -> Callable[[io.RawIOBase], Any]:
    return lambda file: _Members(file, new)


def _by_arrow(codec: str) -> Callable[[io.RawIOBase], Any]:
    return lambda file: pa.CompressedInputStream(pa.PythonFile(file, mode="r"), codec)


@dataclass(frozen=True)
class Packing:
    """A compression: its name, its first bytes, and how to unpack a stream of it."""

    name: str
    head: re.Pattern[bytes]
    open: Callable[[io.RawIOBase], Any]


_PACKINGS = (
    Packing("gzip", re.compile(rb"\x1f\x8b"), lambda file: gzip.GzipFile(fileobj=file)),
    Packing(
        "bzip2",
        re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90|.{0,5}\Z)", re.DOTALL),
        _by_members(bz2.BZ2Decompressor),
    ),
    Packing("xz", re.compile(rb"\xfd7zXZ\0"), _by_members(lzma.LZMADecompressor)),
    Packing("lzma", re.compile(rb"\]\0\0"), _by_members(lzma.LZMADecompressor)),
    # A frame to skip may come first: pzstd writes one before each frame.
    Packing("zstd", re.compile(rb"(\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18)"), _by_arrow("zstd")),
    Packing("lz4", re.compile(rb"\x04\x22\x4d\x18"), _by_arrow("lz4")),
)

UNPACK_FIRST = "; unpack it first, and pass the log itself as --input"
_CONVERT = "; convert it to CSV or Parquet"
_OTHERS = (
    (b"7z\xbc\xaf\x27\x1c", f"is packed by 7-Zip{UNPACK_FIRST}"),
    (b"Rar!\x1a\x07", f"is packed by RAR{UNPACK_FIRST}"),
    (b"\x1f\x9d", f"is packed by compress (.Z){UNPACK_FIRST}"),
    (b"\x1f\x1e", f"is packed by pack (.z){UNPACK_FIRST}"),
    (b"\xff\x06\0\0sNaPpY", f"is packed by Snappy{UNPACK_FIRST}"),
    (b"\x89LZO\0", f"is packed by lzop{UNPACK_FIRST}"),
    (b"LZIP\1", f"is packed by lzip{UNPACK_FIRST}"),
    (b"\x02\x21\x4c\x18", f"is packed in the old format of LZ4{UNPACK_FIRST}"),
    (b"MSCF\0\0\0\0", f"is a Windows cabinet{UNPACK_FIRST}"),
    (b"PK\x07\x08", f"is a part of a split zip{UNPACK_FIRST}"),
    (b"ARROW1", f"is an Arrow (Feather) file{_CONVERT}"),
    (b"ORC", f"is an ORC file{_CONVERT}"),
    (b"Obj\1", f"is an Avro file{_CONVERT}"),
    (b"SQLite format 3\0", f"is an SQLite database{_CONVERT}"),
    (b"\x89HDF\r\n\x1a\n", f"is an HDF5 file{_CONVERT}"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", f"is an old Excel workbook{_CONVERT}"),
    (b"\x93NUMPY", f"is a NumPy array{_CONVERT}"),
)
# Written without a header, so only the file's name tells.
_NAMED = {".snappy": "Snappy", ".sz": "Snappy", ".br": "Brotli", ".lzo": "LZO"}


def packing_of(stream: Stream) -> Packing | None:
    """The compression of a stream; None if it is not compressed.

    Raises:
        UserError: it is packed, or binary, in a way that is not read.
    """
    head = stream.head
    other = next((what for magic, what in _OTHERS if head.startswith(magic) and _is_binary(head)), None)
    if other is not None:
        raise UserError(f"{stream.display_name} {other}")
    named = _NAMED.get(PurePath(stream.display_name).suffix.lower())
    if named is not None and not head.startswith(b"PAR1") and _is_binary(head):
        raise UserError(f"{stream.display_name} is packed by {named}{UNPACK_FIRST}")
    return next((packing for packing in _PACKINGS if packing.head.match(head)), None)


def _is_binary(head: bytes) -> bool:
    """Whether the beginning of a file holds bytes that UTF-8 text does not."""
    return bool(re.search(rb"[\0-\x08\x0e-\x1f\xc0\xc1\xf5-\xff]", head))


def is_zip(head: bytes) -> bool:
    return head.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def is_tar(head: bytes) -> bool:
    """Whether a file begins with the header of a tar's member, whose checksum is right."""
    try:
        tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "replace")
    except tarfile.HeaderError:
        return False
    return True
