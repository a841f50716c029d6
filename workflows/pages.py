"""What people look at: pages from templates, and pictures. The libraries are imported when one is made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from workflows.folders import staged_file

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure


def templates(folder: Path, html: bool = True) -> Environment:
    """The templates of a folder; a value that is missing is an error.

    Args:
        html: whether values are escaped for HTML: names of files and features are whoever's who chose them.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(folder),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not html,
    )


def write_picture(path: Path, figure: Figure) -> None:
    """Write a PNG, whole or not at all; equal figures give equal bytes."""
    with staged_file(path, overwrite=True) as partial:
        figure.savefig(partial, format="png", dpi=110, metadata={"Software": None})
