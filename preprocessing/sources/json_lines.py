"""JSON lines, one file or many, in pieces: byte ranges of whole lines, each parsed by Arrow independently."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.json

from preprocessing.sources.column_names import recognise, require_columns
from preprocessing.sources.dates import formatted_type, parse_times, time_kind
from preprocessing.sources.ids import TEXT, as_ids, id_types
from preprocessing.sources.json_records import (
    BYTE_ORDER_MARK,
    Sample,
    is_json_lines,
    raw_type,
    records,
    sample_of,
    spelled,
)
from preprocessing.sources.lines import count_lines, line_cuts, read_bytes
from preprocessing.sources.log import Log, LogColumns, Piece, ReadOptions
from preprocessing.sources.times import column_times, common_time
from preprocessing.sources.unpack import SourceFile
from workflows.common.errors import UserError

__all__ = ["is_json_lines", "json_lines_log"]

PIECE_BYTES = 16 << 20
_SAMPLE_BYTES = 1 << 16


@dataclass(frozen=True)
class JsonFormat:
    """How the values of a file are read, and what they become.

    Attributes:
        raw: (column, Arrow type) as in the file's first records; a type of None: as text, by Python's parser.
        ids: (column, int64 or text) of users and items, the same in all files.
        time: the time column and the common type of all times; None without times.
        time_format: of times that are not ISO 8601.
    """

    raw: tuple[tuple[str, pa.DataType | None], ...]
    ids: tuple[tuple[str, pa.DataType], ...]
    time: tuple[str, pa.DataType] | None
    time_format: str | None


@dataclass(frozen=True)
class JsonPiece(Piece):
    """Bytes `start` to `stop` of a file: whole lines."""

    path: Path
    display_name: str
    format: JsonFormat
    start: int
    stop: int

    @property
    def size_bytes(self) -> int:
        return self.stop - self.start

    @property
    def rows_estimate(self) -> int:
        head = self._bytes(_SAMPLE_BYTES)
        return int(self.size_bytes * max(1, head.count(b"\n")) / len(head))

    def read(self) -> pa.Table:
        data = self._bytes()
        table = self._parsed(data)
        if table is None:
            table = self._parsed_by_python(data)
        ids, form = dict(self.format.ids), self.format
        for index, name in enumerate(table.column_names):
            column = table.column(name)
            if name in ids:
                column = as_ids(column, ids[name], name, self.place)
            elif form.time is not None and name == form.time[0]:
                column = column_times(column, form.time[1], form.time_format, name, self.display_name, self.place)
            elif column.type == TEXT:  # ratings
                column = parse_times(column, pa.float64(), None, name, self.place)
            table = table.set_column(index, name, column)
        return table

    def place(self, row: int) -> str:
        lines = (number for number, line in enumerate(self._bytes().split(b"\n"), 1) if line.strip())
        return self._line(next(itertools.islice(lines, row, None)))

    def _bytes(self, limit: int = -1) -> bytes:
        size = self.size_bytes if limit < 0 else min(limit, self.size_bytes)
        return read_bytes(self.path, self.display_name, self.start, size)

    def _line(self, number: int) -> str:
        """Location of a line of the piece (from 1), for messages."""
        return f"{self.display_name}, line {count_lines(self.path, self.start) + number}"

    def _parsed(self, data: bytes) -> pa.Table | None:
        """The log's columns, by Arrow; None if they hold values of other types, or lines that are not one object."""
        raw = dict(self.format.raw)
        if None in raw.values():
            return None
        try:
            table = pa.json.read_json(
                pa.py_buffer(data),
                read_options=pa.json.ReadOptions(use_threads=False, block_size=len(data) + 1),
                parse_options=pa.json.ParseOptions(
                    explicit_schema=pa.schema(raw), newlines_in_values=False, unexpected_field_behavior="ignore"
                ),
            ).select(list(raw))
            table.validate(full=True)  # Arrow's parser accepts bytes that are not UTF-8
        except (pa.ArrowInvalid, UnicodeDecodeError):
            return None
        return table if table.num_rows == _lines(data) else None

    def _parsed_by_python(self, data: bytes) -> pa.Table:
        """The log's columns as text.

        Raises:
            UserError: a line is not an object, or a value neither a number nor text.
        """
        found: dict[str, list[str | None]] = {name: [] for name, _ in self.format.raw}
        for row, record in enumerate(records(data, self._line)):
            for name, texts in found.items():
                try:
                    texts.append(spelled(record.get(name)))
                except ValueError:
                    raise UserError(
                        f"{self.place(row)}: column {name!r} holds {record[name]!a:.60}, expected a number or UTF-8 "
                        "text; fix or remove that line"
                    ) from None
        return pa.table({name: pa.array(texts, TEXT) for name, texts in found.items()})


def _lines(data: bytes) -> int:
    """Number of lines that are not blank."""
    lines = data.split(b"\n")
    return len(lines) - sum(not line or line.isspace() for line in lines)


def json_lines_log(
    sources: Sequence[SourceFile], columns: LogColumns | None, with_rating: bool, options: ReadOptions
) -> Log:
    """A log of files with one JSON object a line.

    The first records of all files determine the types: ids are text everywhere if they are text in one record, and
    times share one type.

    Args:
        sources: each `is_json_lines`.

    Raises:
        UserError: a column is missing; a line is not an object; times are neither numbers nor dates,
            or numbers in one file and dates in another.
    """
    samples = [sample_of(source) for source in sources]
    columns = columns or recognise(samples[0].source.display_name, samples[0].names, with_rating, options.times)
    for sample in samples:
        require_columns(sample.source.display_name, sample.names, columns)
    text = {
        name: any(_is_text(value) for sample in samples for value in sample.values(name))
        for name in (columns.user, columns.item)
    }
    targets = id_types(columns, text, options)
    ids = tuple(targets.items())
    time = None
    for name in columns.names:
        if name == columns.time:
            targets[name] = _time_type(samples, name, options.time_format)
            time = name, targets[name]
    pieces: list[Piece] = []
    for sample in samples:
        raw = {name: raw_type(sample.values(name), target) for name, target in targets.items()}
        if columns.rating is not None:
            raw[columns.rating] = pa.float64()
        pieces += _pieces(sample.source, JsonFormat(tuple(raw.items()), ids, time, options.time_format))
    return Log("JSON log", columns, pieces)


def _is_text(value: Any) -> bool:
    """Whether an id is text, or an integer beyond 64 bits."""
    return isinstance(value, str) or (isinstance(value, int) and not -(2**63) <= value < 2**63)


def _time_type(samples: Sequence[Sample], name: str, time_format: str | None) -> pa.DataType:
    if time_format is not None:
        return formatted_type(time_format)
    found = [(sample.source.display_name, [str(value).strip() for value in sample.values(name)]) for sample in samples]
    kinds = [(display_name, time_kind(values, name, display_name)) for display_name, values in found if values]
    return common_time(kinds) if kinds else pa.int64()


def _pieces(source: SourceFile, form: JsonFormat) -> list[Piece]:
    with source.path.open("rb") as file:
        start = len(BYTE_ORDER_MARK) if file.read(len(BYTE_ORDER_MARK)) == BYTE_ORDER_MARK else 0
    cuts = [start, *line_cuts(source.path, start, PIECE_BYTES), source.path.stat().st_size]
    return [JsonPiece(source.path, source.display_name, form, a, b) for a, b in itertools.pairwise(cuts)]
