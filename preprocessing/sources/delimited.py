"""CSV, TSV and similar text, one file or many, as one log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from preprocessing.sources import text
from preprocessing.sources.column_names import known_columns, recognise, require_columns
from preprocessing.sources.dates import formatted_type, time_kind
from preprocessing.sources.dialect import Dialect
from preprocessing.sources.fields import id_type, is_respelled, without_words
from preprocessing.sources.log import DETECT, Log, LogColumns, Piece, ReadOptions
from preprocessing.sources.quoting import Quoting, quoting_of
from preprocessing.sources.sniff import Layout, column_heads, header_layout, named_layout
from preprocessing.sources.text import TextFormat, has_rows, text_pieces
from preprocessing.sources.times import common_time
from preprocessing.sources.unpack import SourceFile, listed
from workflows.common.progress import console


@dataclass(frozen=True)
class _TextFile:
    """A file, how it is read, and the column types its first rows suggest (no entry: no values there).

    `respelled` are columns with values that Arrow's CSV reader does not take for an integer, number or date.
    """

    source: SourceFile
    layout: Layout
    dialect: Dialect
    quoting: Quoting
    guesses: dict[str, pa.DataType]
    respelled: frozenset[str]


def csv_log(
    sources: Sequence[SourceFile], columns: LogColumns | None, with_rating: bool, options: ReadOptions = DETECT
) -> Log:
    """A log of text files.

    The first rows of all files determine the types: ids are text everywhere if they are text in one file, and times
    share one type. A value that contradicts its column's type is then an error that names its row.

    Raises:
        UserError: no file has rows; a column is missing, repeated or unnamed; a quote is not closed; times are
            neither numbers nor dates, or numbers in one file and dates in another.
    """
    layouts = _layouts(sources, columns, with_rating, options)
    if columns is None:
        source, layout = layouts[0]
        columns = recognise(source.display_name, layout.names, with_rating, options.times)
    files = [_opened(source, layout, columns, options) for source, layout in layouts]
    return Log("CSV log", columns, _pieces(files, columns, options))


def _layouts(
    sources: Sequence[SourceFile], columns: LogColumns | None, with_rating: bool, options: ReadOptions
) -> list[tuple[SourceFile, Layout]]:
    """The files that have rows or lack the log's columns, or the first one, with their layouts."""

    def has_columns(names: Sequence[str]) -> bool:
        return (
            set(columns.names) <= set(names)
            if columns
            else known_columns(names, with_rating, options.times) is not None
        )

    found = []
    for source in sources:
        if not has_rows(source.path, 0) and len(sources) > 1:
            continue
        if options.names is not None:
            layout = named_layout(source.path, source.display_name, options.names, options)
        else:
            layout = header_layout(source.path, source.display_name, options, has_columns)
        found.append((source, layout))
    commented = [f"{source.display_name} ({layout.comments:,})" for source, layout in found if layout.comments]
    if commented:
        console.print(f"left out as comments, lines that begin with # or % before the first row: {listed(commented)}")
    # A single line that is not the log's header may be a row.
    wanted = [one for one in found if has_rows(one[0].path, one[1].start) or not has_columns(one[1].names)]
    return wanted or found[:1]


def _opened(source: SourceFile, layout: Layout, columns: LogColumns, options: ReadOptions) -> _TextFile:
    names = layout.names
    require_columns(source.display_name, names, columns, from_header=options.names is None)
    dialect = Dialect(layout.delimiter, comment=options.comment)
    quoting = quoting_of(
        source.path, source.display_name, dialect, len(names), start=layout.start,
        time=None if columns.time is None else names.index(columns.time), given=options.quoting, every=text.PIECE_BYTES,
    )  # fmt: skip
    dialect = replace(dialect, quoted=quoting.in_use)
    heads = column_heads(source.path, source.display_name, dialect, layout, quoting.cuts is not None, columns.names)
    guesses = {name: id_type(heads[name]) for name in (columns.user, columns.item) if without_words(heads[name])}
    times = [] if columns.time is None else without_words(heads[columns.time])
    if columns.time is not None and options.time_format is not None:
        guesses[columns.time] = formatted_type(options.time_format)
    elif columns.time is not None and times:
        guesses[columns.time] = time_kind(times, columns.time, source.display_name)
    ids = (columns.user, columns.item)
    respelled = frozenset(
        name for name, values in heads.items() if any(is_respelled(value, name in ids) for value in values)
    )
    return _TextFile(source, layout, dialect, quoting, guesses, respelled)


def _pieces(files: Sequence[_TextFile], columns: LogColumns, options: ReadOptions) -> list[Piece]:
    roles = {"user": columns.user, "item": columns.item}
    ids = {name: pa.int64() for name in roles.values()}
    ids |= {name: pa.string() for file in files for name in ids if file.guesses.get(name) == pa.string()}
    ids |= {roles[role]: pa.int64() for role in options.whole_ids} | {
        roles[role]: pa.string() for role in options.text_ids
    }
    remedies = {
        name: f"fix or remove that line, or read these ids as text: --text-ids {role}"
        for role, name in roles.items()
        if role not in options.whole_ids
    }
    time = None
    if columns.time is not None:
        times = [(one.source.display_name, one.guesses[columns.time]) for one in files if columns.time in one.guesses]
        time = columns.time, common_time(times) if times else pa.int64()
    pieces: list[Piece] = []
    for file in files:
        types = dict(ids)
        if time is not None:
            types[time[0]] = pa.string() if options.time_format is not None else file.guesses.get(*time)
        if columns.rating:
            types[columns.rating] = pa.float64()
        form = TextFormat(
            file.dialect,
            file.layout.names,
            types=tuple(types.items()),
            ids=tuple(name for name, kind in ids.items() if kind == pa.int64()),
            time=time,
            time_format=options.time_format,
            spelled=tuple(file.respelled),
            remedies=remedies,
        )
        pieces += text_pieces(file.source.path, form, file.source.display_name, file.layout.start, file.quoting)
    return pieces
