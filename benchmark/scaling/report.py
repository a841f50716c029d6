"""The scaling benchmark's table and figures; see `benchmark.common.report`."""

from __future__ import annotations

from typing import Any

from benchmark.common.report import Measured, number, table

_WHAT = {
    "rows": "preparing a log: CPU seconds beyond start-up, users in proportion",
    "users": "training: seconds a million samples",
    "items": "training: seconds a million samples",
    "width": "training: seconds a million samples",
    "processes": "training: seconds a million samples",
}
_SEPARATOR = " · "


def markdown(result: dict[str, Any]) -> str:
    rows = []
    for name, sweep in result["sweeps"].items():
        points = sweep["points"]
        values = _SEPARATOR.join(f"{point['value']:,}" for point in points)
        found = _SEPARATOR.join(number(point["seconds"]) for point in points)
        rows.append([name, values, _WHAT[name], found, f"{sweep['slope']:.2f}"])
    points = result["sweeps"]["rows"]["points"]
    memory = _SEPARATOR.join(f"{point['peak_pss_bytes'] / (1 << 20):,.0f}" for point in points)
    sizes, slope = rows[0][1], f"{result['sweeps']['rows']['memory_slope']:.2f}"
    rows.insert(1, ["rows", sizes, "preparing a log: peak PSS, MiB", memory, slope])
    return table(["grows", "values", "measured", "found", "slope"], rows)


def measured(result: dict[str, Any]) -> list[Measured]:
    sweeps = result["sweeps"]
    slope = Measured("slope of preparing a log over its rows", "", [sweeps["rows"]["slope"]], False)
    return [
        slope,
        *(
            Measured(f"{name} {point['value']:,}, {_WHAT[name].partition(':')[0]}", "s", point["runs"], False)
            for name, sweep in sweeps.items()
            for point in sweep["points"]
        ),
    ]
