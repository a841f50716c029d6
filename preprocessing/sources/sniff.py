"""Inspect the beginning of delimited text: comments, delimiter, column names and sample values."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from preprocessing.sources.dialect import BLANKS, RECOGNISED, Dialect, delimiter_shown
from preprocessing.sources.fields import MISSING_WORDS, NULLS, holds
from preprocessing.sources.lines import count_lines
from preprocessing.sources.log import ReadOptions
from preprocessing.sources.text import first_row, parse, unreadable
from workflows.common.errors import UserError

_SNIFF_BYTES = 1 << 16
_SNIFF_ROWS = 50
_MAX_BYTES = 64 << 20  # of a line, or of the rows that show the types
_MAX_COMMENTS = 1000
_DELIMITERS = ("::", "\t", ";", "|", ",")
_COMMENTS = ("#", "%")  # SNAP, KONECT


@dataclass(frozen=True)
class Layout:
    """How a file is laid out.

    Attributes:
        delimiter: as in `Dialect`.
        names: of the columns, in order.
        start: offset of the first row.
        comments: number of leading lines that look like comments and are left out, in a file without a header.
    """

    delimiter: str
    names: tuple[str, ...]
    start: int
    comments: int = 0


@dataclass(frozen=True)
class _Line:
    """A line at the beginning of a file, without its line end; `start` to `stop` are its offsets, with it."""

    text: str
    start: int
    stop: int

    @property
    def is_marked(self) -> bool:
        """Whether this may be a comment."""
        return self.text.startswith(_COMMENTS)


def sniff(path: Path, display_name: str) -> str:
    """The beginning of a text file.

    Raises:
        UserError: the file is empty or not text.
    """
    with path.open("rb") as file:
        head = file.read(_SNIFF_BYTES)
    if not head.strip():
        raise UserError(f"{display_name} is empty; expected a log of user, item and time")
    if b"\0" in head:
        raise UserError(
            f"{display_name} is not a UTF-8 text file; expected CSV, TSV, Parquet or a MovieLens zip "
            "(name another encoding with --encoding)"
        )
    return head.decode("utf-8-sig", "replace")


def header_layout(
    path: Path, display_name: str, options: ReadOptions, has_columns: Callable[[Sequence[str]], bool]
) -> Layout:
    """The layout of a file whose first line, but for comments, names the columns.

    Leading lines with # or % are comments if the line after them names the columns. Without `options.delimiter`, the
    one that yields the most columns is taken.

    Args:
        has_columns: whether the columns of the log are among these names.

    Raises:
        UserError: the file is empty, not text, or has no line feeds, or a name contains one.
    """
    lines = _first_lines(path, display_name, options)
    marked = [line for line in lines[::-1] if line.is_marked]
    # The header is the first line that is no comment, or the last that may be one; without its mark, perhaps.
    headers = [_header(line, options, has_columns) for line in [*lines[len(marked) :], *marked]]
    bare = [_header(replace(line, text=line.text.lstrip("#% \t")), options, has_columns) for line in marked]
    found = next((header for header in [*headers, *bare] if has_columns(header.names)), None)
    if found is None:  # a comment has another number of fields than rows have
        counts = [len(header.names) for header in headers[:2]]
        found = headers[1] if marked and len(lines) > len(marked) and counts[0] == counts[1] > 1 else headers[0]
    line = next(line for line in lines if line.stop == found.start)
    dialect = Dialect(found.delimiter, options.quoting != "none")
    if dialect.is_open(dialect.plain(line.text.encode())):
        raise UserError(
            f"{display_name}, line {count_lines(path, line.start) + 1}: a column name is not closed or contains a "
            "newline; rename that column, or pass --quoting none if quotes are characters like any other"
        )
    return found


def _header(line: _Line, options: ReadOptions, has_columns: Callable[[Sequence[str]], bool]) -> Layout:
    """The line as a header, split by the delimiter that yields the log's columns, or the most columns."""
    layouts = [
        Layout(one, tuple(name.strip() for name in _split(line.text, one, options)), line.stop)
        for one in _candidates(options)
    ]
    # A mark that blanks separate from the names is not a column.
    fitting = [layout for layout in layouts if has_columns(layout.names) and layout.names[0] not in _COMMENTS]
    if not fitting and all(len(layout.names) == 1 for layout in layouts[1:]):
        return layouts[0]  # runs of blanks, unless a delimiter was named
    return max(reversed(fitting or layouts[1:]), key=lambda layout: len(layout.names))


