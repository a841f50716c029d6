"""Expand `--input` (files, folders, glob patterns and URLs) into one list of files."""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from preprocessing.sources.archives import RATINGS_FILES, is_hidden
from preprocessing.sources.remote import is_url, local_path, remote_files
from workflows.common.errors import UserError

_MAX_FILES = 100_000
_TAKES = (
    "--input takes a MovieLens file, folder or zip, or CSV, TSV, JSON lines or Parquet logs (packed or not): files, "
    "a folder, a glob pattern, an archive or a URL"
)


@dataclass(frozen=True)
class InputFile:
    """A file of `--input`.

    Attributes:
        path: the file, or the copy of a remote one.
        display_name: its path or URL, as it was given or found.
    """

    path: Path
    display_name: str


def input_files(inputs: Sequence[str | Path], scratch: Path) -> list[InputFile]:
    """List the input files, each once.

    Args:
        inputs: files; folders (MovieLens' ratings file if there is one, else every file below that is not
            hidden); glob patterns, unless a file has that exact name (`**` matches folders of any depth); URLs.
        scratch: folder for copies of remote files; created if needed.

    Raises:
        UserError: an input does not exist, nothing matches, or there are too many files; a remote one cannot be read.
    """
    if not inputs:
        raise UserError(f"no input; {_TAKES}")
    files: dict[str | Path, InputFile] = {}  # so that a file named twice is read once
    for number, given in enumerate(map(str, inputs)):
        found = list(itertools.islice(_found(given, scratch / str(number)), _MAX_FILES + 1))
        if not found:
            raise UserError(f"{given}: no file to read; {_TAKES}")
        if len(found) > _MAX_FILES:
            raise UserError(f"{given}: more than {_MAX_FILES:,} files; choose a narrower folder or pattern")
        for file in found:
            files.setdefault(file.display_name if is_url(given) else file.path.resolve(), file)
    return list(files.values())


def _found(given: str, copies: Path) -> Iterator[InputFile]:
    if is_url(given):
        yield from itertools.starmap(InputFile, remote_files(given, copies))
    else:
        yield from (InputFile(file, str(file)) for file in _files_of(local_path(given)))


def _files_of(given: str) -> Iterator[Path]:
    path = Path(given)
    if path.is_dir():
        yield from _files_in(path)
    elif path.is_file():
        yield path
    elif path.exists():
        raise UserError(f"{path} is not a file or folder, and a log is read more than once; write it to a file first")
    elif any(character in given for character in "*?["):
        yield from _files_matching(given)
    else:
        raise UserError(f"{path} does not exist; {_TAKES}")


def _files_matching(pattern: str) -> Iterator[Path]:
    for name in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207 (pathlib's glob takes no absolute pattern)
        match = Path(name)
        if is_hidden(match.name):
            continue
        if match.is_file():
            yield match
        elif match.is_dir():
            yield from _files_in(match)


def _files_in(folder: Path) -> Iterator[Path]:
    """A folder's MovieLens ratings file (or that of its only subfolder with one, as zips unpack), else every log."""
    ratings = _ratings_file(folder)
    if ratings is not None:
        yield ratings
        return
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for name in sorted(names):
            file = Path(parent, name)
            if not is_hidden(name) and file.is_file():  # not a pipe or a socket
                yield file


def _ratings_file(folder: Path) -> Path | None:
    inner = sorted(child for child in folder.iterdir() if child.is_dir() and not is_hidden(child.name))
    found = [
        next((place / name for name in RATINGS_FILES if (place / name).is_file()), None) for place in [folder, *inner]
    ]
    if found[0] is not None:
        return found[0]
    below = [file for file in found if file is not None]
    if len(below) > 1:
        raise UserError(
            f"{folder} holds {below[0]} and {below[1]}; name the one you mean, or use a pattern that matches both"
        )
    return below[0] if below else None
