"""Writes, reads and redraws results."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmark.common.machine import describe_machine
from workflows.common.documents import load_json
from workflows.common.errors import UserError
from workflows.common.files import write_json
from workflows.common.progress import console

Draw = Callable[[dict[str, Any], Path], None]


def write_result(path: Path, result: dict[str, Any], draw: Draw) -> dict[str, Any]:
    """Write a result with its machine and command, and its plot next to it; returns all that was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {"machine": describe_machine(), "command": f"python -m benchmark {shlex.join(sys.argv[1:])}", **result}
    write_json(path, whole)
    draw(whole, path.with_suffix(".png"))
    console.print(f"wrote {path} and its plot")
    return whole


def read_result(path: Path, name: str, keys: Iterable[str]) -> dict[str, Any]:
    """Read a result of the command that writes `name`; it must have at least these keys.

    Raises:
        UserError: the file is not such a result.
    """
    result = load_json(path, "a result of this command", f"pass the {name} that it wrote", max_bytes=1 << 26)
    if not isinstance(result, dict) or not set(keys) <= result.keys():
        raise UserError(f"{path} is not a result of this command; pass the {name} that it wrote")
    return result


def redraw(path: Path, name: str, keys: Iterable[str], draw: Draw) -> None:
    """`--draw`: write the plot of a result next to it. See `read_result`."""
    picture = path.with_suffix(".png")
    draw(read_result(path, name, keys), picture)
    console.print(f"wrote {picture}")
