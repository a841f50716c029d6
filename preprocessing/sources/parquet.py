"""Parquet logs, one file or many, with one piece per row group."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from preprocessing.sources.column_names import recognise, require_columns
from preprocessing.sources.log import DETECT, Log, LogColumns, Piece, ReadOptions
from preprocessing.sources.times import as_time, common_time
from preprocessing.sources.unpack import SourceFile
from workflows.common.errors import UserError

_TABLE_ROWS = 1 << 20
_MAX_EXACT = {pa.float32(): 2.0**24, pa.float64(): 2.0**53}  # from here on, not every integer is representable


@dataclass(frozen=True)
class ParquetPiece(Piece):
    """One row group of a Parquet file; it begins at row `first_row` (from 0) of the file."""

    path: Path
    display_name: str
    columns: LogColumns
    time: pa.DataType | None
    row_group: int
    first_row: int
    n_rows: int
    size_bytes: int = 0

    @property
    def rows_estimate(self) -> int:
        return self.n_rows

    def read(self) -> pa.Table:
        return pa.concat_tables(self.tables())

    def tables(self) -> Iterator[pa.Table]:
        """The row group, decoded in batches of `_TABLE_ROWS` because it may span an entire huge file."""
        first_row = 0
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(
                    _TABLE_ROWS, row_groups=[self.row_group], columns=self.columns.names, use_threads=False
                ):
                    yield self._converted(pa.Table.from_batches([batch]).select(self.columns.names), first_row)
                    first_row += batch.num_rows
        except (pa.ArrowException, OSError) as err:
            raise UserError(
                f"{self.display_name}, row group {self.row_group}: not readable ({err}); is the file complete?"
            ) from None

    def _converted(self, table: pa.Table, first_row: int) -> pa.Table:
        for index, name in enumerate(table.column_names):
            column = pc.cast(table.column(name), value_type(table.schema.field(name).type))
            if name in (self.columns.user, self.columns.item):
                column = self._ids(name, column, first_row)
            elif name == self.columns.time and self.time is not None:
                column = as_time(column, self.time, self.display_name)
            elif pa.types.is_decimal(column.type):
                column = pc.cast(column, pa.float64())
            table = table.set_column(index, name, column)
        return table

    def place(self, row: int) -> str:
        return f"{self.display_name}, row {self.first_row + row + 1}"

    def _ids(self, name: str, column: pa.ChunkedArray, first_row: int) -> pa.ChunkedArray:
        try:
            return _as_ids(column)
        except pa.ArrowInvalid as err:
            # The first invalid row is the last row of the shortest invalid prefix.
            bad = bisect_left(range(len(column)), True, key=lambda row: not _are_ids(column.slice(0, row + 1)))
            raise UserError(
                f"{self.place(first_row + bad)}: column {name!r} holds {column[bad].as_py()!r}, expected ids as "
                f"integers below 2^63 (2^53 in float64, 2^24 in float32) or as UTF-8 text ({err}); convert that "
                "column to text"
            ) from None


def parquet_log(
    sources: Sequence[SourceFile], columns: LogColumns | None, with_rating: bool, options: ReadOptions = DETECT
) -> Log:
    """A log of Parquet files.

    Raises:
        UserError: a file is unreadable; no file has rows; a column is missing, or its type does not suit its role or
            conflicts with another file.
    """
    files = [(source, *_footer(source)) for source in sources]
    files = [(source, schema, metadata) for source, schema, metadata in files if metadata.num_rows]
    if not files:
        raise UserError(f"{sources[0].display_name} has no rows; expected a log of user, item and time")
    columns = columns or recognise(files[0][0].display_name, files[0][1].names, with_rating, options.times)
    types = [(source.display_name, _column_types(source, schema, columns)) for source, schema, _ in files]
    _require_one_kind_of_ids(types, columns)
    time = None
    if columns.time is not None:
        time = common_time([(display_name, kinds[columns.time]) for display_name, kinds in types])
    pieces = [piece for source, _, metadata in files for piece in _row_groups(source, metadata, columns, time)]
    return Log("Parquet log", columns, pieces)


def _footer(source: SourceFile) -> tuple[pa.Schema, pq.FileMetaData]:
    try:
        with pq.ParquetFile(source.path) as file:  # close at once: there may be more files than the limit on open files
            return file.schema_arrow, file.metadata
    except (pa.ArrowException, OSError) as err:
        raise UserError(f"{source.display_name}: not a readable Parquet file ({err}); is it complete?") from None


def _row_groups(
    source: SourceFile, metadata: pq.FileMetaData, columns: LogColumns, time: pa.DataType | None
) -> list[Piece]:
    pieces: list[Piece] = []
    first_row = 0
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        if group.num_rows:
            pieces.append(
                ParquetPiece(
                    source.path,
                    source.display_name,
                    columns,
                    time,
                    index,
                    first_row,
                    group.num_rows,
                    group.total_byte_size,
                )
            )
        first_row += group.num_rows
    return pieces


def _column_types(source: SourceFile, schema: pa.Schema, columns: LogColumns) -> dict[str, pa.DataType]:
    """Value types of the log's columns, each checked against its role."""
    require_columns(source.display_name, schema.names, columns)
    types = {name: value_type(schema.field(name).type) for name in columns.names}
    for name, kind in types.items():
        expected, fits = "numbers", _is_number(kind)
        if name in (columns.user, columns.item):
            expected, fits = "integers or text", fits or _is_text(kind)
        elif name == columns.time:
            expected, fits = "numbers or dates", fits or pa.types.is_timestamp(kind) or pa.types.is_date(kind)
        if not fits:
            raise UserError(
                f"{source.display_name}: column {name!r} holds {schema.field(name).type}, expected {expected}; "
                "name another column or convert it"
            )
    return types


def _require_one_kind_of_ids(types: Sequence[tuple[str, dict[str, pa.DataType]]], columns: LogColumns) -> None:
    for name in (columns.user, columns.item):
        text = [display_name for display_name, kinds in types if _is_text(kinds[name])]
        numbers = [display_name for display_name, kinds in types if not _is_text(kinds[name])]
        if text and numbers:
            raise UserError(
                f"column {name!r} holds integers in {numbers[0]} and text in {text[0]}; convert one to the other's type"
            )


def value_type(kind: pa.DataType) -> pa.DataType:
    """The value type of a column that may be dictionary-encoded."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_text(kind: pa.DataType) -> bool:
    # Impala and old Spark versions write text as plain binary.
    return (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_binary(kind)
    )


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or kind in _MAX_EXACT or pa.types.is_decimal(kind)


def _as_ids(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Integers as int64, text as large_string.

    Floats and decimals with only whole values become integers: pandas writes ids with gaps as float64 with NaN.

    Raises:
        pa.ArrowInvalid: a number is not whole or not exact, or bytes are not UTF-8.
    """
    if _is_text(column.type):
        return pc.cast(column, pa.large_string())
    if column.type in _MAX_EXACT:
        column = pc.if_else(pc.is_nan(column), None, column)
        if pc.any(pc.greater_equal(pc.abs(column), _MAX_EXACT[column.type])).as_py():
            raise pa.ArrowInvalid("too large for a float to be exact")
    return pc.cast(column, pa.int64())


def _are_ids(column: pa.ChunkedArray) -> bool:
    try:
        _as_ids(column)
    except pa.ArrowInvalid:
        return False
    return True
