"""Parquet logs, one file or many, with one piece per row group."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from preprocessing.sources.column_names import recognise
from preprocessing.sources.ids import as_ids
from preprocessing.sources.log import DETECT, Log, LogColumns, Piece, ReadOptions
from preprocessing.sources.parquet_types import Footer, ParquetFormat, format_of, value_type
from preprocessing.sources.times import column_times
from preprocessing.sources.unpack import SourceFile
from workflows.common.errors import UserError

_TABLE_ROWS = 1 << 20


@dataclass(frozen=True)
class ParquetPiece(Piece):
    """One row group of a Parquet file; it begins at row `first_row` (from 0) of the file."""

    path: Path
    display_name: str
    format: ParquetFormat
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
        names = self.format.columns.names
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(
                    _TABLE_ROWS, row_groups=[self.row_group], columns=names, use_threads=False
                ):
                    yield self._converted(pa.Table.from_batches([batch]).select(names), first_row)
                    first_row += batch.num_rows
        except (pa.ArrowException, OSError, UnicodeDecodeError) as err:
            raise UserError(
                f"{self.display_name}, row group {self.row_group}: not readable ({err}); is the file complete?"
            ) from None

    def _converted(self, table: pa.Table, first_row: int) -> pa.Table:
        form, ids = self.format, dict(self.format.ids)

        def place(row: int) -> str:
            return self.place(first_row + row)

        for index, name in enumerate(table.column_names):
            column = pc.cast(table.column(name), value_type(table.schema.field(name).type))
            if name in ids:
                column = as_ids(column, ids[name], name, place)
            elif name == form.columns.time:
                column = column_times(column, form.time, form.time_format, name, self.display_name, place)
            elif pa.types.is_decimal(column.type):
                column = pc.cast(column, pa.float64())
            table = table.set_column(index, name, column)
        return table

    def place(self, row: int) -> str:
        return f"{self.display_name}, row {self.first_row + row + 1}"


def parquet_log(
    sources: Sequence[SourceFile], columns: LogColumns | None, with_rating: bool, options: ReadOptions = DETECT
) -> Log:
    """A log of Parquet files.

    Raises:
        UserError: a file is unreadable; no file has rows; a column is missing, or its type does not suit its role or
            conflicts with another file.
    """
    files = [file for file in map(_footer, sources) if file.metadata.num_rows]
    if not files:
        raise UserError(f"{sources[0].display_name} has no rows; expected a log of user, item and time")
    columns = columns or recognise(files[0].source.display_name, files[0].schema.names, with_rating, options.times)
    form = format_of(files, columns, options)
    return Log("Parquet log", columns, [piece for file in files for piece in _row_groups(file, form)])


def _footer(source: SourceFile) -> Footer:
    try:
        with pq.ParquetFile(source.path) as file:  # close at once: there may be more files than the limit on open files
            return Footer(source, file.schema_arrow, file.metadata)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as err:
        raise UserError(f"{source.display_name}: not a readable Parquet file ({err}); is it complete?") from None


def _row_groups(file: Footer, form: ParquetFormat) -> list[Piece]:
    pieces: list[Piece] = []
    source, first_row = file.source, 0
    for index in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(index)
        if group.num_rows:
            pieces.append(
                ParquetPiece(
                    source.path, source.display_name, form, index, first_row, group.num_rows, group.total_byte_size
                )
            )
        first_row += group.num_rows
    return pieces
