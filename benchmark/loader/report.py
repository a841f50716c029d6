"""The loader benchmark's table and figures; see `benchmark.common.report`."""

from __future__ import annotations

from typing import Any

from benchmark.common.report import Measured, number, table
from benchmark.loader.command import STAGES

_NAMES = {
    "merlin": "batches, streamed",
    "memory": "batches, from memory",
    "read": "rows read",
    "negatives": "negatives drawn",
}


def markdown(result: dict[str, Any]) -> str:
    rows = []
    for stage, name in _NAMES.items():
        found = result["results"][stage]
        first_s = number(found["first_batch_s"]) if "first_batch_s" in found else ""
        speed = f"{found[f'{STAGES[stage]}_per_s'] / 1e6:,.1f}"
        rows.append([name, speed, number(found["wall_s"]), number(found["cpu_s"]), first_s])
    columns = ["millions per second", "an epoch, s", "CPU, s", "to the first batch, s"]
    return table([f"{result['shape']['rows']:,} interactions, batches of {result['batch_size']:,}", *columns], rows)


def measured(result: dict[str, Any]) -> list[Measured]:
    runs = result["runs"]
    return [
        *(
            Measured(name, f"{STAGES[stage]}/s", [run[stage][f"{STAGES[stage]}_per_s"] for run in runs])
            for stage, name in _NAMES.items()
        ),
        Measured("peak RSS", "MiB", [run["peak_rss_mib"] for run in runs], False),
    ]
