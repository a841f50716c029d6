"""Delimited text in pieces: byte ranges of whole rows, each parsed by Arrow independently."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from preprocessing.sources.convert import converted, first_invalid, trimmed
from preprocessing.sources.dialect import Dialect
from preprocessing.sources.fields import NULLS, PADDED, describe, may_be_padded
from preprocessing.sources.lines import count_lines, line_cuts, read_bytes
from preprocessing.sources.log import Piece
from preprocessing.sources.quoting import Quoting
from preprocessing.sources.times import column_times
from workflows.common.errors import UserError, bounded

PIECE_BYTES = 16 << 20
_SAMPLE_BYTES = 1 << 16
_BLOCK_BYTES = 1 << 20
_CACHE_BYTES = 1 << 17  # fits in a CPU cache
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_Types = tuple[tuple[str, pa.DataType], ...]


@dataclass(frozen=True)
class TextFormat:
    """Format of a delimited file.

    Attributes:
        dialect: how lines are split.
        names: column names, in file order.
        types: Arrow types of the columns to read.
        ids: integer id columns, in which a leading zero is an error (007 is not 7).
        time: the time column and its target type, shared by all files of a log.
        time_format: of times that are not ISO 8601; their column is read as text.
        spelled: columns with values that Arrow's CSV reader does not take for their type (17850.0 for an integer).
        remedies: what to do about a value that does not suit its column, if there is more to say than to fix it.
    """

    dialect: Dialect
    names: tuple[str, ...]
    types: _Types
    ids: tuple[str, ...] = ()
    time: tuple[str, pa.DataType] | None = None
    time_format: str | None = None
    spelled: tuple[str, ...] = ()
    remedies: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TextPiece(Piece):
    """Bytes `start` to `stop` of a file: whole rows, without the header; `display_name` is the file's display name.

    Attributes:
        rows: number of rows, if quoted fields may run over lines; None: each line that is not empty is a row.
    """

    path: Path
    format: TextFormat
    start: int
    stop: int
    display_name: str
    rows: int | None = None

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start

    @property
    def rows_estimate(self) -> int:
        head = read_bytes(self.path, self.display_name, self.start, min(self.size_bytes, _SAMPLE_BYTES))
        return int(self.size_bytes * max(1, head.count(b"\n")) / len(head))

    def read(self) -> pa.Table:
        data, delimiter = self.content()
        types = dict(self.format.types)
        spelled = set(self.format.spelled)
        if self.format.ids and may_be_padded(data, delimiter):
            spelled |= set(self.format.ids)
        try:
            table = self._parse(data, types | dict.fromkeys(spelled, pa.string()))
        except pa.ArrowInvalid:
            table = self._parse_bytes(data)
        self._check_rows(data, table.num_rows)
        for index, (name, kind) in enumerate(types.items()):
            column = self._decoded(name, table.column(name))
            if self.format.time is not None and name == self.format.time[0]:
                common, time_format = self.format.time[1], self.format.time_format
                column = column_times(column, common, time_format, name, self.display_name, self.place)
            elif column.type == pa.string() == kind:
                column = trimmed(column, data.isascii())
            elif column.type != kind:
                column = self._converted(name, kind, column)
            table = table.set_column(index, name, column)
        return table

    def place(self, row: int) -> str:
        return self._line(self._row(self.content()[0], row)[0])

    def content(self) -> tuple[bytes, str]:
        """The bytes of the piece without comments, and their delimiter, converted to one character."""
        data = read_bytes(self.path, self.display_name, self.start, self.size_bytes)
        try:
            return self.format.dialect.plain(data), self.format.dialect.byte
        except UserError as err:
            raise UserError(f"{self._line(1)} ff.: {err}") from None

    def _parse(self, data: bytes, types: dict[str, pa.DataType], **options: Any) -> pa.Table:
        return parse(data, self.format.dialect, self.format.names, types, self.rows is not None, **options)

    def _parse_bytes(self, data: bytes) -> pa.Table:
        """The columns as they are spelled, for whatever the types do not allow.

        Raises:
            UserError: a row has too many or too few fields.
        """
        invalid: list[pa.csv.InvalidRow] = []

        def refuse(row: pa.csv.InvalidRow) -> str:
            invalid.append(row)
            return "error"

        types = dict.fromkeys(dict(self.format.types), pa.binary())
        try:
            return self._parse(data, types, block_size=len(data), invalid_row_handler=refuse)
        except pa.ArrowInvalid as err:
            if not invalid:
                raise unreadable(self.display_name, err) from None
            raise self._malformed(data, invalid[0]) from None

    def _malformed(self, data: bytes, invalid: pa.csv.InvalidRow) -> UserError:
        line, row = self._row(data, invalid.number - 1)
        advice = "fix or remove that line"
        if row[:1] in (b"#", b"%"):
            advice += f", or skip such lines with --comment '{row[:1].decode()}'"
        text = row.decode("utf-8", "replace").replace(self.format.dialect.byte, self.format.dialect.delimiter)
        return UserError(
            f"{self._line(line)}: expected {len(self.format.names)} columns ({', '.join(self.format.names)}), "
            f"got {invalid.actual_columns}: {text[:80]!r}; {advice}"
        )

    def _check_rows(self, data: bytes, found: int) -> None:
        """No row may vanish in another one.

        Raises:
            UserError: there are fewer or more rows than lines that end outside quotes.
        """
        expected = lines_in(data, found) if self.rows is None else self.rows
        if expected != found:
            raise UserError(
                f"{self._line(1)} ff.: read {found:,} rows from {expected:,} lines, so a quoted field runs over "
                "several; pass --quoting none if quotes are characters like any other, --quoting minimal if they "
                "enclose fields"
            )

    def _decoded(self, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Bytes as text; other columns as they are."""
        if not pa.types.is_binary(column.type):
            return column
        try:
            return pc.cast(column, pa.string())
        except pa.ArrowInvalid:
            row = first_invalid(column, lambda some: pc.cast(some, pa.string()))
        value = column[row].as_py()[:60].decode("utf-8", "replace")
        raise UserError(
            f"{self.place(row)}: column {name!r} is not UTF-8: {value!r}; "
            "name the file's encoding (--encoding latin-1, for example), or convert it (iconv -f latin1 -t utf-8)"
        )

    def _converted(self, name: str, kind: pa.DataType, column: pa.ChunkedArray) -> pa.ChunkedArray:
        is_id = name in self.format.ids
        try:
            return converted(column, kind, is_id)
        except pa.ArrowInvalid:
            row = first_invalid(column, lambda some: converted(some, kind, is_id))
        place, advice = f"{self.place(row)}: column {name!r}", self.format.remedies.get(name, "fix or remove that line")
        value = column[row].as_py()
        if is_id and pc.match_substring_regex(value.strip(), PADDED).as_py():
            raise UserError(f"{place} holds {value!r} among integers; {advice}")
        raise UserError(f"{place} should hold {describe(kind)}, got {value[:60]!r}; {advice}")

    def _row(self, data: bytes, row: int) -> tuple[int, bytes]:
        """(line number in the piece from 1, text) of a row."""
        line, begin, end = next(itertools.islice(self.format.dialect.rows(data), row, None))
        return line, data[begin:end]

    def _line(self, number: int) -> str:
        """Location of a line of the piece (from 1), for messages."""
        return f"{self.display_name}, line {count_lines(self.path, self.start) + number}"


