"""The types that the columns of Parquet files become, decided over all files of a log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from preprocessing.sources.column_names import require_columns
from preprocessing.sources.dates import formatted_type, time_kind
from preprocessing.sources.ids import id_types, is_number, is_text, present
from preprocessing.sources.log import LogColumns, ReadOptions
from preprocessing.sources.times import common_time
from preprocessing.sources.unpack import SourceFile
from workflows.common.errors import UserError

_SAMPLE_ROWS = 1 << 12
_TABLE_ROWS = 1 << 20


@dataclass(frozen=True)
class ParquetFormat:
    """What the columns of all files of a log become.

    Attributes:
        ids: (column, int64 or text) of users and items.
        time: the common type of all times.
        time_format: of times spelled as text or in digits; None: ISO 8601 or numbers.
    """

    columns: LogColumns
    ids: tuple[tuple[str, pa.DataType], ...]
    time: pa.DataType
    time_format: str | None = None


@dataclass(frozen=True)
class Footer:
    """A Parquet file without its rows."""

    source: SourceFile
    schema: pa.Schema
    metadata: pq.FileMetaData

    def type_of(self, name: str) -> pa.DataType:
        return value_type(self.schema.field(name).type)


def format_of(files: Sequence[Footer], columns: LogColumns, options: ReadOptions) -> ParquetFormat:
    """The types of a log's columns.

    Raises:
        UserError: a column is missing, or its type does not suit its role or conflicts with another file; no text in
            the time column is a time.
    """
    for file in files:
        _check_types(file, columns)
    roles = (("user", columns.user), ("item", columns.item))
    text = {name: _ids_are_text(role, name, files, options) for role, name in roles}
    times = [
        (file.source.display_name, kind)
        for file in files
        for name in columns.names
        if name == columns.time and (kind := _time_type(file, name, options.time_format)) is not None
    ]
    time = common_time(times) if times else pa.int64()
    return ParquetFormat(columns, tuple(id_types(columns, text, options).items()), time, options.time_format)


def _check_types(file: Footer, columns: LogColumns) -> None:
    """Check each column of the log against its role."""
    require_columns(file.source.display_name, file.schema.names, columns)
    for name in columns.names:
        kind = file.type_of(name)
        expected, fits = "numbers", is_number(kind)
        if name in (columns.user, columns.item):
            expected, fits = "integers or text", fits or is_text(kind)
        elif name == columns.time:
            expected = "numbers, dates or text"
            fits = fits or is_text(kind) or pa.types.is_timestamp(kind) or pa.types.is_date(kind)
        if not fits:
            raise UserError(
                f"{file.source.display_name}: column {name!r} holds {file.schema.field(name).type}, expected "
                f"{expected}; name another column or convert it"
            )


def _ids_are_text(role: str, name: str, files: Sequence[Footer], options: ReadOptions) -> bool:
    """Whether an id column holds text, or integers of 2^63 or more.

    Raises:
        UserError: text in one file, integers in another, and no option says how to read them.
    """
    if role in options.text_ids | options.whole_ids:
        return False  # the option decides
    text = [file.source.display_name for file in files if is_text(file.type_of(name))]
    numbers = [file.source.display_name for file in files if not is_text(file.type_of(name))]
    if text and numbers:
        raise UserError(
            f"column {name!r} holds integers in {numbers[0]} and text in {text[0]}; convert one to the other's type, "
            f"or read both as text with --text-ids {role}"
        )
    unsigned = [file for file in files if pa.types.is_uint64(file.type_of(name))]
    return bool(text) or any(_greatest(file, name) >= 2**63 for file in unsigned)


def _greatest(file: Footer, name: str) -> int:
    """The greatest value of an integer column; 0 if it has none. Reads the column only if it lacks statistics."""
    metadata = file.metadata
    place = [metadata.schema.column(index).path for index in range(metadata.num_columns)].index(name)
    greatest, unknown = 0, []
    for group in range(metadata.num_row_groups):
        statistics = metadata.row_group(group).column(place).statistics
        if statistics is not None and statistics.has_min_max:
            greatest = max(greatest, statistics.max)
        else:
            unknown.append(group)
    return max((pc.max(values).as_py() or 0 for values in _batches(file, name, _TABLE_ROWS, unknown)), default=greatest)


def _time_type(file: Footer, name: str, time_format: str | None) -> pa.DataType | None:
    """The type of the times of a file; None if they are text, and all are missing."""
    kind = file.type_of(name)
    if pa.types.is_temporal(kind) and time_format is not None:
        raise UserError(f"{file.source.display_name}: column {name!r} holds {kind}; leave out --time-format")
    if time_format is not None:
        return formatted_type(time_format)
    if not is_text(kind):
        return kind
    for batch in _batches(file, name, _SAMPLE_ROWS):
        try:
            values = [value for value in present(batch, False).to_pylist() if value is not None]
        except pa.ArrowInvalid as err:
            raise UserError(
                f"{file.source.display_name}: column {name!r} is not UTF-8 text ({err}); convert it"
            ) from None
        if values:
            return time_kind(values, name, file.source.display_name)
    return None


def _batches(file: Footer, name: str, rows: int, row_groups: list[int] | None = None) -> Iterator[pa.ChunkedArray]:
    """The values of one column."""
    try:
        with pq.ParquetFile(file.source.path) as opened:
            for batch in opened.iter_batches(rows, row_groups=row_groups, columns=[name], use_threads=False):
                yield pc.cast(pa.chunked_array([batch.column(0)]), file.type_of(name))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as err:
        raise UserError(
            f"{file.source.display_name}: column {name!r} is not readable ({err}); is the file complete?"
        ) from None


def value_type(kind: pa.DataType) -> pa.DataType:
    """The value type of a column that may be dictionary-encoded."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind
