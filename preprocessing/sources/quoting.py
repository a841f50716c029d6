"""Whether fields of a file are quoted (RFC 4180), decided by one scan, and where it can be split.

No row may vanish in a field that merely begins with a quote. So quotes count only where every field that begins with
one also ends at one, before a delimiter or a line end; and a field that runs over lines is suspicious if those lines
would be rows by themselves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from preprocessing.sources.dialect import Dialect
from preprocessing.sources.fields import MISSING_WORDS, NULLS
from workflows.common.errors import UserError

_BLOCK_BYTES = 1 << 17  # fits in a CPU cache
_QUOTE, _NEWLINE, _RETURN = b'"\n\r'
_LINE = re.compile(rb"[^\r\n]*")
_REMEDY = "pass --quoting none if quotes are characters like any other, --quoting minimal if they enclose fields"


@dataclass(frozen=True)
class Quoting:
    """How to read the quotes of a file.

    Attributes:
        in_use: fields may be quoted; otherwise a quote is a character like any other.
        cuts: if quoted fields run over lines: ascending (offset of a line that begins outside quotes, rows before it),
            of which the last is the end of the file. None: each line is a row.
    """

    in_use: bool
    cuts: tuple[tuple[int, int], ...] | None = None


def quoting_of(
    path: Path,
    display_name: str,
    dialect: Dialect,
    n_fields: int,
    *,
    start: int = 0,
    time: int | None = None,
    given: str | None = None,
    every: int,
) -> Quoting:
    """Decide how to read a file's quotes.

    Args:
        dialect: of the file; its `quoted` is not regarded.
        n_fields: number of fields of a row.
        start: offset of the first row.
        time: index of the field with the time, which no row lacks a digit in.
        given: "minimal" or "none", if the user decides.
        every: minimum bytes between two cuts.

    Raises:
        UserError: a quoted field is not closed or goes on after its closing quote, and lines are not whole without
            quoting either; or a quoted field seems to swallow rows.
    """
    if given == "none":
        return Quoting(in_use=False)
    if not _holds_quote(path, start):
        return Quoting(in_use=True)
    scan, cuts = _scanned(path, dialect, n_fields, start, time, every)
    if scan.broken is not None:
        fault = "is not closed" if scan.inside else "goes on after its closing quote"
        if given is None and _is_whole_without_quoting(path, dialect, n_fields, start):
            return Quoting(in_use=False)
        raise UserError(
            f"{display_name}, line {scan.broken + _lines_before(path, start)}: a quoted field {fault}; "
            f"close it or double the quotes within it, or {_REMEDY}"
        )
    if scan.suspect is not None and given is None:
        raise UserError(
            f"{display_name}, line {scan.suspect + _lines_before(path, start)}: a quoted field begins here and runs "
            f"over lines that would be whole rows by themselves; {_REMEDY}"
        )
    return Quoting(in_use=True, cuts=tuple(cuts) if scan.multiline else None)


def _holds_quote(path: Path, start: int) -> bool:
    block = bytearray(_BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while read := file.readinto(block):
            if block.find(_QUOTE, 0, read) >= 0:
                return True
    return False


def _lines_before(path: Path, start: int) -> int:
    with path.open("rb") as file:
        return file.read(start).count(b"\n")


def _scanned(
    path: Path, dialect: Dialect, n_fields: int, start: int, time: int | None, every: int
) -> tuple[_Scan, list[tuple[int, int]]]:
    scan = _Scan(dialect, n_fields, time)
    cuts: list[tuple[int, int]] = []
    last = start
    with path.open("rb") as file:
        file.seek(start)
        while (block := file.read(_BLOCK_BYTES)) and scan.broken is None:
            scan.feed(block + file.readline())
            if not scan.inside and file.tell() - last >= every:
                last = file.tell()
                cuts.append((last, scan.rows))
        if scan.inside and scan.broken is None:
            scan.broken = scan.opened
        if not cuts or cuts[-1][0] < file.tell():
            cuts.append((file.tell(), scan.rows))
    return scan, cuts


def _is_whole_without_quoting(path: Path, dialect: Dialect, n_fields: int, start: int) -> bool:
    """Whether each line has its fields if quotes are characters, and few fields look quoted."""
    dialect = replace(dialect, quoted=False)
    delimiter = re.escape(dialect.byte.encode())
    enclosed = re.compile(dialect.field_begin + rb'"[^"\r\n]*"(?=[\r\n' + delimiter + rb"]|\Z)")
    rows = quoted = 0
    with path.open("rb") as file:
        file.seek(start)
        while block := file.read(_BLOCK_BYTES):
            block = dialect.plain(block + file.readline())
            text = np.frombuffer(block, dtype=np.uint8)
            starts = _line_starts(text)
            if not _are_whole(text, starts, dialect, n_fields).all():
                return False
            rows += len(starts)
            quoted += len(enclosed.findall(block))
    return 2 * quoted < rows


def _line_starts(text: np.ndarray) -> np.ndarray:
    """Offsets of the lines that are not empty."""
    ends = (text == _NEWLINE) | (text == _RETURN)
    begins = ~ends
    begins[1:] &= ends[:-1]
    return np.flatnonzero(begins)


def _are_whole(text: np.ndarray, starts: np.ndarray, dialect: Dialect, n_fields: int) -> np.ndarray:
    """Mask of the lines with the right number of fields if quotes are characters."""
    delimiters = np.flatnonzero(text == ord(dialect.byte))
    return np.diff(np.searchsorted(delimiters, starts), append=len(delimiters)) == n_fields - 1


class _Scan:
    """Scans text in whole lines and tracks whether it is inside a quoted field.

    Attributes:
        inside: whether the last line ended inside a quoted field.
        opened: line number (from 1) where that field began.
        multiline: whether any quoted field runs over lines.
        rows: rows that have begun.
        broken: line number of the first quoted field that goes on after its closing quote; the scan ends there.
        suspect: line number of the first row of several lines that would be rows by themselves.
    """

    def __init__(self, dialect: Dialect, n_fields: int, time: int | None) -> None:
        self.inside = self.multiline = False
        self.opened = self.rows = 0
        self.broken: int | None = None
        self.suspect: int | None = None
        self._dialect, self._n_fields, self._time = dialect, n_fields, time
        self._lines = 0
        self._whole = False  # the lines of the row that is not complete yet could be rows
        self._open_lines = 0  # the number of these lines
        delimiter = re.escape(dialect.byte.encode())
        comment = rb"|(?:\A|(?<=[\r\n]))" + re.escape((dialect.comment or "").encode()) + rb"[^\r\n]*"
        self._opening = re.compile(dialect.field_begin + b'"' + (comment if dialect.comment else b""))
        self._body = re.compile(b'[^"]*(?:""[^"]*)*')
        self._closed = re.compile(rb" *(?=[\r\n" + delimiter + rb"]|\Z)")

    def feed(self, block: bytes) -> None:
        block = self._dialect.separated(block)
        text = np.frombuffer(block, dtype=np.uint8)
        starts = _line_starts(text)
        comment = self._dialect.comment
        regular = None if comment is not None and comment.encode() in block else self._regular(text)
        edges, comments = regular or self._by_field(block)
        if len(comments):
            starts = starts[~np.isin(starts, comments)]
        within = (np.searchsorted(edges, starts) + self.inside) % 2 == 1
        inside = (len(edges) + self.inside) % 2 == 1
        if inside or within.any():
            self.multiline = True
            self._check_rows(block, text, starts, within, inside)
        self.rows += int(np.count_nonzero(~within))
        self.inside = inside
        self._lines += int(np.count_nonzero(text == _NEWLINE))

    def _regular(self, text: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """(offsets of opening and closing quotes in turn, of comments); None unless each quote is at a field's edge.

        A doubled quote closes the field and opens it again.
        """
        quotes = np.flatnonzero(text == _QUOTE)
        opening, closing = quotes[int(self.inside) :: 2], quotes[1 - int(self.inside) :: 2]
        edge = np.zeros(256, dtype=np.bool_)
        edge[[ord(self._dialect.byte), _NEWLINE, _RETURN, _QUOTE]] = True
        before, after = text[opening[opening > 0] - 1], text[closing[closing < len(text) - 1] + 1]
        return (quotes, quotes[:0]) if edge.take(before).all() and edge.take(after).all() else None

    def _by_field(self, block: bytes) -> tuple[np.ndarray, np.ndarray]:
        """The same field by field, for comments and for quotes within unquoted fields, such as inches (5" pipe)."""
        edges: list[int] = []
        comments: list[int] = []
        inside, place = self.inside, 0
        while True:
            if inside:
                place = self._body.match(block, place).end()  # type: ignore[union-attr]  # matches nothing, too
                if place == len(block):
                    break
                edges.append(place)
                inside, place = False, place + 1
                if not self._closed.match(block, place):
                    self.broken = self._line(block, edges[-2]) if len(edges) > 1 else self.opened
                    break
            found = self._opening.search(block, place)
            if found is None:
                break
            place = found.end()
            inside = found[0] == b'"'
            (edges if inside else comments).append(found.start())
        return np.array(edges, dtype=np.int64), np.array(comments, dtype=np.int64)

    def _check_rows(self, block: bytes, text: np.ndarray, starts: np.ndarray, within: np.ndarray, inside: bool) -> None:
        """Look for rows of several lines that would be rows by themselves: of more than two, the last one aside."""
        whole = _are_whole(text, starts, self._dialect, self._n_fields)
        comment = (self._dialect.comment or "").encode()
        if comment and comment in block:  # within quotes it is none, but would be one
            kept = np.array([not block.startswith(comment, start) for start in starts.tolist()], dtype=np.bool_)
            starts, within, whole = starts[kept], within[kept], whole[kept]
        firsts = np.flatnonzero(~within)
        bounds = np.append(firsts, len(starts))
        carried = int(bounds[0])  # lines of the row that began in an earlier block
        if self.inside:
            ends = len(firsts) > 0 or not inside
            self._open_lines += carried
            counted = max(0, carried - 1) if ends and self._open_lines > 2 else carried
            self._whole = self._whole and bool(whole[:counted].all())
            if ends and self._whole and self._open_lines > 1:
                self._suspect(self.opened, block, starts[:counted])
        if not len(firsts):
            return
        if inside:
            last = firsts[-1]
            self.opened = self._line(block, starts[last])
            self._open_lines = len(starts) - int(last)
            self._whole = bool(whole[last:].all()) and self._have_times(block, starts[last:])
            bounds = bounds[:-1]
        whole[bounds[1:][np.diff(bounds) > 2] - 1] = True
        if self.suspect is not None or len(bounds) < 2:
            return
        for row in np.flatnonzero(np.logical_and.reduceat(whole, bounds[:-1]) & (np.diff(bounds) > 1)):
            first, stop = bounds[row], bounds[row + 1]
            self._suspect(self._line(block, starts[first]), block, starts[first : stop - (stop - first > 2)])

    def _line(self, block: bytes, start: int) -> int:
        return self._lines + 1 + block.count(b"\n", 0, start)

    def _suspect(self, line: int, block: bytes, starts: np.ndarray) -> None:
        if self.suspect is None and self._have_times(block, starts):
            self.suspect = line

    def _have_times(self, block: bytes, starts: np.ndarray) -> bool:
        """Whether each line has a time, or a word for a missing one, in its place."""
        if self._time is None:
            return True
        for start in starts.tolist():
            line = _LINE.match(block, start)[0]  # type: ignore[index]  # matches an empty line, too
            field = line.split(self._dialect.byte.encode())[self._time].strip(b' "').decode("utf-8", "replace")
            if not any(character.isdigit() for character in field) and field not in (*NULLS, *MISSING_WORDS):
                return False
        return True
