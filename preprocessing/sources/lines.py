"""Byte ranges of whole lines in a file, and line numbers within it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from workflows.common.errors import UserError

_BLOCK_BYTES = 1 << 20


def read_bytes(path: Path, display_name: str, start: int, size: int) -> bytes:
    """Bytes of a file.

    Raises:
        UserError: the file ends earlier; it was longer when the log was opened.
    """
    with path.open("rb") as file:
        file.seek(start)
        content = file.read(size)
    if len(content) < size:
        raise UserError(
            f"{display_name} was truncated or replaced while it was read: expected {start + size:,} bytes or more, "
            f"got {path.stat().st_size:,}; run this again once it is complete"
        )
    return content


def count_lines(path: Path, stop: int) -> int:
    """Number of line ends in the first `stop` bytes."""
    with path.open("rb") as file:
        lines = 0
        while stop > 0 and (block := file.read(min(stop, _BLOCK_BYTES))):
            lines += block.count(b"\n")
            stop -= len(block)
        return lines


def line_cuts(path: Path, start: int, piece_bytes: int) -> Iterator[int]:
    """Offsets of line starts after `start`, at least `piece_bytes` apart."""
    size = path.stat().st_size
    with path.open("rb") as file:
        while size - start > piece_bytes:
            file.seek(start + piece_bytes)
            file.readline()
            start = file.tell()
            if start >= size:
                return
            yield start
