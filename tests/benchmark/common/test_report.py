"""What the parts' reports share."""

from __future__ import annotations

from typing import Any

from benchmark.common.report import kept_runs


def test_runs_of_other_commits_are_named_once_for_each_row() -> None:
    rows = [("a", ["old", "new"]), ("b", ["new"]), ("c", ["older", "old", "old"]), ("c", ["old"])]
    results: list[dict[str, Any]] = []
    results += [{"row": row, "runs": [{"commit": commit} for commit in commits]} for row, commits in rows]
    results += [{"row": "d", "error": "did not run"}, {"row": "e", "runs": [{"cpu_s": 1.0}]}]
    assert kept_runs({"machine": {"commit": "new"}, "results": results}) == (
        "Run earlier, and kept: `a`, `c` at old; `c` at older.\n"
    )
    assert kept_runs({"machine": {"commit": "new"}, "results": results[1:2]}) == ""
