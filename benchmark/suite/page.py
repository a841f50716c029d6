"""The page of `python -m benchmark all`: headline figures, then each part's picture, tables, command and machine."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

from markdown_it import MarkdownIt
from markupsafe import Markup

from benchmark.common.machine import machine_line
from benchmark.common.page import embedded, write_page
from benchmark.suite.parts import PARTS, markdown, measured, read_part
from workflows.common.progress import human

PAGE_NAME = "index.html"
_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("table")


def write_suite(folder: Path, suite: dict[str, Any]) -> None:
    """Write the page of the parts that have run so far."""
    parts = {name: {**run, **_part(folder, name)} for name, run in suite["parts"].items() if name in PARTS}
    if suite["parts"]["data"]["status"] == "failed":
        parts = {"data": {**suite["parts"]["data"], "what": "The data of all parts"}, **parts}
    machine = machine_line(suite["machine"])
    write_page(folder / PAGE_NAME, Path(__file__).with_name("suite.html.j2"), suite=suite, parts=parts, machine=machine)


def _part(folder: Path, name: str) -> dict[str, Any]:
    """Whatever the page shows of a part; without its result, only what it is about."""
    shown: dict[str, Any] = {"what": PARTS[name].what}
    result = read_part(folder, name)
    if not result:
        return shown
    first = measured(name, result)[0]
    picture = folder / name / f"{name}.png"
    return {
        **shown,
        "headline": {
            "value": human(median(first.values)),
            "unit": first.unit,
            "what": first.what,
            "least": human(min(first.values)),
            "most": human(max(first.values)),
            "runs": len(first.values),
        },
        "picture": embedded(picture) if picture.exists() else None,
        "tables": Markup(_MARKDOWN.render(markdown(name, result))),  # it escapes HTML in its input
        "command": result["command"],
        "machine": machine_line(result["machine"]),
    }
