"""Inputs named by a URL: copied to disk through fsspec, by the package that the user has for the URL's scheme."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from preprocessing.sources.archives import RATINGS_FILES, is_hidden
from workflows.common.errors import UserError
from workflows.common.progress import stage

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::[A-Za-z0-9+.-]+)*://")
_FILE_NAME = re.compile(r"\w[\w.-]{0,100}")


def is_url(given: str) -> bool:
    """Whether an input is an address such as s3://bucket/log.csv; file:// is for `local_path`."""
    return bool(_URL.match(given)) and not given.startswith("file://")


def local_path(given: str) -> str:
    """The path of a file:// URL; another input as it is."""
    return unquote(re.sub("^file://(localhost)?", "", given)) if given.startswith("file://") else given


def remote_files(url: str, into: Path) -> Iterator[tuple[Path, str]]:
    """Copy a remote file, or the files of a folder or glob pattern.

    Args:
        into: folder for the copies; created if needed.
    Yields:
        (the copy, which keeps the file's name; the file's own URL).

    Raises:
        UserError: the package for the scheme is missing, nothing is there, or it cannot be read.
    """
    filesystem, path = _filesystem(url)
    try:
        files = _files(filesystem, path, url)
    except FileNotFoundError as err:
        files, reason = {}, err.__cause__ or "no such file"
    except Exception as err:  # what a backend raises for a failing network or refused access has no common type
        raise _unreadable(url, err) from None
    else:
        reason = "no file to read"
    if not files:
        raise _unreadable(url, reason)
    sizes = [size for size in files.values() if size is not None]
    with stage("download", sum(sizes) if len(sizes) == len(files) else None, "bytes") as running:
        for number, (name, size) in enumerate(files.items()):
            display_name = url if name == path else filesystem.unstrip_protocol(name)
            found = _FILE_NAME.fullmatch(PurePosixPath(urlsplit(name).path).name)
            copy = into / str(number) / (found[0] if found else "log")
            copy.parent.mkdir(parents=True, exist_ok=True)
            _copy(filesystem, name, copy, size, display_name)
            running.advance(copy.stat().st_size)
            yield copy, display_name


def _filesystem(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(url)
    except ImportError as err:
        package = getattr(err.__cause__, "name", None)
        raise UserError(
            f"{url}: {url.partition('://')[0]}:// needs a package that is not installed ({err}); "
            f"pip install {package or 'it'}, or download the log and pass the file as --input"
        ) from None
    except Exception as err:  # an unknown scheme, a missing driver, refused credentials
        raise _unreadable(url, err) from None
    return filesystem, path


def _files(filesystem: Any, path: str, url: str) -> dict[str, int | None]:
    """Bytes (None if not known) of the files that a path or pattern stands for, by name, sorted."""
    # The address of a web page may have a query.
    magic = re.search(r"[*\[]" if url.startswith("http") else r"[*?\[]", path)
    if magic and not filesystem.exists(path):
        root = path[: path.rfind("/", 0, magic.start()) + 1]
        found: dict[str, Any] = {}
        for name, info in filesystem.glob(path, detail=True).items():
            found |= filesystem.find(name, detail=True) if info["type"] == "directory" else {name: info}
    else:
        info = filesystem.info(path)
        if info["type"] != "directory":
            return {path: info.get("size")}
        root = path.rstrip("/") + "/"
        found = filesystem.find(path, detail=True)
        ratings = next((root + name for name in RATINGS_FILES if root + name in found), None)
        found = found if ratings is None else {ratings: found[ratings]}
    hidden = {name for name in found if any(map(is_hidden, PurePosixPath(name.removeprefix(root)).parts))}
    return {name: found[name].get("size") for name in sorted(found.keys() - hidden)}


def _copy(filesystem: Any, name: str, copy: Path, size: int | None, display_name: str) -> None:
    try:
        filesystem.get_file(name, str(copy))
    except Exception as err:
        if isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise _unreadable(display_name, err) from None
    written = copy.stat().st_size
    if size is not None and written != size:
        raise _unreadable(display_name, f"it ended after {written:,} of {size:,} bytes")


def _unreadable(url: str, reason: object) -> UserError:
    text = str(reason).partition("\n")[0] or type(reason).__name__
    return UserError(f"{url}: cannot be read ({text}); check the address, the network and your access rights")
