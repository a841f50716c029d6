"""What a part of the suite reports.

Each part has a module `report` with `markdown(result)`, its tables, and `measured(result)`, the figures that
`python -m benchmark compare` holds against those of another run; the first one is the part's headline.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Measured:
    """One figure with its repetitions.

    Attributes:
        values: one of each repetition; the figure is their median.
        more_is_better: the direction of an improvement.
        least_change: smallest relative change that counts.
        alone: the same if either run has a single repetition, and nothing is known of its spread.
    """

    what: str
    unit: str
    values: Sequence[float]
    more_is_better: bool = True
    least_change: float = 0.05
    alone: float = 0.25


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines) + "\n"


def number(value: float) -> str:
    """Three significant digits or all digits before the point: 0.0123, 12.3, 12,345."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def kept_runs(result: dict[str, Any]) -> str:
    """A paragraph that names the rows with runs kept from other commits than the result's; empty if there are none."""
    here = result["machine"]["commit"]
    of_commit: dict[str, dict[str, None]] = {}
    for each in result["results"]:
        for run in each.get("runs", ()):
            if (commit := run.get("commit", here)) != here:
                of_commit.setdefault(commit, {})[f"`{each['row']}`"] = None
    kept = (f"{', '.join(rows)} at {commit}" for commit, rows in of_commit.items())
    return f"Run earlier, and kept: {'; '.join(kept)}.\n" if of_commit else ""
