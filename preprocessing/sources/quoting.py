"""Newlines inside quoted fields of delimited text, where it must not be split."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workflows.common.errors import UserError

_BLOCK_BYTES = 1 << 17  # fits in a CPU cache
_QUOTE, _NEWLINE, _RETURN = b'"\n\r'


def quoted_cuts(path: Path, delimiter: str, display_name: str, every: int) -> list[int] | None:
    """Find safe offsets to split text with newlines in quoted fields.

    As in Arrow, a quote opens a field only at the field's beginning.

    Args:
        delimiter: one character.
        every: minimum bytes between two cuts.
    Returns:
        Ascending offsets of lines that begin outside quotes; None if no quoted field contains a newline, so every line
        is a safe cut.

    Raises:
        UserError: a quoted field is never closed and would swallow all later rows.
    """
    if not _holds_quote(path):
        return None
    scan = _QuoteScan(delimiter)
    cuts = [0]
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            scan.feed(block + file.readline())
            if not scan.inside and file.tell() - cuts[-1] >= every:
                cuts.append(file.tell())
    if scan.inside:
        raise UserError(
            f"{display_name}, line {scan.opened}: a quoted field is not closed; close it or double the quote"
        )
    return cuts[1:] if scan.found else None


def ends_in_quotes(line: str, delimiter: str) -> bool:
    """Whether the first line of a text ends inside a quoted field."""
    scan = _QuoteScan(delimiter)
    scan.feed(line.encode())
    return scan.inside


def _holds_quote(path: Path) -> bool:
    block = bytearray(_BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(block):
            if block.find(_QUOTE, 0, read) >= 0:
                return True
    return False


class _QuoteScan:
    """Scans text in whole lines and tracks whether it is inside a quoted field.

    Attributes:
        inside: whether the last line ended inside a quoted field.
        found: whether any line did.
        opened: line number (from 1) where that field began.
    """

    def __init__(self, delimiter: str) -> None:
        self.inside = False
        self.found = False
        self.opened = 0
        self._delimiter = delimiter.encode()
        self._lines = 0

    def feed(self, lines: bytes) -> None:
        if b'"' not in lines:
            self.found = self.found or self.inside
            self._lines += lines.count(b"\n")
        elif not self._feed_regular(lines):
            self._feed_fields(lines)

    def _feed_regular(self, lines: bytes) -> bool:
        """Vectorised scan, valid if every potential opening quote begins a field; returns False otherwise."""
        text = np.frombuffer(lines, dtype=np.uint8)
        quotes = np.flatnonzero(text == _QUOTE)
        # Every other quote opens: a new field, or (second of a doubled quote) the one that the first just closed.
        opening = quotes[int(self.inside) :: 2]
        before = text[opening[opening > 0] - 1]  # a quote at offset 0 begins a line
        edges = (before == ord(self._delimiter)) | (before == _NEWLINE) | (before == _RETURN) | (before == _QUOTE)
        if not edges.all():
            return False
        newlines = np.flatnonzero(text == _NEWLINE)
        quotes_before = np.searchsorted(quotes, newlines)
        self.found = self.found or bool(((quotes_before + self.inside) % 2).any())
        self.inside = self.inside != (len(quotes) % 2 == 1)
        begins = opening[(opening == 0) | (text[opening - 1] != _QUOTE)]
        if self.inside and len(begins):
            self.opened = self._lines + 1 + int(np.searchsorted(newlines, begins[-1]))
        self._lines += len(newlines)
        return True

    def _feed_fields(self, lines: bytes) -> None:
        """Field-by-field scan, for stray quotes such as inches (5" pipe)."""
        for line in lines.removesuffix(b"\n").split(b"\n"):
            self._lines += 1
            if b'"' in line:
                for field in line.split(self._delimiter):
                    if (self.inside or field.startswith(b'"')) and field.count(b'"') % 2:
                        self.inside = not self.inside
                        self.opened = self._lines if self.inside else self.opened
            self.found = self.found or self.inside
