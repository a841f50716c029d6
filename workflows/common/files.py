"""Which outputs may be written, output folders, and small JSON files."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from workflows.common.documents import load_json
from workflows.common.errors import UserError
from workflows.common.staging import StagedFolder, check_parents, staged_file, written

_MAX_JSON_BYTES = 1 << 26  # the config of a run on many users


def check_output(path: Path, overwrite: bool, is_ours: Callable[[Path], bool], inputs: Sequence[Path] = ()) -> None:
    """Refuse an existing output unless it may be replaced.

    Args:
        is_ours: whether a folder was written by this command. `--overwrite` replaces only such a folder or an empty
            one, so that a mistyped path cannot delete anything else.
        inputs: paths to be read; none may lie in the folder being replaced.

    Raises:
        UserError: the path must not be written.
    """
    check_parents(path)
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise UserError(f"{path} exists already; name another --output, or add --overwrite to replace it")
    if path.is_symlink() or not path.is_dir():
        raise UserError(
            f"{path} is not a folder of this program, so --overwrite leaves it alone; name another --output"
        )
    if not os.access(path, os.W_OK):
        raise UserError(f"{path} may not be changed by this user, so it cannot be replaced; name another --output")
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


@contextmanager
def staged_folder(path: Path, overwrite: bool, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Build a folder next to its destination and put it in its place when complete; an error leaves nothing behind.

    Yields:
        The empty folder to write into. `path` itself changes only after the block succeeds.

    Raises:
        UserError: the folder must not be replaced, or could not be written.
    """
    check_output(path, overwrite, is_ours)
    with written(path), closing(StagedFolder(path)) as staged:
        yield staged.folder
        check_output(path, overwrite, is_ours)  # another process may have written it meanwhile
        staged.publish()


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file is missing, unreadable or not a JSON object."""
    try:
        content = load_json(path, "JSON", max_bytes=_MAX_JSON_BYTES, paths=True)
    except UserError:
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


def replace_file(path: Path, data: bytes | memoryview) -> None:
    """Write `data` next to `path` and rename it into place."""
    with staged_file(path, overwrite=True, size=memoryview(data).nbytes) as partial:
        partial.write_bytes(data)
