"""Reads and redraws existing results."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from workflows.common.errors import UserError
from workflows.common.progress import console


def read_result(path: Path, name: str, keys: Iterable[str]) -> dict[str, Any]:
    """Read a result of the command that writes `name`; it must have at least these keys.

    Raises:
        UserError: the file is not such a result.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as err:
        raise UserError(f"{path} is not valid JSON ({err}); pass the {name} that this command wrote") from None
    if not isinstance(result, dict) or not set(keys) <= result.keys():
        raise UserError(f"{path} is not a result of this command; pass the {name} that it wrote")
    return result


def redraw(path: Path, name: str, keys: Iterable[str], draw: Callable[[dict[str, Any], Path], None]) -> None:
    """`--draw`: write the plot of a result next to it. See `read_result`."""
    picture = path.with_suffix(".png")
    draw(read_result(path, name, keys), picture)
    console.print(f"wrote {picture}")
