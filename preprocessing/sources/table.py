"""Parquet logs as pieces: a row group each."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.sources.log import Columns, Piece
from preprocessing.sources.text import require_columns
from workflows.errors import UserError


@dataclass(frozen=True)
class ParquetPiece(Piece):
    """One row group of a Parquet file."""

    path: Path
    columns: tuple[str, ...]
    row_group: int
    size_bytes: int = 0

    def read(self) -> pa.Table:
        try:
            return pq.ParquetFile(self.path).read_row_group(self.row_group, list(self.columns), use_threads=False)
        except (pa.ArrowException, OSError) as err:
            raise UserError(
                f"{self.path}, row group {self.row_group}: not readable ({err}); is the file whole?"
            ) from None


def parquet_pieces(path: Path, columns: Columns) -> list[Piece]:
    """Pieces of a Parquet file.

    Raises:
        UserError: unreadable, no rows, a column is missing or of a type that fits no id, time or rating.
    """
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as err:
        raise UserError(f"{path}: not a readable Parquet file ({err}); is it whole?") from None
    schema = file.schema_arrow
    require_columns(str(path), schema.names, columns)
    if not file.metadata.num_rows:
        raise UserError(f"{path} has no rows; expected a log of user, item and time")
    for name in columns.names:
        if name in (columns.user, columns.item):
            expected, fits = "integers or text", _is_id
        else:
            expected, fits = ("numbers or dates", _is_time) if name == columns.time else ("numbers", _is_number)
        if not fits(value_type(schema.field(name).type)):
            raise UserError(
                f"{path}: column {name!r} holds {schema.field(name).type}, expected {expected}; "
                "name another column or convert it"
            )
    groups = (file.metadata.row_group(index) for index in range(file.num_row_groups))
    return [
        ParquetPiece(path, tuple(columns.names), index, group.total_byte_size)
        for index, group in enumerate(groups)
        if group.num_rows
    ]


def value_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values of a column that may be dictionary-encoded."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _is_id(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _is_time(kind: pa.DataType) -> bool:
    return _is_number(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind)
