"""Delimited text as pieces: byte ranges that end at a line, each parsed by Arrow on its own."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from preprocessing.sources.log import Columns, Piece
from workflows.errors import UserError

PIECE_BYTES = 16 << 20
_SNIFF_BYTES = 1 << 16
_DELIMITERS = ("\t", ";", "|", ",")
_NULLS = ("", "NULL", "null", "NaN", "nan", "NA", "N/A", "None", "\\N")
_Types = tuple[tuple[str, pa.DataType], ...]


@dataclass(frozen=True)
class TextFormat:
    """How the lines of a file are written.

    Attributes:
        delimiter: one or two characters ("::" in MovieLens 1M and 10M).
        names: the columns in the order of the file.
        header: whether the first line names them.
        types: Arrow types of the columns that are read.
        quoted_newlines: a quoted field may hold a newline, so the file cannot be cut into pieces.
    """

    delimiter: str
    names: tuple[str, ...]
    header: bool
    types: _Types
    quoted_newlines: bool = False


@dataclass(frozen=True)
class TextPiece(Piece):
    """Bytes `start` to `stop` of a file: whole lines, without the header; `shown` is the file's name for people."""

    path: Path
    format: TextFormat
    start: int
    stop: int
    shown: str

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start

    def read(self) -> pa.Table:
        data = _read_bytes(self.path, self.start, self.stop)
        delimiter = self.format.delimiter
        if len(delimiter) > 1:
            data, delimiter = data.replace(delimiter.encode(), b"\t"), "\t"
        try:
            table = _parse(data, delimiter, self.format)
        except pa.ArrowInvalid as err:
            raise self._explain(err, data, delimiter) from None
        for index, (name, kind) in enumerate(self.format.types):
            if kind == pa.string():
                table = table.set_column(index, name, pc.utf8_trim_whitespace(table.column(name)))
        return table

    def _explain(self, err: pa.ArrowInvalid, data: bytes, delimiter: str) -> UserError:
        """Find the row that Arrow could not read, and say what was expected there."""
        lines_before = _count_lines(self.path, self.start)
        for line_number, fields in _numbered_rows(data, delimiter):
            where = f"{self.shown}, line {lines_before + line_number}"
            if not fields:
                continue
            if len(fields) != len(self.format.names):
                return UserError(
                    f"{where}: expected {len(self.format.names)} columns ({', '.join(self.format.names)}), "
                    f"got {len(fields)}: {delimiter.join(fields)[:80]!r}; mend or remove that line"
                )
            row = dict(zip(self.format.names, fields, strict=True))
            for name, kind in self.format.types:
                value = row[name] if pa.types.is_timestamp(kind) else row[name].strip()  # as Arrow does
                if value not in _NULLS and not _holds(kind)(value):
                    return UserError(
                        f"{where}: column {name!r} should hold {_describe(kind)}, as the first rows do, "
                        f"got {value[:60]!r}; mend or remove that line (ids that are text must be text in every row)"
                    )
        return UserError(f"{self.shown}: not readable as delimited text ({err}); check its encoding and quoting")


def _parse(data: bytes, delimiter: str, layout: TextFormat) -> pa.Table:
    wanted = dict(layout.types)
    return pa.csv.read_csv(
        pa.py_buffer(data),
        read_options=pa.csv.ReadOptions(column_names=list(layout.names), use_threads=False),
        parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=layout.quoted_newlines),
        convert_options=pa.csv.ConvertOptions(
            include_columns=list(wanted), column_types=wanted, strings_can_be_null=True, null_values=list(_NULLS)
        ),
    )


