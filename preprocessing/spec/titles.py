"""Display names of items: CSV or Parquet with an id and a title, or MovieLens' own files."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.sources.parquet_types import value_type
from workflows.common.errors import UserError, bounded

_MAX_BYTES = 1 << 30
_ID_COLUMNS = ("item", "item_id", "itemId", "movieId", "movie_id", "id", "original")
_TITLE_COLUMNS = ("title", "movie_title", "name")


def read_titles(path: Path) -> dict[str, str]:
    """Titles by item id (as text, spelled as in a log).

    Args:
        path: Parquet or CSV/TSV with a header that names an id and a title column; `u.item` (MovieLens 100K,
            `|`) and `movies.dat` (1M and 10M, `::`) have no header and start with id and title.

    Raises:
        UserError: the file is unreadable or too large, or has no recognisable id and title columns.
    """
    try:
        size = path.stat().st_size
        if not path.is_file():
            raise UserError(f"{path}: not readable (not a file)")
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as err:
        raise UserError(f"{path}: not readable ({err.strerror})") from None
    if size > _MAX_BYTES:
        raise UserError(f"{path} has {size:,} bytes; a list of titles has at most {_MAX_BYTES:,}")
    return _from_parquet(path) if magic == b"PAR1" else _from_text(path)


def _pick(names: list[str], known: tuple[str, ...], what: str, path: Path) -> str:
    for name in known:
        if name in names:
            return name
    raise UserError(
        f"{path}: no {what} column; expected one of {', '.join(known)}, got {bounded(', '.join(names), 200)}"
    )


def _from_parquet(path: Path) -> dict[str, str]:
    try:
        schema = pq.read_schema(path)
        id_name = _pick(schema.names, _ID_COLUMNS, "id", path)
        title_name = _pick(schema.names, _TITLE_COLUMNS, "title", path)
        table = pq.read_table(path, columns=[id_name, title_name])
        for name, is_right, expected in (
            (id_name, lambda kind: _is_text(kind) or pa.types.is_integer(kind), "integers or text"),
            (title_name, lambda kind: _is_text(kind) or pa.types.is_null(kind), "text"),
        ):
            kind = value_type(table.schema.field(name).type)
            if not is_right(kind):
                raise UserError(f"{path}: column {name!r} should hold {expected}, got {bounded(str(kind))}")
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as err:
        raise UserError(f"{path}: not a readable Parquet file ({bounded(str(err), 200)})") from None
    rows = zip(*(table.column(name).to_pylist() for name in (id_name, title_name)), strict=True)
    return {str(item): title or "" for item, title in rows if item is not None}


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _from_text(path: Path) -> dict[str, str]:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")  # MovieLens before 20M
    lines = [line.rstrip("\r") for line in text.split("\n")]  # titles may contain other line separators
    if not text.strip():
        raise UserError(f"{path} is empty")
    for delimiter in ("::", "|"):
        rows = [line.split(delimiter) for line in lines if line]
        if all(len(row) >= 2 and row[0].isdigit() for row in rows):
            return {row[0]: row[1] for row in rows}
    delimiter = max(("\t", ";", ","), key=lines[0].count)
    reader = csv.DictReader(lines, delimiter=delimiter)
    try:
        names = list(reader.fieldnames or [])
        id_name, title_name = _pick(names, _ID_COLUMNS, "id", path), _pick(names, _TITLE_COLUMNS, "title", path)
        return {row[id_name]: row[title_name] or "" for row in reader if row[id_name]}
    except csv.Error as err:
        raise UserError(f"{path}: not readable as delimited text ({err}); check its quoting") from None
