"""Reads and redraws existing results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from workflows.common.documents import load_json
from workflows.common.errors import UserError
from workflows.common.progress import console


def read_result(path: Path, name: str, keys: Iterable[str]) -> dict[str, Any]:
    """Read a result of the command that writes `name`; it must have at least these keys.

    Raises:
        UserError: the file is not such a result.
    """
    result = load_json(path, "a result of this command", f"pass the {name} that it wrote", max_bytes=1 << 26)
    if not isinstance(result, dict) or not set(keys) <= result.keys():
        raise UserError(f"{path} is not a result of this command; pass the {name} that it wrote")
    return result


def redraw(path: Path, name: str, keys: Iterable[str], draw: Callable[[dict[str, Any], Path], None]) -> None:
    """`--draw`: write the plot of a result next to it. See `read_result`."""
    picture = path.with_suffix(".png")
    draw(read_result(path, name, keys), picture)
    console.print(f"wrote {picture}")
