"""The recommendation benchmark's table and figures; see `benchmark.common.report`."""

from __future__ import annotations

from typing import Any

from benchmark.common.report import Measured, number, table


def markdown(result: dict[str, Any]) -> str:
    rows = [
        [
            name,
            f"{found['runs'][0]['users']:,}",
            number(found["users_per_s"]),
            f"{result['over_plain']:.1f} ×" if name == "product" else "",
            number(found["read_s"]),
            f"{found['peak_rss_mib']:,.0f}",
        ]
        for name, found in result["results"].items()
    ]
    return table(["", "users", "users/s", "ratio", "reading the interactions, s", "peak RSS, MiB"], rows)


def measured(result: dict[str, Any]) -> list[Measured]:
    runs = result["results"]["product"]["runs"]
    return [
        Measured("recommendations", "users/s", [run["users_per_s"] for run in runs]),
        Measured("peak RSS", "MiB", [run["peak_rss_mib"] for run in runs], False),
    ]
