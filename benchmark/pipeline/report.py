"""The pipeline benchmark's table and figures; see `benchmark.common.report`."""

from __future__ import annotations

from typing import Any

from benchmark.common.report import Measured, number, table

_MIB = 1 << 20


def markdown(result: dict[str, Any]) -> str:
    rows = []
    for case in result["cases"]:
        ours, pandas = case["ours"], case["baseline"]
        rows.append(
            [
                f"{case['name']} ({case['csv_bytes'] / 1e6:,.0f} MB)",
                *(number(each["wall_s"]) for each in (ours, pandas)),
                f"{case['baseline_over_ours']['wall_s']:.1f} ×",
                *(number(each["cpu_s"]) for each in (ours, pandas)),
                *(f"{each['peak_pss_bytes'] / _MIB:,.0f}" for each in (ours, pandas)),
            ]
        )
    columns = ["ours, s", "pandas, s", "ratio", "ours, CPU s", "pandas, CPU s", "ours, peak PSS MiB", "pandas, MiB"]
    return table([f"{result['shape']['rows']:,} rows", *columns], rows)


def measured(result: dict[str, Any]) -> list[Measured]:
    found = []
    for case in sorted(result["cases"], key=lambda case: case["name"] != "shuffled, integers"):
        runs, name = case["ours"]["runs"], case["name"]
        found += [
            Measured(f"log prepared: {name}", "rows/s", [case["rows"] / run["wall_s"] for run in runs]),
            Measured(f"CPU: {name}", "s", [run["cpu_s"] for run in runs], False),
            Measured(f"peak PSS: {name}", "MiB", [run["peak_pss_bytes"] / _MIB for run in runs], False),
        ]
    return found
