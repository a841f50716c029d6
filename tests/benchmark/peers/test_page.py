"""`docs/peers.md` has the tables of its result."""

from __future__ import annotations

import json
from pathlib import Path

from benchmark.peers.table import markdown

DOCS = Path(__file__).parents[3] / "docs"


def test_the_tables_are_those_of_the_result() -> None:
    text = (DOCS / "peers.md").read_text(encoding="utf-8")
    shown = text.split("<!-- peers.json -->\n")[1].split("\n<!-- end -->")[0]
    result = json.loads((DOCS / "peers.json").read_text(encoding="utf-8"))
    assert shown == markdown(result), "python -m benchmark peers --draw docs/peers.json prints them"
