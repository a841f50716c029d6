"""Output folders that are either complete or absent, and small JSON files written atomically."""

from __future__ import annotations

import fcntl
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from workflows.common.errors import UserError

_LOCK_NAME = ".lock"


def check_output(path: Path, overwrite: bool, is_ours: Callable[[Path], bool], inputs: Sequence[Path] = ()) -> None:
    """Refuse an existing output unless it may be replaced.

    Args:
        is_ours: whether a folder was written by this command. `--overwrite` replaces only such a folder or an empty
            one, so that a mistyped path cannot delete anything else.
        inputs: paths to be read; none may lie in the folder being replaced.

    Raises:
        UserError: the path must not be written.
    """
    for parent in path.absolute().parents:
        if parent.exists() and not parent.is_dir():
            raise UserError(f"{path} cannot be written: {parent} is a file; name another --output")
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise UserError(f"{path} exists already; name another --output, or add --overwrite to replace it")
    if path.is_symlink() or not path.is_dir():
        raise UserError(
            f"{path} is not a folder of this program, so --overwrite leaves it alone; name another --output"
        )
    inside = [file for file in inputs if file.resolve().is_relative_to(path.resolve())]
    if inside:
        raise UserError(f"{path} holds {inside[0]}, which this command reads; name another --output")
    if any(path.iterdir()) and not is_ours(path):
        raise UserError(
            f"{path} was not written by this command, so --overwrite leaves it alone; "
            "name another --output or remove that folder yourself"
        )


def check_outside(path: Path, inputs: Sequence[Path]) -> None:
    """Raises UserError if an output lies inside an input folder: the next run would read it too."""
    for folder in inputs:
        if folder.is_dir() and path.resolve() != folder.resolve() and path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path} lies in {folder}, which this command reads; name another --output")


def check_file(path: Path, overwrite: bool) -> None:
    """Raises UserError if a file must not be written: it exists and `overwrite` is off, or it is a folder."""
    for parent in path.absolute().parents:
        if parent.exists() and not parent.is_dir():
            raise UserError(f"{path} cannot be written: {parent} is a file; name another --output")
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; name a file in it")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; name another --output, or add --overwrite to replace it")


@contextmanager
def staged_file(path: Path, overwrite: bool) -> Iterator[Path]:
    """Write a file next to its destination and rename it when complete; an error leaves nothing behind.

    Yields:
        The path to write to. `path` itself changes only after the block succeeds.
    """
    check_file(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def staged_folder(path: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Build a folder next to its destination and rename it when complete; an error leaves nothing behind.

    Leftovers of the same output from a killed process are removed first.

    Yields:
        The empty folder to write into. `path` itself changes only after the block succeeds.
    """
    check_output(path, overwrite, is_ours)
    path = path.absolute()
    new_parents = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        staging.chmod(0o777 & ~umask())
        with (staging / _LOCK_NAME).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # held until the process ends, so that no other process sweeps the folder
            yield staging
            (staging / _LOCK_NAME).unlink()
        check_output(path, overwrite, is_ours)  # another process may have written it meanwhile
        with set_aside(path) as aside:
            staging.rename(path)
            aside.discard()
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):  # in use by another process by now
                parent.rmdir()
        raise


def _sweep(path: Path) -> None:
    """Remove staging folders of this output whose process has died."""
    for left in path.parent.glob(f".{path.name}.*.partial"):
        with suppress(OSError), (left / _LOCK_NAME).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left)


class Aside:
    """A folder moved out of the way until its replacement is in place."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hidden: Path | None = None
        if path.exists():
            self._hidden = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            path.rename(self._hidden / "old")

    def discard(self) -> None:
        """Delete the old folder: its replacement is in place."""
        if self._hidden is not None:
            shutil.rmtree(self._hidden)
            self._hidden = None

    def restore(self) -> None:
        """Put the old folder back, unless it was discarded."""
        if self._hidden is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            (self._hidden / "old").rename(self._path)
            self._hidden.rmdir()
            self._hidden = None


@contextmanager
def set_aside(path: Path) -> Iterator[Aside]:
    """Move a folder (if it exists) aside; it is restored at the end of the block unless discarded in it."""
    aside = Aside(path)
    try:
        yield aside
    finally:
        aside.restore()


def umask() -> int:
    """The umask of this process."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def read_json(path: Path) -> dict[str, Any]:
    """The object in a small JSON file; empty if the file is missing, unreadable or not a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically; see `to_json`."""
    replace_file(path, (to_json(value, indent=2) + "\n").encode())


def to_json(value: Any, indent: int | None = None) -> str:
    """`value` as JSON, with null for NaN and infinite numbers, which JSON does not have."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(element) for key, element in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(element) for element in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` next to `path` and rename it into place."""
    with staged_file(path, overwrite=True) as partial:
        partial.write_bytes(data)