def _candidates(options: ReadOptions) -> Sequence[str]:
    """The delimiters that a file may have."""
    return [options.delimiter] if options.delimiter is not None else [BLANKS, *_DELIMITERS]


def _split(row: str, delimiter: str, options: ReadOptions) -> list[str]:
    dialect = Dialect(delimiter, options.quoting != "none")
    return dialect.fields(dialect.plain(row.encode()))


def named_layout(path: Path, display_name: str, names: tuple[str, ...], options: ReadOptions) -> Layout:
    """The layout of a file without a header, whose rows have as many fields as there are names.

    Leading lines with # or % are comments if they have another number of fields, or words where all of the first rows
    have numbers.

    Raises:
        UserError: no delimiter fits, or the first row is a header after all; the file is empty, not text, or has no
            line feeds.
    """
    lines = _first_lines(path, display_name, options)
    row = next((line for line in lines if not line.is_marked), lines[0])
    fitting = {one: _row_fields(path, row, one, options, len(names)) for one in _candidates(options)}
    others = [one for one, fields in fitting.items() if one != BLANKS and len(fields) > 1]
    # Blanks may stand between the words of a field; tabs and blanks separate numbers (KONECT).
    mixed = others == ["\t"] and len(fitting["\t"]) < len(names) and all(map(_is_number, fitting[BLANKS]))
    if options.delimiter is None and others and not mixed:
        del fitting[BLANKS]
    delimiter = next((one for one, fields in fitting.items() if len(fields) == len(names)), None)
    if delimiter is None:
        most = max(map(len, fitting.values()))
        advice = RECOGNISED if options.delimiter is None else f"--delimiter is {delimiter_shown(options.delimiter)}"
        raise UserError(
            f"{display_name}: expected {len(names)} fields per row, as named by --columns ({', '.join(names)}), "
            f"got {most}: {row.text[:80]!r}; name every column in order; {advice}"
        )
    fields = fitting[delimiter]
    if [field.strip() for field in fields] == list(names):
        raise UserError(f"{display_name} names its columns in its first line; leave out --columns")
    numbers = _number_places(path, row.start, Dialect(delimiter, options.quoting != "none"), len(names))

    def is_row(line: _Line) -> bool:
        found = _row_fields(path, line, delimiter, options, len(names))
        return len(found) == len(names) and all(_is_number(found[place]) for place in numbers)

    first = next(line for line in lines if line is row or is_row(line))
    return Layout(delimiter, names, first.start, lines.index(first))


def _number_places(path: Path, start: int, dialect: Dialect, n_fields: int) -> list[int]:
    """The fields that hold numbers, or are missing, in all of the first whole rows from `start` on."""
    with path.open("rb") as file:
        file.seek(start)
        data = dialect.plain(file.read(_SNIFF_BYTES) + file.readline())
    rows = (dialect.fields(data[begin:end]) for _, begin, end in itertools.islice(dialect.rows(data), _SNIFF_ROWS))
    whole = [row for row in rows if len(row) == n_fields]
    return [place for place in range(n_fields) if all(_is_number(row[place]) for row in whole)]


def _is_number(field: str) -> bool:
    return holds(pa.float64())(field.strip()) or field.strip() in (*NULLS, *MISSING_WORDS)


