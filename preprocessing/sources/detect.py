"""Recognise the format of `--input` by its content, never by name alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from preprocessing.sources.delimited import csv_log
from preprocessing.sources.dialect import delimiter_named
from preprocessing.sources.encodings import check_encoding
from preprocessing.sources.inputs import input_files
from preprocessing.sources.json_lines import is_json_lines, json_lines_log
from preprocessing.sources.log import DETECT, Log, LogColumns, ReadOptions
from preprocessing.sources.members import log_members
from preprocessing.sources.movielens import movielens_log
from preprocessing.sources.parquet import parquet_log
from preprocessing.sources.path_columns import log_with_path_columns
from preprocessing.sources.text import has_rows
from preprocessing.sources.unpack import SourceFile, unpacked
from workflows.common.errors import UserError

_OF_TEXT = ("names", "delimiter", "quoting", "comment")  # options of delimited text alone


def open_log(
    inputs: str | Path | Sequence[str | Path],
    columns: LogColumns | None,
    with_rating: bool,
    scratch: Path,
    options: ReadOptions = DETECT,
) -> Log:
    """Open a raw log.

    Args:
        inputs: MovieLens files, folders or zips; or CSV, TSV or Parquet files, compressed or in archives or not, their
            folders, glob patterns and URLs. All inputs form one log.
        columns: the columns of a CSV or Parquet log; None to recognise them.
        with_rating: whether to read ratings.
        scratch: an empty folder for copies of remote files, and for unpacked and converted files.
        options: how to read the files where they do not say.

    Raises:
        UserError: the input is missing, empty, of an unknown format, or of several formats.
    """
    check_encoding(options.encoding)
    if options.delimiter is not None:
        options = replace(options, delimiter=delimiter_named(options.delimiter))
    if options.comment == "":
        raise UserError("--comment should be the text that begins a line to skip, got ''")
    files = input_files([inputs] if isinstance(inputs, str | Path) else inputs, scratch / "remote")
    movielens = columns is None and options.names is None
    sources: list[SourceFile] = []
    for number, file in enumerate(files):
        content = unpacked(file.path, scratch / str(number), file.display_name, options.encoding, movielens)
        sources += log_members(content, columns, with_rating, options)
    sources = [source for source in sources if has_rows(source.path, 0)] or sources[:1]
    if any(source.keys for source in sources):
        read = partial(_read, sources, with_rating)
        log = log_with_path_columns(sources, columns, with_rating, options, read)
    else:
        log = _read(sources, with_rating, columns, options)
    name = log.name if len(files) == 1 else f"{log.name}, {len(files)} files"
    return replace(log, name=name, files=[file.path for file in files])


def _read(sources: Sequence[SourceFile], with_rating: bool, columns: LogColumns | None, options: ReadOptions) -> Log:
    for name, is_format, open_format in (
        ("Parquet", lambda source: source.head == b"PAR1", parquet_log),
        ("JSON", is_json_lines, json_lines_log),
    ):
        found = [source for source in sources if is_format(source)]
        if not found:
            continue
        if len(found) < len(sources):
            other = next(source for source in sources if source not in found)
            raise UserError(f"{found[0].display_name} is {name}, {other.display_name} is not; pass files of one format")
        of_text = [flag for flag in _OF_TEXT if getattr(options, flag) is not None]
        if of_text:
            flags = ", ".join(f"--{flag.replace('names', 'columns')}" for flag in of_text)
            raise UserError(f"{found[0].display_name} is {name}, and {flags} is for delimited text; leave it out")
        return open_format(found, columns, with_rating, options)
    names = options.names
    if names is not None and len(set(names)) < len(names):
        raise UserError(f"--columns should name each column once, got {','.join(names)}")
    log = movielens_log(sources, with_rating, options) if columns is None and names is None else None
    return log or csv_log(sources, columns, with_rating, options)
