"""Delimited text as pieces: byte ranges that end at a line, each parsed by Arrow on its own."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from preprocessing.sources.fields import NULLS, PADDED, describe, holds, id_type, time_type
from preprocessing.sources.log import Columns, Piece
from workflows.errors import UserError

PIECE_BYTES = 16 << 20
_SNIFF_BYTES = 1 << 16
_DELIMITERS = ("\t", ";", "|", ",")
_Types = tuple[tuple[str, pa.DataType], ...]


@dataclass(frozen=True)
class TextFormat:
    """How the lines of a file are written.

    Attributes:
        delimiter: one or two characters ("::" in MovieLens 1M and 10M).
        names: the columns in the order of the file.
        header: whether the first line names them.
        types: Arrow types of the columns that are read.
        ids: columns of integer ids where a leading zero would be a mistake (007 is not 7).
        quoted_newlines: a quoted field may hold a newline, so the file cannot be cut into pieces.
    """

    delimiter: str
    names: tuple[str, ...]
    header: bool
    types: _Types
    ids: tuple[str, ...] = ()
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
        self._check_padding(data, delimiter)
        for index, (name, kind) in enumerate(self.format.types):
            if kind == pa.string():
                table = table.set_column(index, name, pc.utf8_trim_whitespace(table.column(name)))
        return table

    def _check_padding(self, data: bytes, delimiter: str) -> None:
        """Refuse 007 among integer ids, which would silently become 7."""
        if not self.format.ids:
            return
        characters = np.frombuffer(data, dtype=np.uint8)
        zeros = np.flatnonzero(characters[:-1] == ord("0"))
        digit_next = (characters[zeros + 1] >= ord("0")) & (characters[zeros + 1] <= ord("9"))
        before = characters[zeros - 1]  # of a zero at the very beginning, the last character: a line feed or none
        starts = np.isin(before, np.frombuffer(f'{delimiter}\n\r "-'.encode(), dtype=np.uint8)) | (zeros == 0)
        if not (digit_next & starts).any():
            return
        for number, fields in _numbered_rows(data, delimiter):
            row = dict(zip(self.format.names, fields, strict=False))
            for name in self.format.ids:
                if re.match(PADDED, row.get(name, "").strip()):
                    raise UserError(
                        f"{self.shown}, line {_count_lines(self.path, self.start) + number}: column {name!r} holds "
                        f"{row[name]!r} among integers; remove leading zeros, or convert the log to Parquet with ids "
                        "as text"
                    )

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
                if value not in NULLS and not holds(kind)(value):
                    return UserError(
                        f"{where}: column {name!r} should hold {describe(kind)}, as the first rows do, "
                        f"got {value[:60]!r}; mend or remove that line, "
                        "or convert the log to Parquet, whose types are as you set them"
                    )
        return UserError(f"{self.shown}: not readable as delimited text ({err}); check its encoding and quoting")


def _parse(data: bytes, delimiter: str, layout: TextFormat) -> pa.Table:
    wanted = dict(layout.types)
    return pa.csv.read_csv(
        pa.py_buffer(data),
        read_options=pa.csv.ReadOptions(column_names=list(layout.names), use_threads=False),
        parse_options=pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=layout.quoted_newlines),
        convert_options=pa.csv.ConvertOptions(
            include_columns=list(wanted), column_types=wanted, strings_can_be_null=True, null_values=list(NULLS)
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
        UserError: the file is empty, no text, or has no line feeds.
    """
    line = sniff(path, shown).split("\n", 1)[0].rstrip("\r")
    if "\r" in line:
        raise UserError(f"{shown} ends its lines with a carriage return alone; convert it to line feeds")
    rows = {delimiter: next(csv.reader([line], delimiter=delimiter), []) for delimiter in _DELIMITERS}
    delimiter = max(reversed(_DELIMITERS), key=lambda candidate: len(rows[candidate]))
    names = tuple(name.strip() for name in rows[delimiter])
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


def has_quoted_newlines(path: Path, delimiter: str, shown: str) -> bool:
    """Whether some line ends inside a quoted field. A quote counts where a field begins with it, as in Arrow.

    Raises:
        UserError: a quoted field is never closed, so that all rows after it would be lost in it.
    """
    inside, found, line_number, opened = False, False, 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            block += file.readline()
            if b'"' not in block:
                found = found or inside
                line_number += block.count(b"\n")
                continue
            for line in block.removesuffix(b"\n").split(b"\n"):
                line_number += 1
                found = found or inside
                if b'"' not in line:
                    continue
                for field in line.split(delimiter.encode()):
                    if (inside or field.startswith(b'"')) and field.count(b'"') % 2:
                        inside = not inside
                        opened = line_number if inside else opened
    if inside:
        raise UserError(f"{shown}, line {opened}: a quoted field is not closed; close it or double the quote")
    return found


def csv_pieces(path: Path, columns: Columns, shown: str) -> list[Piece]:
    """Pieces of a CSV or TSV file with a header, whose types are those of its first rows.

    Raises:
        UserError: a column is missing or comes twice, a quote is not closed, or there are no rows.
    """
    delimiter, names = header_of(path, shown)
    require_columns(shown, names, columns)
    quoted = has_quoted_newlines(path, delimiter, shown)
    types = _infer_types(path, shown, delimiter, names, columns)
    ids = tuple(name for name, kind in types if name != columns.time and kind == pa.int64())
    return text_pieces(path, TextFormat(delimiter, names, True, types, ids, quoted), shown)


def require_columns(shown: str, names: Sequence[str], columns: Columns) -> None:
    """Raises UserError where a column of the log is missing or comes twice."""
    twice = [name for name in columns.names if list(names).count(name) > 1]
    if twice:
        raise UserError(f"{shown}: column {', '.join(map(repr, twice))} comes more than once; rename one")
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
        values = [value for value in values if value not in NULLS]
        if name in (columns.user, columns.item):
            types.append((name, id_type(values)))
        elif name == columns.time:
            kind = time_type(values)
            if values and not any(map(holds(kind), values)):
                raise UserError(
                    f"{shown}: column {name!r} holds {values[0][:60]!r}; expected times as integers, numbers or "
                    "ISO 8601 dates (2024-01-31, 2024-01-31T12:00:00); convert them"
                )
            types.append((name, kind))
        else:
            types.append((name, pa.float64()))
    return tuple(types)
