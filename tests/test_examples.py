"""The examples in docs/ run as written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"


def run_example(page: str) -> dict[str, Any]:
    """Names defined by a page's Python block."""
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, page, "exec"), names)
    return names


def test_negatives_in_a_stock_workflow() -> None:
    names = run_example("negatives.md")
    log, rows = names["log"], names["rows"]
    assert type(names["workflow"]).__module__.startswith("nvtabular")
    users, items = sorted(set(log["user"])), sorted(set(log["item"]))
    decoded = [(users[u], items[i], label) for u, i, label in rows.itertuples(index=False)]
    positives = [(user, item) for user, item, label in decoded if label == 1.0]
    assert sorted(positives) == sorted(zip(log["user"], log["item"], strict=True))
    since = log.groupby("item")["time"].min()
    at = {(row.user, row.item): row.time for row in log.itertuples()}
    for place, (user, item, label) in enumerate(decoded):
        assert label == float(place % 3 == 0)
        if label:
            unseen = set(items) - {other for owner, other in positives if owner == user}
            possible = {other for other in unseen if since[other] <= at[user, item]} or unseen
        else:
            assert item in possible
