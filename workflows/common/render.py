"""Rendered pages and pictures; jinja2 and matplotlib are imported lazily."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workflows.common.staging import staged_file

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure


def templates(*folders: Path, html: bool = True) -> Environment:
    """The templates in these folders; an undefined value is an error.

    Args:
        html: whether to escape values for HTML: file and feature names are untrusted input.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folders),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not html,
    )


def write_picture(path: Path, figure: Figure) -> None:
    """Write a PNG atomically; equal figures give equal bytes."""
    with staged_file(path, overwrite=True) as partial:
        figure.savefig(partial, format="png", dpi=110, metadata={"Software": None})
