"""Recognise what `--input` is by its content, never by its name alone."""

from __future__ import annotations

from pathlib import Path

from preprocessing.sources.log import Columns, Log
from preprocessing.sources.movielens import RATINGS_FILES, movielens_file, unzip_ratings
from preprocessing.sources.table import parquet_log
from preprocessing.sources.text import csv_log, first_lines
from workflows.errors import UserError

# Column names that need no --user, --item, --time: MovieLens', and those of the reference's own data sets.
_KNOWN_COLUMNS = (
    Columns(user="user_id", item="item_id", time="timestamp"),
    Columns(user="userId", item="movieId", time="timestamp"),
    Columns(user="user", item="item", time="time"),
)


def open_log(path: Path, columns: Columns | None, scratch: Path) -> Log:
    """Open a raw log.

    Args:
        path: a MovieLens file, folder or zip; or a CSV, TSV or Parquet file.
        columns: the columns of a CSV or Parquet log; None to recognise them.
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
    head = _head(path)
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")) or path.suffix == ".zip":
        path = unzip_ratings(path, scratch)
        head = _head(path)
    if head.startswith(b"PAR1"):
        found = columns or _recognise(path, tuple(_parquet_names(path)))
        return Log("Parquet log", found, parquet_log(path, found))
    if columns is None:
        log = movielens_file(path)
        if log is not None:
            return log
        header = first_lines(path, 1)[0]
        delimiter = max(("\t", ";", "|", ","), key=header.count)
        columns = _recognise(path, tuple(name.strip().strip('"') for name in header.split(delimiter)))
    return Log("CSV log", columns, csv_log(path, columns))


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
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path).names
    except (pa.ArrowException, OSError) as err:
        raise UserError(f"{path}: not a readable Parquet file ({err}); is it whole?") from None


def _recognise(path: Path, names: tuple[str, ...]) -> Columns:
    for columns in _KNOWN_COLUMNS:
        if set(columns.names) <= set(names):
            rating = "rating" if "rating" in names else None
            return Columns(user=columns.user, item=columns.item, time=columns.time, rating=rating)
    raise UserError(
        f"{path}: which columns hold user, item and time? Name them with --user, --item and --time; "
        f"its columns are {', '.join(map(repr, names))}"
    )
