"""CSV, TSV and similar text, one file or many, as one log."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from preprocessing.sources.column_names import recognise, require_columns
from preprocessing.sources.fields import holds, id_type, time_type
from preprocessing.sources.log import Log, LogColumns, Piece, ReadOptions
from preprocessing.sources.sniff import column_heads, delimiter_for, header_of
from preprocessing.sources.text import TextFormat, has_rows, text_pieces
from preprocessing.sources.times import common_time
from preprocessing.sources.unpack import SourceFile
from workflows.common.errors import UserError

_POINTED = re.compile(r"-?\d+\.0+")


@dataclass(frozen=True)
class _Layout:
    """Layout of a file, and the column types its first rows suggest (no entry: no values there)."""

    source: SourceFile
    delimiter: str
    names: tuple[str, ...]
    guesses: dict[str, pa.DataType]


def csv_log(sources: Sequence[SourceFile], columns: LogColumns | None, with_rating: bool, options: ReadOptions) -> Log:
    """A log of text files.

    The first rows of all files determine the types: ids are text everywhere if they are text in one file, and times
    share one type. A value that contradicts its column's type is then an error that names its row.

    Raises:
        UserError: no file has rows; a column is missing, repeated or unnamed; a quote is not closed; times are
            neither numbers nor dates, or numbers in one file and dates in another.
    """
    names = options.names
    header = names is None
    sources = [source for source in sources if has_rows(source.path, header)] or sources[:1]
    layouts = []
    for source in sources:
        if names is None:
            delimiter, found = header_of(source.path, source.display_name)
        else:
            delimiter, found = delimiter_for(source.path, source.display_name, names), tuple(names)
        columns = columns or recognise(source.display_name, found, with_rating, options.times)
        require_columns(source.display_name, found, columns)
        layouts.append(_Layout(source, delimiter, found, _guess_types(source, delimiter, found, header, columns)))
    assert columns is not None  # there is at least one source
    return Log("CSV log", columns, _pieces(layouts, columns, header))


def _pieces(layouts: Sequence[_Layout], columns: LogColumns, header: bool) -> list[Piece]:
    ids = {
        name: pa.string() if any(layout.guesses.get(name) == pa.string() for layout in layouts) else pa.int64()
        for name in (columns.user, columns.item)
    }
    time = None
    if columns.time is not None:
        times = [(one.source.display_name, one.guesses[columns.time]) for one in layouts if columns.time in one.guesses]
        time = (columns.time, common_time(times) if times else pa.int64())
    pieces: list[Piece] = []
    for layout in layouts:
        types = ids | ({} if time is None else {time[0]: layout.guesses.get(*time)})
        if columns.rating:
            types[columns.rating] = pa.float64()
        form = TextFormat(
            layout.delimiter,
            layout.names,
            header,
            types=tuple(types.items()),
            ids=tuple(name for name, kind in ids.items() if kind == pa.int64()),
            time=time,
            quoted_newlines=True,
        )
        pieces += text_pieces(layout.source.path, form, layout.source.display_name)
    return pieces


def _guess_types(
    source: SourceFile, delimiter: str, names: Sequence[str], header: bool, columns: LogColumns
) -> dict[str, pa.DataType]:
    wanted = columns.without_rating().names
    heads = column_heads(source.path, source.display_name, delimiter, names, header, wanted)
    for name in (columns.user, columns.item):
        pointed = next((value for value in heads[name] if _POINTED.fullmatch(value)), None)
        if pointed is not None:
            raise UserError(
                f"{source.display_name}: column {name!r} holds the id {pointed}, the way integers are written if some "
                "are missing; write ids as integers, since 1.0 and 1 would be two ids"
            )
    guesses = {name: id_type(heads[name]) for name in (columns.user, columns.item) if heads[name]}
    if columns.time is not None and heads[columns.time]:
        times = heads[columns.time]
        kind = time_type(times)
        if not any(map(holds(kind), times)):
            raise UserError(
                f"{source.display_name}: column {columns.time!r} holds {times[0][:60]!r}; expected times as integers, "
                "numbers or ISO 8601 dates (2024-01-31, 2024-01-31T12:00:00); convert them"
            )
        guesses[columns.time] = kind
    return guesses
