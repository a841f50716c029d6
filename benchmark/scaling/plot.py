"""Plots `scaling.json`: a panel for each quantity, on logarithmic axes, with the fitted slope. Needs only the JSON."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmark.common.machine import machine_line
from workflows.common.render import write_picture

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it reports building its cache once

_TRAINING = "training, seconds a million samples"
_TITLES = {
    "rows": "preparing a log, CPU seconds beyond start-up",
    "users": _TRAINING,
    "items": _TRAINING,
    "width": _TRAINING,
    "processes": _TRAINING,
}


def draw_scaling(result: dict[str, Any], path: Path) -> None:
    """Points with their repetitions, and a line of the fitted slope."""
    figure = Figure(figsize=(11.5, 6.6), layout="constrained")
    panels = list(figure.subplots(2, 3).flat)
    for axes, (name, sweep) in zip(panels, result["sweeps"].items(), strict=False):
        points = sweep["points"]
        values = [point["value"] for point in points]
        for point in points:
            axes.plot([point["value"]] * len(point["runs"]), point["runs"], ".", color="tab:gray")
        _panel(axes, values, [point["seconds"] for point in points], sweep["slope"], name, _TITLES[name])
    points, memory_slope = result["sweeps"]["rows"]["points"], result["sweeps"]["rows"]["memory_slope"]
    memory_mib = [point["peak_pss_bytes"] / (1 << 20) for point in points]
    _panel(panels[-1], [point["value"] for point in points], memory_mib, memory_slope, "rows", "peak memory (PSS), MiB")
    figure.suptitle(machine_line(result["machine"]), fontsize=9)
    write_picture(path, figure)


def _panel(axes: Axes, values: list[int], found: list[float], slope: float, name: str, title: str) -> None:
    middle = np.exp(np.mean(np.log(found)) - slope * np.mean(np.log(values)))
    axes.loglog(values, middle * np.array(values, dtype=float) ** slope, color="tab:green", alpha=0.5)
    axes.loglog(values, found, "o", color="tab:green")
    axes.set_title(f"{title}\nslope {slope:.2f}", fontsize=9)
    axes.set_xlabel(name)
    axes.set_xticks(values, [f"{value:,}" for value in values])
    axes.set_ylim(min(found) / 2, max(found) * 2)
    axes.minorticks_off()
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(alpha=0.3, which="both")
    axes.spines[["top", "right"]].set_visible(False)
