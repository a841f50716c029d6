"""Columns of a log that stand in the paths of its files, as Hive and Spark write them: date=2024-01-31/part-0.csv."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from preprocessing.sources.column_names import known_columns, recognise
from preprocessing.sources.dates import formatted_type, parse_times, time_kind
from preprocessing.sources.fields import NULLS, PADDED, describe, holds
from preprocessing.sources.headers import columns_of
from preprocessing.sources.log import Log, LogColumns, Piece, ReadOptions
from preprocessing.sources.unpack import SourceFile
from workflows.common.errors import UserError


class PathPiece(Piece):
    """A piece of a file, and the columns that stand in the file's path.

    Args:
        values: one value each, by column name.
    """

    def __init__(self, piece: Piece, values: dict[str, pa.Array]) -> None:
        self.path, self._piece, self._values = piece.path, piece, values

    def read(self) -> pa.Table:
        return self._with_values(self._piece.read())

    def tables(self) -> Iterator[pa.Table]:
        return map(self._with_values, self._piece.tables())

    def _with_values(self, table: pa.Table) -> pa.Table:
        for name, value in self._values.items():
            table = table.append_column(name, pa.repeat(value[0], table.num_rows))
        return table

    def place(self, row: int) -> str:
        return self._piece.place(row)

    @property
    def size_bytes(self) -> int:
        return self._piece.size_bytes

    @property
    def rows_estimate(self) -> int:
        return self._piece.rows_estimate


def log_with_path_columns(
    sources: Sequence[SourceFile],
    columns: LogColumns | None,
    with_rating: bool,
    options: ReadOptions,
    read: Callable[[LogColumns | None, ReadOptions], Log],
) -> Log:
    """A log of files with columns in their paths, which count if the files themselves do not have them.

    Args:
        columns: the columns of the log; None to recognise them.
        read: reads the files as a log of columns that they have.

    Raises:
        UserError: a column stands in the path of one file and not of another, or its values do not suit its role; both
            ids stand in the path.
    """
    columns = columns or _recognised(sources[0], with_rating, options)
    in_path = {} if columns is None else _in_path(sources, columns, options)
    if columns is None or not in_path:
        return read(columns, options)
    log = read(_in_files(columns, in_path), _for_files(options, in_path))
    values: dict[str, dict[str, pa.Array]] = {str(source.path): {} for source in sources}
    for role, name in in_path.items():
        column = _typed(sources, role, name, options)
        for number, source in enumerate(sources):
            values[str(source.path)][name] = column.slice(number, 1)
    return replace(log, columns=columns, pieces=[PathPiece(piece, values[str(piece.path)]) for piece in log.pieces])


def _recognised(source: SourceFile, with_rating: bool, options: ReadOptions) -> LogColumns | None:
    """The columns of a log whose names are well known; None if the file alone decides."""
    try:
        own = columns_of(
            source, options, lambda names: known_columns([*names, *source.keys], with_rating, options.times) is not None
        )
        columns = recognise(source.display_name, [*own, *source.keys], with_rating, options.times)
    except UserError:
        return None
    return None if {*columns.names} <= {*own} else columns


def _in_path(sources: Sequence[SourceFile], columns: LogColumns, options: ReadOptions) -> dict[str, str]:
    """The columns that stand in the paths, by role.

    Raises:
        UserError: a column is in the path of one file and not of another.
    """

    def own_columns(source: SourceFile) -> tuple[str, ...]:
        return columns_of(source, options, lambda names: {*columns.names} <= {*names, *source.keys})

    own = own_columns(sources[0])
    found = {}
    for role, name in columns.by_role.items():
        keyed = next((source for source in sources if name in source.keys), None)
        if name in own or keyed is None:
            continue
        found[role] = name
        for source in sources:
            if name not in source.keys or name in own_columns(source):
                raise UserError(
                    f"column {name!r} stands in the path of {keyed.display_name}, and not, or not only, in that of "
                    f"{source.display_name}; pass files of one layout"
                )
    return found


def _in_files(columns: LogColumns, in_path: dict[str, str]) -> LogColumns:
    """The columns to read from the files: an id that stands in the path is replaced by the other one."""
    if {"user", "item"} <= in_path.keys():
        raise UserError(
            f"columns {columns.user!r} and {columns.item!r} both stand in the paths; a file has to hold one of them"
        )
    columns = replace(columns, user=columns.item) if "user" in in_path else columns
    columns = replace(columns, item=columns.user) if "item" in in_path else columns
    columns = columns.without_time() if "time" in in_path else columns
    return columns.without_rating() if "rating" in in_path else columns


def _for_files(options: ReadOptions, in_path: dict[str, str]) -> ReadOptions:
    """How to read the files: what holds for an id that they have holds for the role that it stands in for, too."""
    for role, own in (("user", "item"), ("item", "user")):
        if role in in_path:
            both = frozenset((role, own))
            text, whole = ((both if own in roles else frozenset()) for roles in (options.text_ids, options.whole_ids))
            return replace(options, text_ids=text, whole_ids=whole)
    return options


def _typed(sources: Sequence[SourceFile], role: str, name: str, options: ReadOptions) -> pa.Array:
    """The values of a column that stands in the paths, one for each file.

    Raises:
        UserError: a value does not suit the role.
    """
    spelled = [(source.keys[name] or "").strip() for source in sources]
    texts = [None if text in NULLS else text for text in spelled]
    present = [text for text in texts if text is not None]
    if role == "rating":
        kind = pa.float64()
    elif role == "time":
        return _times(sources, texts, name, options)
    else:
        whole = all(holds(pa.int64())(text) and not re.match(PADDED, text) for text in present)
        as_text = role in options.text_ids or not (whole or role in options.whole_ids)
        kind = pa.large_string() if as_text else pa.int64()
    for source, text in zip(sources, texts, strict=True):
        if text is not None and not holds(kind)(text):
            raise UserError(f"{source.display_name}: {name}={text} in the path should be {describe(kind)}; rename it")
    return pc.cast(pa.array(texts, pa.string()), kind)


def _times(sources: Sequence[SourceFile], texts: list[str | None], name: str, options: ReadOptions) -> pa.Array:
    def place(row: int) -> str:
        return f"the path of {sources[row].display_name}"

    first = next((row for row, text in enumerate(texts) if text is not None), None)
    kind = pa.int64()
    if options.time_format is not None:
        kind = formatted_type(options.time_format)
    elif first is not None:
        kind = time_kind([text for text in texts if text is not None], name, place(first))
    spelled = pa.chunked_array([pa.array(texts, pa.large_string())])
    return parse_times(spelled, kind, options.time_format, name, place).combine_chunks()