def _row_fields(path: Path, line: _Line, delimiter: str, options: ReadOptions, expected: int) -> list[str]:
    """The fields of a row without a header: quoted, perhaps over several lines, unless only its line as it is fits."""
    dialect = Dialect(delimiter, options.quoting != "none")
    row = dialect.plain(line.text.encode())
    if dialect.is_open(row):
        with path.open("rb") as file:
            file.seek(line.start)
            head = dialect.plain(file.read(len(row) + _SNIFF_BYTES))
        _, begin, end = next(dialect.rows(head))
        row = head[begin:end]
    quoted = dialect.fields(row)
    plain = line.text.split(delimiter) if delimiter != BLANKS else line.text.split()
    return plain if len(plain) == expected != len(quoted) else quoted


def column_heads(
    path: Path, display_name: str, dialect: Dialect, layout: Layout, multiline: bool, wanted: Sequence[str]
) -> dict[str, list[str]]:
    """Non-missing fields of the wanted columns in the first rows, stripped of surrounding blanks.

    Reads on until there are some whole rows, and a value in each column.

    Args:
        multiline: quoted fields may run over lines.

    Raises:
        UserError: the first row is too long, or the text is not readable.
    """
    size = path.stat().st_size - layout.start
    length = _SNIFF_BYTES
    while True:
        with path.open("rb") as file:
            file.seek(layout.start)
            data = _whole_rows(file.read(length), dialect, multiline, is_last=length >= size)
        types = dict.fromkeys(wanted, pa.binary())
        heads: dict[str, list[str]] = {name: [] for name in wanted}
        rows = 0
        if data.strip():
            # A row with another number of fields is reported when it is read.
            try:
                table = parse(data, dialect, layout.names, types, True, len(data), lambda _: "skip")
            except pa.ArrowInvalid as err:  # such a row that is not UTF-8
                raise unreadable(display_name, err) from None
            rows = table.num_rows
            for name in wanted:
                values = (value.decode("utf-8", "replace") for value in table.column(name).drop_null().to_pylist())
                heads[name] = [value for value in map(str.strip, values) if value not in NULLS]
        if length >= size or (rows >= _SNIFF_ROWS and all(heads.values())):
            return heads
        if length >= _MAX_BYTES:
            if not rows:
                raise UserError(
                    f"{display_name}: the first row is longer than {_MAX_BYTES:,} bytes; check its line ends and quotes"
                )
            return heads
        length *= 4


def _whole_rows(data: bytes, dialect: Dialect, multiline: bool, is_last: bool) -> bytes:
    """The complete rows at the beginning of a file, as `plain` text; all of it if it `is_last`."""
    data = dialect.plain(data if is_last else data[: data.rfind(b"\n") + 1])
    if is_last or not multiline:
        return data
    # The last row may go on; a line end within it may look like the end of another.
    *_, (_, begin, _) = [(1, 0, 0), *dialect.rows(data)]
    return data[:begin]


def _first_lines(path: Path, display_name: str, options: ReadOptions) -> list[_Line]:
    """The first lines that may be comments, and the first that is not; without empty ones."""
    sniff(path, display_name)
    lines: list[_Line] = []
    with path.open("rb") as file:
        file.seek(first_row(path, header=False))
        while len(lines) < _MAX_COMMENTS:
            start = file.tell()
            content = file.readline(_MAX_BYTES)
            if len(content) == _MAX_BYTES:
                raise UserError(f"{display_name} has a line of more than {_MAX_BYTES:,} bytes; is it delimited text?")
            if not content:
                break
            text = content.decode("utf-8", "replace").rstrip("\r\n")
            if "\r" in text:
                raise UserError(f"{display_name} ends its lines with a carriage return alone; convert it to line feeds")
            if not text.strip() or (options.comment is not None and text.startswith(options.comment)):
                continue
            lines.append(_Line(text, start, file.tell()))
            if options.comment is not None or not lines[-1].is_marked:
                break
    if not lines:
        raise UserError(f"{display_name} has no rows; expected a log of user, item and time")
    return lines
