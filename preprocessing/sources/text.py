"""Delimited text as pieces: byte ranges that end at a line, each parsed by Arrow on its own."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pc

from preprocessing.sources.log import Columns, Piece
from workflows.errors import UserError

PIECE_BYTES = 16 << 20
_SNIFF_BYTES = 1 << 16
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
    """Bytes `start` to `stop` of a file: whole lines, without the header."""

    path: Path
    format: TextFormat
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start

    def read(self) -> pa.Table:
        data = _read_bytes(self.path, self.start, self.stop)
        delimiter = self.format.delimiter
        if len(delimiter) > 1:
            data, delimiter = data.replace(delimiter.encode(), b"\t"), "\t"
        wanted = dict(self.format.types)
        try:
            return pc.read_csv(
                pa.py_buffer(data),
                read_options=pc.ReadOptions(column_names=list(self.format.names), use_threads=False),
                parse_options=pc.ParseOptions(
                    delimiter=delimiter, newlines_in_values=self.format.quoted_newlines, ignore_empty_lines=True
                ),
                convert_options=pc.ConvertOptions(
                    include_columns=list(wanted), column_types=wanted, strings_can_be_null=True, null_values=_NULLS
                ),
            )
        except pa.ArrowInvalid as err:
            raise self._explain(err, data, delimiter) from None

    def _explain(self, err: pa.ArrowInvalid, data: bytes, delimiter: str) -> UserError:
        """Find the row that Arrow could not read, and say what was expected there."""
        line_number = _count_lines(self.path, self.start)
        convert = {name: _parser(kind) for name, kind in self.format.types}
        for offset, raw in enumerate(data.splitlines()):
            line = raw.decode("utf-8", "replace")
            fields = [field.strip('"') for field in line.split(delimiter)]
            where = f"{self.path}, line {line_number + offset + 1}"
            if not line:
                continue
            if len(fields) != len(self.format.names) and '"' not in line:
                return UserError(
                    f"{where}: expected {len(self.format.names)} columns ({', '.join(self.format.names)}), "
                    f"got {len(fields)}: {line[:80]!r}; mend or remove that line"
                )
            row = dict(zip(self.format.names, fields, strict=False))
            for name, (expected, accepts) in convert.items():
                value = row.get(name, "")
                if value not in _NULLS and not accepts(value):
                    return UserError(
                        f"{where}: column {name!r} should hold {expected}, as the first rows do, got {value[:60]!r}; "
                        "mend or remove that line (ids that are text must be text in every row)"
                    )
        return UserError(f"{self.path}: not readable as delimited text ({err}); check its encoding and quoting")


_NULLS = ["", "NULL", "null", "NaN", "nan", "NA", "N/A", "None", "\\N"]


def _parser(kind: pa.DataType) -> tuple[str, Any]:
    """(what a column of this type holds, a check whether a field is one)."""
    if pa.types.is_integer(kind):
        return "an integer", re.compile(r"[+-]?(0|[1-9]\d{0,18})").fullmatch  # 007 is text
    if pa.types.is_floating(kind):
        return "a number", re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?").fullmatch
    if pa.types.is_timestamp(kind):
        return "a date and time", re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d(:\d\d(:\d\d(\.\d+)?)?)?)?").fullmatch
    return "text", lambda _: True


def _read_bytes(path: Path, start: int, stop: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(stop - start)


def _count_lines(path: Path, stop: int) -> int:
    with path.open("rb") as file:
        lines = 0
        while stop > 0:
            block = file.read(min(stop, 1 << 20))
            if not block:
                break
            lines += block.count(b"\n")
            stop -= len(block)
        return lines


def first_lines(path: Path, n: int = 2) -> list[str]:
    """The first lines of a text file (fewer where it has fewer), without their newlines.

    Raises:
        UserError: the file is empty or is no UTF-8 or Latin-1 text.
    """
    with path.open("rb") as file:
        head = file.read(_SNIFF_BYTES)
    if not head.strip():
        raise UserError(f"{path} is empty; expected a log of user, item and time")
    if b"\0" in head:
        raise UserError(f"{path} is no text file; expected CSV, TSV, Parquet or a zip of MovieLens")
    return head.decode("utf-8-sig", "replace").splitlines()[:n]


def text_pieces(path: Path, format: TextFormat) -> list[Piece]:
    """Cut a file into byte ranges of about `PIECE_BYTES` that end at a line.

    Raises:
        UserError: there is no row.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        if format.header:
            file.readline()
        elif file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        start = file.tell()
        if start >= size:
            raise UserError(f"{path} has a header and no rows; expected a log of user, item and time")
        cuts = [start]
        while not format.quoted_newlines and size - cuts[-1] > PIECE_BYTES:
            file.seek(cuts[-1] + PIECE_BYTES)
            file.readline()
            if file.tell() >= size:
                break
            cuts.append(file.tell())
    return [TextPiece(path, format, a, b) for a, b in zip(cuts, [*cuts[1:], size], strict=True)]


