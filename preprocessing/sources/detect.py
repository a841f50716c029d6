"""Recognise what `--input` is by its content, never by its name alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.sources.log import Columns, Log
from preprocessing.sources.movielens import RATINGS_FILES, movielens_log, unzip_ratings
from preprocessing.sources.table import parquet_pieces
from preprocessing.sources.text import csv_pieces, header_of
from workflows.errors import UserError

# Column names that need no --user, --item, --time: MovieLens', and those of the reference's own data sets.
_KNOWN_COLUMNS = (
    Columns(user="user_id", item="item_id", time="timestamp", rating="rating"),
    Columns(user="userId", item="movieId", time="timestamp", rating="rating"),
    Columns(user="user", item="item", time="time", rating="rating"),
)


def open_log(path: Path, columns: Columns | None, with_rating: bool, scratch: Path) -> Log:
    """Open a raw log.

    Args:
        path: a MovieLens file, folder or zip; or a CSV, TSV or Parquet file.
        columns: the columns of a CSV or Parquet log; None to recognise them.
        with_rating: whether ratings are wanted; otherwise their column is not even read.
        scratch: an empty folder for what must be unpacked.

    Raises:
        UserError: it is not there, is empty, or is none of these.
    """
    if not path.exists():
        raise UserError(
            f"{path} does not exist; --input takes a MovieLens file, folder or zip, or a CSV or Parquet log"
        )
    if path.is_dir():
        path = _log_in(path)
    shown, head = str(path), _head(path)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) or path.suffix == ".zip":
        archive, path = path, unzip_ratings(path, scratch)
        shown, head = f"{path.name} in {archive}", _head(path)
    if head.startswith(b"PAR1"):
        found = columns or _recognise(shown, _parquet_names(path), with_rating)
        return Log("Parquet log", found, parquet_pieces(path, found))
    log = movielens_log(path, shown, with_rating) if columns is None else None
    if log is not None:
        return log
    found = columns or _recognise(shown, header_of(path, shown)[1], with_rating)
    return Log("CSV log", found, csv_pieces(path, found, shown))


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(4)


def _log_in(folder: Path) -> Path:
    """The ratings file of a MovieLens folder (or of the one folder in it, as zips unpack)."""
    for place in [folder, *sorted(child for child in folder.iterdir() if child.is_dir())]:
        for name in RATINGS_FILES:
            if (place / name).is_file():
                return place / name
    raise UserError(f"{folder} holds none of {', '.join(RATINGS_FILES)}; pass the log file itself as --input")


def _parquet_names(path: Path) -> list[str]:
    try:
        return pq.read_schema(path).names
    except (pa.ArrowException, OSError) as err:
        raise UserError(f"{path}: not a readable Parquet file ({err}); is it whole?") from None


def _recognise(shown: str, names: Sequence[str], with_rating: bool) -> Columns:
    for known in _KNOWN_COLUMNS:
        columns = known if with_rating else known.without_rating()
        if set(columns.names) <= set(names):
            return columns
    wanted = "user, item, time and rating" if with_rating else "user, item and time"
    raise UserError(
        f"{shown}: which columns hold {wanted}? Name them with --user, --item, --time (and --rating); "
        f"its columns are {', '.join(map(repr, names))}"
    )
