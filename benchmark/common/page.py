"""Pages in one file: pictures embedded, no script, nothing loaded from elsewhere."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from workflows.common.files import replace_file
from workflows.common.render import templates


def write_page(path: Path, template: Path, **values: Any) -> None:
    """Render a template that extends `page.html.j2`, atomically."""
    environment = templates(template.parent, Path(__file__).parent)
    environment.filters["number"] = _number
    page = environment.get_template(template.name).render(values)
    replace_file(path, page.encode("utf-8", errors="backslashreplace"))


def embedded(picture: Path) -> str:
    """A PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.5g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