def has_quoted_newlines(path: Path) -> bool:
    """Whether some line ends inside a quoted field (only a file with quotes costs a look at each line)."""
    return any(line.count(b'"') % 2 for block in _lines_with_quotes(path) for line in block)


def _lines_with_quotes(path: Path) -> Iterator[list[bytes]]:
    with path.open("rb") as file:
        rest = b""
        while block := file.read(1 << 20):
            if b'"' not in block and b'"' not in rest:
                rest = block[block.rfind(b"\n") + 1 :] if b"\n" in block else rest + block
                continue
            lines = (rest + block).split(b"\n")
            rest = lines.pop()
            yield lines
        yield [rest]


def csv_log(path: Path, columns: Columns) -> list[Piece]:
    """Pieces of a CSV or TSV file with a header, whose types are those of its first rows.

    Raises:
        UserError: a column is missing, a type fits no id or time, or the file has no rows.
    """
    header = first_lines(path, 1)[0]
    delimiter = max(("\t", ";", "|", ","), key=header.count)
    names = tuple(name.strip().strip('"') for name in header.split(delimiter))
    require_columns(path, names, columns)
    quoted = has_quoted_newlines(path)
    types = _infer_types(path, delimiter, names, columns)
    return text_pieces(path, TextFormat(delimiter, names, True, types, quoted))


def require_columns(path: Path, names: tuple[str, ...], columns: Columns) -> None:
    """Raises UserError where a column of the log is missing."""
    missing = [name for name in columns.names if name not in names]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(map(repr, missing))}; its columns are {', '.join(map(repr, names))}; "
            "name yours with --user, --item, --time (and --rating)"
        )


def _infer_types(path: Path, delimiter: str, names: tuple[str, ...], columns: Columns) -> _Types:
    """Arrow types by the first rows. The minority of a column is then reported as a mistake, row by row."""
    head = _read_bytes(path, 0, _SNIFF_BYTES)
    lines = head[: head.rfind(b"\n") + 1] if len(head) == _SNIFF_BYTES else head
    rows = list(csv.reader(io.StringIO(lines.decode("utf-8-sig", "replace")), delimiter=delimiter))[1:]
    types = []
    for name in columns.names:
        place = names.index(name)
        values = [row[place] for row in rows if len(row) > place and row[place] not in _NULLS]
        candidates = (pa.int64(), pa.string()) if name in (columns.user, columns.item) else _NUMBERS_AND_DATES
        fits = [sum(bool(_parser(kind)[1](value)) for value in values) for kind in candidates]
        if candidates[-1] == pa.string():
            fits[-1] = len(values) - fits[0]  # an id is text where it is no integer
        types.append((name, candidates[fits.index(max(fits))]))
    return tuple(types)


_NUMBERS_AND_DATES = (pa.int64(), pa.float64(), pa.timestamp("us"))
