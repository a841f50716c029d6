"""Quoted fields of a delimited text that hold newlines, so that it must not be cut at just any line end."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workflows.errors import UserError

_BLOCK_BYTES = 1 << 17  # what a processor's cache holds
_QUOTE, _NEWLINE, _RETURN = b'"\n\r'


def quoted_cuts(path: Path, delimiter: str, shown: str, every: int) -> list[int] | None:
    """Where a text may be cut that has newlines in quoted fields.

    A quote counts where a field begins with it, as in Arrow.

    Args:
        delimiter: one character.
        every: bytes, at least, between two cuts.
    Returns:
        Offsets of lines that begin outside quotes, ascending; None where no quoted field holds a newline, so that
        every line does.

    Raises:
        UserError: a quoted field is never closed, so that all rows after it would be lost in it.
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
        raise UserError(f"{shown}, line {scan.opened}: a quoted field is not closed; close it or double the quote")
    return cuts[1:] if scan.found else None


def ends_in_quotes(line: str, delimiter: str) -> bool:
    """Whether a line, the first of its text, ends inside a quoted field."""
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
    """Goes through a text, whole lines at a time, and knows whether it stands inside a quoted field.

    Attributes:
        inside: whether the last line ended inside a quoted field.
        found: whether any line did.
        opened: the number (from 1) of the line where that field began.
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
        """All at once, where every quote that may open a field stands at its beginning; False where one does not."""
        text = np.frombuffer(lines, dtype=np.uint8)
        quotes = np.flatnonzero(text == _QUOTE)
        # Every other quote opens: a field, or as the second of a doubled one the field that the first has closed.
        opening = quotes[int(self.inside) :: 2]
        before = text[opening[opening > 0] - 1]  # where the text begins, so does a line
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
        """Field by field, for inches (5" pipe) and the like."""
        for line in lines.removesuffix(b"\n").split(b"\n"):
            self._lines += 1
            if b'"' in line:
                for field in line.split(self._delimiter):
                    if (self.inside or field.startswith(b'"')) and field.count(b'"') % 2:
                        self.inside = not self.inside
                        self.opened = self._lines if self.inside else self.opened
            self.found = self.found or self.inside
