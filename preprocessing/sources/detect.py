"""Recognise the format of `--input` by its content, never by name alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from preprocessing.sources.delimited import csv_log
from preprocessing.sources.inputs import input_files
from preprocessing.sources.json_lines import is_json_lines, json_lines_log
from preprocessing.sources.log import DETECT, Log, LogColumns, ReadOptions
from preprocessing.sources.movielens import movielens_log
from preprocessing.sources.parquet import parquet_log
from preprocessing.sources.unpack import SourceFile, unpacked
from workflows.common.errors import UserError


def open_log(
    inputs: str | Path | Sequence[str | Path],
    columns: LogColumns | None,
    with_rating: bool,
    scratch: Path,
    options: ReadOptions = DETECT,
) -> Log:
    """Open a raw log.

    Args:
        inputs: MovieLens files, folders or zips; or CSV, TSV or Parquet files, gzipped or not, their folders, and
            glob patterns. All inputs form one log.
        columns: the columns of a CSV or Parquet log; None to recognise them.
        with_rating: whether to read ratings.
        scratch: an empty folder for unpacked files.
        options: how to read the files where they do not say.

    Raises:
        UserError: the input is missing, empty, of an unknown format, or of several formats.
    """
    files = input_files([inputs] if isinstance(inputs, str | Path) else inputs)
    sources = [unpacked(file, scratch / str(index)) for index, file in enumerate(files)]
    sources = [source for source in sources if source.path.stat().st_size] or sources[:1]
    log = _recognised(sources, columns, with_rating, options)
    return replace(log, name=log.name if len(files) == 1 else f"{log.name}, {len(files)} files", files=files)


def _recognised(
    sources: Sequence[SourceFile], columns: LogColumns | None, with_rating: bool, options: ReadOptions
) -> Log:
    names = options.names
    parquet = [source for source in sources if source.head == b"PAR1"]
    if parquet and len(parquet) < len(sources):
        other = next(source for source in sources if source not in parquet)
        raise UserError(f"{parquet[0].display_name} is Parquet, {other.display_name} is not; pass files of one format")
    if parquet and names is not None:
        raise UserError(f"{parquet[0].display_name} is Parquet, which names its columns; leave out --columns")
    if parquet:
        return parquet_log(parquet, columns, with_rating, options)
    json = [source for source in sources if is_json_lines(source)]
    if json and len(json) < len(sources):
        other = next(source for source in sources if source not in json)
        raise UserError(f"{json[0].display_name} is JSON, {other.display_name} is not; pass files of one format")
    if json:
        return json_lines_log(json, columns, with_rating, options)
    if names is not None and len(set(names)) < len(names):
        raise UserError(f"--columns should name each column once, got {','.join(names)}")
    log = movielens_log(sources, with_rating, options) if columns is None and names is None else None
    return log or csv_log(sources, columns, with_rating, options)