def unreadable(display_name: str, err: pa.ArrowInvalid) -> UserError:
    """The error of text that Arrow cannot split into fields."""
    reason = bounded(str(err), 200)
    return UserError(f"{display_name}: not readable as delimited text ({reason}); check its encoding and quoting")


def parse(
    data: bytes,
    dialect: Dialect,
    names: Sequence[str],
    types: Mapping[str, pa.DataType],
    multiline: bool,
    block_size: int | None = None,
    invalid_row_handler: Callable[[pa.csv.InvalidRow], str] | None = None,
) -> pa.Table:
    """Columns of `plain` text, without conversions that Arrow's CSV reader does not know.

    Args:
        names: of all fields.
        types: of the columns to read.
        multiline: quoted fields may run over lines.
        block_size: bytes parsed at once, at least those of the longest row (None: 1 MiB).
        invalid_row_handler: as Arrow's.

    Raises:
        pa.ArrowInvalid: a row has too many or too few fields, or a field does not suit its type.
    """
    return pa.csv.read_csv(
        pa.py_buffer(data),
        read_options=pa.csv.ReadOptions(column_names=list(names), use_threads=False, block_size=block_size),
        parse_options=pa.csv.ParseOptions(
            delimiter=dialect.byte,
            quote_char='"' if dialect.quoted else False,
            newlines_in_values=multiline,
            invalid_row_handler=invalid_row_handler,
        ),
        convert_options=pa.csv.ConvertOptions(
            include_columns=list(types), column_types=types, strings_can_be_null=True, null_values=list(NULLS)
        ),
    )


def lines_in(data: bytes, likely: int) -> int:
    """Number of lines that are not empty; fast if it is `likely`."""
    text = np.frombuffer(data, dtype=np.uint8)
    blocks = (text[start : start + _CACHE_BYTES] for start in range(0, len(text), _CACHE_BYTES))
    lines = sum(int(np.count_nonzero(block == ord("\n"))) for block in blocks) + (data[-1:] not in (b"\n", b""))
    if lines != likely:  # empty lines, or other line ends
        ends = (text == ord("\n")) | (text == ord("\r"))
        lines = int(np.count_nonzero(ends[:-1] & ~ends[1:]) + np.count_nonzero(~ends[:1]))
    return lines


def first_row(path: Path, header: bool) -> int:
    """Offset of the first row: after the header line, or the byte order mark."""
    with path.open("rb") as file:
        if header:
            file.readline()
        elif file.read(3) != _BYTE_ORDER_MARK:
            return 0
        return file.tell()


def has_rows(path: Path, start: int) -> bool:
    """Whether a text has anything but whitespace from an offset on."""
    with path.open("rb") as file:
        file.seek(start)
        return any(block.strip() for block in iter(lambda: file.read(_BLOCK_BYTES), b""))


def text_pieces(
    path: Path, form: TextFormat, display_name: str, start: int = 0, quoting: Quoting | None = None
) -> list[Piece]:
    """Split a file into byte ranges of about `PIECE_BYTES` that end at row boundaries.

    Args:
        start: offset of the first row.
        quoting: of the file; None if no field is quoted over several lines.

    Raises:
        UserError: there are no rows.
    """
    if not has_rows(path, start):
        raise UserError(f"{display_name} has no rows; expected a log of user, item and time")
    if quoting is None or quoting.cuts is None:
        cuts = [start, *line_cuts(path, start, PIECE_BYTES), path.stat().st_size]
        return [TextPiece(path, form, a, b, display_name) for a, b in itertools.pairwise(cuts)]
    pieces: list[Piece] = []
    before = 0
    for cut, rows in quoting.cuts:
        pieces.append(TextPiece(path, form, start, cut, display_name, rows - before))
        start, before = cut, rows
    return pieces
