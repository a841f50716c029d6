"""Output folders that are either whole or not there, and small JSON files written atomically."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from workflows.errors import UserError


def check_output(path: Path, overwrite: bool, ours: Sequence[str]) -> None:
    """Refuse an output that exists, unless it may be replaced.

    Args:
        ours: files of which every folder written by this command holds at least one. `--overwrite` replaces only
            such a folder (or an empty one), so that a mistyped path cannot delete anything else.

    Raises:
        UserError: the path exists and may not be replaced.
    """
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise UserError(f"{path} exists already; name another --output, or add --overwrite to replace it")
    if path.is_symlink() or not path.is_dir():
        raise UserError(
            f"{path} is not a folder of this program, so --overwrite leaves it alone; name another --output"
        )
    if any(path.iterdir()) and not any((path / name).is_file() for name in ours):
        raise UserError(
            f"{path} holds no {' or '.join(ours)}, so it was not written by this command and --overwrite leaves it "
            "alone; name another --output or remove that folder yourself"
        )


@contextmanager
def staged_folder(path: Path, overwrite: bool, ours: Sequence[str]) -> Iterator[Path]:
    """Build a folder beside its place and rename it when it is whole; on any error nothing is left.

    Yields:
        The empty folder to write into. `path` itself is touched only after the block ends well.
    """
    check_output(path, overwrite, ours)
    path = path.absolute()
    new_parents = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    try:
        staging.chmod(0o777 & ~umask())
        yield staging
        check_output(path, overwrite, ours)  # somebody else may have written meanwhile
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".old", dir=path.parent))
            path.rename(old / "old")
            try:
                staging.rename(path)
            except OSError:
                (old / "old").rename(path)
                raise
            finally:
                shutil.rmtree(old)
        else:
            staging.rename(path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        for parent in new_parents:
            with suppress(OSError):  # somebody else uses it by now
                parent.rmdir()
        raise


def umask() -> int:
    """The permission bits that new files of this process lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all."""
    replace_file(path, (json.dumps(value, indent=2) + "\n").encode())


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` beside `path` and rename it into place."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
