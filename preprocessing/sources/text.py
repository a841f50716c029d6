"""Delimited text in pieces: byte ranges of whole rows, each parsed by Arrow independently."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from preprocessing.sources.fields import NULLS, PADDED, describe, holds, may_be_padded
from preprocessing.sources.log import Piece
from preprocessing.sources.quoting import quoted_cuts
from preprocessing.sources.times import as_time
from workflows.common.errors import UserError

PIECE_BYTES = 16 << 20
_SAMPLE_BYTES = 1 << 16
_BLOCK_BYTES = 1 << 20
_Types = tuple[tuple[str, pa.DataType], ...]


@dataclass(frozen=True)
class TextFormat:
    """Format of a delimited file.

    Attributes:
        delimiter: one or two characters ("::" in MovieLens 1M and 10M).
        names: column names, in file order.
        header: whether the first line names the columns.
        types: Arrow types of the columns to read.
        ids: integer id columns, in which a leading zero is an error (007 is not 7).
        time: the time column and its target type, shared by all files of a log.
        quoted_newlines: quoted fields may contain newlines, so a line end need not be a row end.
    """

    delimiter: str
    names: tuple[str, ...]
    header: bool
    types: _Types
    ids: tuple[str, ...] = ()
    time: tuple[str, pa.DataType] | None = None
    quoted_newlines: bool = False


@dataclass(frozen=True)
class TextPiece(Piece):
    """Bytes `start` to `stop` of a file: whole rows, without the header; `display_name` is the file's display name."""

    path: Path
    format: TextFormat
    start: int
    stop: int
    display_name: str
    quoted_newlines: bool = False

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start

    @property
    def rows_estimate(self) -> int:
        with self.path.open("rb") as file:
            file.seek(self.start)
            head = file.read(min(self.size_bytes, _SAMPLE_BYTES))
        return int(self.size_bytes * max(1, head.count(b"\n")) / len(head))

    def read(self) -> pa.Table:
        data, delimiter = self.content()
        wanted = dict(self.format.types)
        try:
            table = self._parse(data, delimiter, wanted)
        except pa.ArrowInvalid as err:
            raise self._explain(err, data, delimiter) from None
        if self.format.ids and may_be_padded(data, delimiter):
            self._refuse_padding(data, delimiter)
        for index, (name, kind) in enumerate(self.format.types):
            if kind == pa.string():
                table = table.set_column(index, name, _trimmed(table.column(name), data.isascii()))
            elif self.format.time is not None and name == self.format.time[0]:
                table = table.set_column(
                    index, name, as_time(table.column(name), self.format.time[1], self.display_name)
                )
        return table

    def place(self, row: int) -> str:
        data, delimiter = self.content()
        # Arrow skips blank lines; a row that the csv module cannot split still counts.
        lines = (line for line, fields in _numbered_rows(data, delimiter) if fields != [])
        return self._line(next(itertools.islice(lines, row, None)))

    def content(self) -> tuple[bytes, str]:
        """The bytes of the piece and their delimiter, converted to one character."""
        with self.path.open("rb") as file:
            file.seek(self.start)
            data = file.read(self.stop - self.start)
        delimiter = self.format.delimiter
        return (data, delimiter) if len(delimiter) == 1 else (data.replace(delimiter.encode(), b"\t"), "\t")

    def _parse(self, data: bytes, delimiter: str, types: dict[str, pa.DataType]) -> pa.Table:
        return pa.csv.read_csv(
            pa.py_buffer(data),
            read_options=pa.csv.ReadOptions(column_names=list(self.format.names), use_threads=False),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=self.quoted_newlines),
            convert_options=pa.csv.ConvertOptions(
                include_columns=list(types), column_types=types, strings_can_be_null=True, null_values=list(NULLS)
            ),
        )

    def _line(self, number: int) -> str:
        """Location of a line of the piece (from 1), for messages."""
        return f"{self.display_name}, line {_count_lines(self.path, self.start) + number}"

    def _refuse_padding(self, data: bytes, delimiter: str) -> None:
        """Refuse ids such as 007 in an integer column, which would silently become 7."""
        spelled = self._parse(data, delimiter, dict.fromkeys(self.format.ids, pa.string()))
        for name in self.format.ids:
            padded = pc.match_substring_regex(pc.utf8_trim_whitespace(spelled.column(name)), PADDED)
            row = pc.index(padded, True).as_py()
            if row >= 0:
                raise UserError(
                    f"{self.place(row)}: column {name!r} holds {spelled.column(name)[row].as_py()!r} among integers; "
                    "remove leading zeros, or convert the log to Parquet with ids as text"
                )

    def _explain(self, err: pa.ArrowInvalid, data: bytes, delimiter: str) -> UserError:
        """Find the row that Arrow could not parse, and describe the expected content."""
        for number, fields in _numbered_rows(data, delimiter):
            if not fields:
                continue
            if len(fields) != len(self.format.names):
                return UserError(
                    f"{self._line(number)}: expected {len(self.format.names)} columns "
                    f"({', '.join(self.format.names)}), got {len(fields)}: {delimiter.join(fields)[:80]!r}; "
                    "fix or remove that line"
                )
            row = dict(zip(self.format.names, fields, strict=True))
            for name, kind in self.format.types:
                # Like Arrow, ignore blanks around a number; blanks alone are not a number.
                value = row[name] if pa.types.is_timestamp(kind) else row[name].strip()
                if row[name] not in NULLS and not holds(kind)(value):
                    return UserError(
                        f"{self._line(number)}: column {name!r} should hold {describe(kind)}, as the first rows do, "
                        f"got {row[name][:60]!r}; fix or remove that line, "
                        "or convert the log to Parquet, which keeps the types you set"
                    )
        return UserError(f"{self.display_name}: not readable as delimited text ({err}); check its encoding and quoting")