def _numbered_rows(data: bytes, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows, each with the number of its first line, from 1; what the csv module refuses has no fields."""
    rows = csv.reader(io.StringIO(data.decode("utf-8", "replace"), newline=""), delimiter=delimiter)
    line_number = 1
    while True:
        try:
            fields = next(rows)
        except csv.Error:  # a field that is too long for this module, not for Arrow
            fields = []
        except StopIteration:
            return
        yield line_number, fields
        line_number = rows.line_num + 1


def _describe(kind: pa.DataType) -> str:
    """What a column of this type holds, for people."""
    if pa.types.is_integer(kind):
        return "an integer below 2^63"
    if pa.types.is_floating(kind):
        return "a number"
    return "a date and time" if pa.types.is_timestamp(kind) else "text"


def _holds(kind: pa.DataType) -> Callable[[str], bool]:
    """Whether a column of this type can hold a field."""
    if pa.types.is_integer(kind):
        return lambda value: bool(re.fullmatch(r"-?[0-9]{1,19}", value)) and -(2**63) <= int(value) < 2**63
    if pa.types.is_floating(kind):
        return lambda value: bool(re.fullmatch(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", value, re.ASCII))
    if pa.types.is_timestamp(kind):
        return lambda value: _date_type(value) in (kind, pa.timestamp("us", kind.tz))
    return lambda _: True


_DATE = re.compile(r"(\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d)?)?)(?(3)(\.\d{1,9})?)(?(2)(Z|[+-]\d\d(:?\d\d)?)?)", re.ASCII)


def _date_type(value: str) -> pa.DataType | None:
    """The timestamp type of an ISO 8601 date and time, None where it is none (or no day of the calendar)."""
    found = _DATE.fullmatch(value)
    if not found:
        return None
    try:
        datetime.fromisoformat(found[1])
    except ValueError:
        return None
    # Arrow's nanoseconds end in 2262 and wrap around without a word, so they are for those who write them.
    return pa.timestamp("ns" if len(found[4] or "") > len(".123456") else "us", "UTC" if found[5] else None)


def _read_bytes(path: Path, start: int, stop: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def _count_lines(path: Path, stop: int) -> int:
    with path.open("rb") as file:
        lines = 0
        while stop > 0 and (block := file.read(min(stop, 1 << 20))):
            lines += block.count(b"\n")
            stop -= len(block)
        return lines


def sniff(path: Path, shown: str) -> str:
    """The beginning of a text file.

    Raises:
        UserError: the file is empty or no text.
    """
    head = _read_bytes(path, 0, _SNIFF_BYTES)
    if not head.strip():
        raise UserError(f"{shown} is empty; expected a log of user, item and time")
    if b"\0" in head:
        raise UserError(f"{shown} is no text file; expected CSV, TSV, Parquet or a zip of MovieLens")
    return head.decode("utf-8-sig", "replace")


def header_of(path: Path, shown: str) -> tuple[str, tuple[str, ...]]:
    """(delimiter, column names) of a file with a header: the delimiter is the one that splits it furthest.

    Raises:
        UserError: the file is empty or no text, or a name comes twice.
    """
    line = sniff(path, shown).split("\n", 1)[0].rstrip("\r")
    if "\r" in line:
        raise UserError(f"{shown} ends its lines with a carriage return alone; convert it to line feeds")
    rows = {delimiter: next(csv.reader([line], delimiter=delimiter), []) for delimiter in _DELIMITERS}
    delimiter = max(reversed(_DELIMITERS), key=lambda candidate: len(rows[candidate]))
    names = tuple(name.strip() for name in rows[delimiter])
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{shown}: column {', '.join(map(repr, twice))} comes more than once; rename one")
    return delimiter, names


def text_pieces(path: Path, layout: TextFormat, shown: str) -> list[Piece]:
    """Cut a file into byte ranges of about `PIECE_BYTES` that end at a line.

    Raises:
        UserError: there is no row.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if layout.header:
            file.readline()
        elif file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        start = file.tell()
        if start >= size:
            raise UserError(f"{shown} has no rows; expected a log of user, item and time")
        cuts = [start]
        while not layout.quoted_newlines and size - cuts[-1] > PIECE_BYTES:
            file.seek(cuts[-1] + PIECE_BYTES)
            file.readline()
            if file.tell() >= size:
                break
            cuts.append(file.tell())
    return [TextPiece(path, layout, a, b, shown) for a, b in zip(cuts, [*cuts[1:], size], strict=True)]


def has_quoted_newlines(path: Path, shown: str) -> bool:
    """Whether some line ends inside a quoted field.

    Raises:
        UserError: a quoted field is never closed, so that all rows after it would be lost in it.
    """
    inside, found, line_number, opened = False, False, 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            if b'"' not in block:
                found = found or (inside and b"\n" in block)
                line_number += block.count(b"\n")
                continue
            for index, line in enumerate(block.split(b"\n")):
                if index:
                    line_number += 1
                    found = found or inside
                if line.count(b'"') % 2:
                    inside = not inside
                    opened = line_number + 1 if inside else opened
    if inside:
        raise UserError(f"{shown}, line {opened}: a quoted field is not closed; close it or double the quote")
    return found


def csv_pieces(path: Path, columns: Columns, shown: str) -> list[Piece]:
    """Pieces of a CSV or TSV file with a header, whose types are those of its first rows.

    Raises:
        UserError: a column is missing, or the file has no rows.
    """
    delimiter, names = header_of(path, shown)
    require_columns(shown, names, columns)
    quoted = has_quoted_newlines(path, shown)
    types = _infer_types(path, shown, delimiter, names, columns)
    return text_pieces(path, TextFormat(delimiter, names, True, types, quoted), shown)


def require_columns(shown: str, names: Sequence[str], columns: Columns) -> None:
    """Raises UserError where a column of the log is missing."""
    missing = [name for name in columns.names if name not in names]
    if missing:
        raise UserError(
            f"{shown} has no column {', '.join(map(repr, missing))}; its columns are {', '.join(map(repr, names))}; "
            "name yours with --user, --item, --time (and --rating)"
        )


def _infer_types(path: Path, shown: str, delimiter: str, names: tuple[str, ...], columns: Columns) -> _Types:
    """Arrow types by the first rows. The minority of a column is then reported as a mistake, row by row."""
    head = sniff(path, shown)
    if len(head) > _SNIFF_BYTES // 2 and "\n" in head:
        head = head[: head.rfind("\n") + 1]
    try:
        rows = list(csv.reader(io.StringIO(head, newline=None), delimiter=delimiter))[1:]
    except csv.Error as err:
        raise UserError(f"{shown}: not readable as delimited text ({err}); check its quoting") from None
    types = []
    for name in columns.names:
        place = names.index(name)
        values = [row[place].strip() for row in rows if len(row) > place]
        values = [value for value in values if value not in _NULLS]
        if name in (columns.user, columns.item):
            types.append((name, _id_type(values)))
        else:
            types.append((name, _time_type(values) if name == columns.time else pa.float64()))
    return tuple(types)


def _id_type(values: list[str]) -> pa.DataType:
    """Integers, unless most ids are not, or one has a leading zero (007 is not 7)."""
    whole = sum(_holds(pa.int64())(value) for value in values)
    padded = any(re.match(r"-?0[0-9]", value) for value in values)
    return pa.int64() if 2 * whole >= len(values) and not padded else pa.string()


def _time_type(values: list[str]) -> pa.DataType:
    """Dates or numbers, whichever are more; what is neither does not count."""
    dates = [kind for kind in map(_date_type, values) if kind is not None]
    numbers = [value for value in values if _holds(pa.float64())(value)]
    if len(dates) > len(numbers):
        zone = max(dates, key=lambda kind: sum(kind.tz == other.tz for other in dates)).tz
        return pa.timestamp("ns" if any(kind.unit == "ns" for kind in dates) else "us", zone)
    return pa.int64() if all(_holds(pa.int64())(value) for value in numbers) else pa.float64()