def _trimmed(column: pa.ChunkedArray, ascii_only: bool) -> pa.ChunkedArray:
    """Strip surrounding blanks; text of blanks alone becomes null."""
    column = pc.ascii_trim_whitespace(column) if ascii_only else pc.utf8_trim_whitespace(column)  # ASCII: 4x faster
    blank = pc.equal(column, "")
    return pc.if_else(blank, None, column) if pc.any(blank).as_py() else column


def _numbered_rows(data: bytes, delimiter: str) -> Iterator[tuple[int, list[str] | None]]:
    """(first line number from 1, fields) per row; None if the csv module fails, [] for a blank line."""
    rows = csv.reader(io.StringIO(data.decode("utf-8", "replace"), newline=""), delimiter=delimiter)
    number = 1
    while True:
        fields: list[str] | None
        try:
            fields = next(rows)
        except csv.Error:  # a field too long for this module, but not for Arrow
            fields = None
        except StopIteration:
            return
        yield number, fields
        number = rows.line_num + 1


def _count_lines(path: Path, stop: int) -> int:
    with path.open("rb") as file:
        lines = 0
        while stop > 0 and (block := file.read(min(stop, _BLOCK_BYTES))):
            lines += block.count(b"\n")
            stop -= len(block)
        return lines


def _seek_rows(file: BinaryIO, header: bool) -> int:
    """Seek past the header or the byte order mark; returns the offset."""
    if header:
        file.readline()
    elif file.read(3) != b"\xef\xbb\xbf":
        file.seek(0)
    return file.tell()


def has_rows(path: Path, header: bool) -> bool:
    """Whether a text has anything but whitespace after its header."""
    with path.open("rb") as file:
        _seek_rows(file, header)
        return any(block.strip() for block in iter(lambda: file.read(_BLOCK_BYTES), b""))


def text_pieces(path: Path, layout: TextFormat, display_name: str) -> list[Piece]:
    """Split a file into byte ranges of about `PIECE_BYTES` that end at row boundaries.

    Raises:
        UserError: there are no rows, or a quoted field is never closed.
    """
    if not has_rows(path, layout.header):
        raise UserError(f"{display_name} has no rows; expected a log of user, item and time")
    size = path.stat().st_size
    inner = quoted_cuts(path, layout.delimiter, display_name, PIECE_BYTES) if layout.quoted_newlines else None
    with path.open("rb") as file:
        start = _seek_rows(file, layout.header)
        if inner is None:
            cuts = [start, *_line_cuts(file, start, size)]
        else:
            cuts = [start, *(cut for cut in inner if start < cut < size)]
    ends = [*cuts[1:], size]
    return [TextPiece(path, layout, a, b, display_name, inner is not None) for a, b in zip(cuts, ends, strict=True)]


def _line_cuts(file: BinaryIO, start: int, size: int) -> Iterator[int]:
    """Offsets of line starts between `start` and `size`, at least `PIECE_BYTES` apart."""
    while size - start > PIECE_BYTES:
        file.seek(start + PIECE_BYTES)
        file.readline()
        start = file.tell()
        if start >= size:
            return
        yield start
