"""Plots `loader.json`: how fast each stage of loading is. Needs only the JSON."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmark.common.machine import machine_line
from workflows.common.render import write_picture

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it reports building its cache once

_BARS = {
    "read": ("rows", "rows read"),
    "negatives": ("negatives", "negatives drawn"),
    "merlin": ("samples", "samples in batches, streamed"),
    "memory": ("samples", "samples in batches, from memory"),
}


def draw_loader(result: dict[str, Any], path: Path) -> None:
    """A bar for each stage, in millions per second."""
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    values = [result["results"][name][f"{unit}_per_s"] / 1e6 for name, (unit, _) in _BARS.items()]
    axes.barh([label for _, label in _BARS.values()], values, height=0.7, color="tab:green")
    for place, value in enumerate(values):
        axes.text(value, place, f" {value:,.1f}", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max(values))  # room for the labels
    axes.set_title(f"Millions per second, {result['shape']['rows']:,} interactions", fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(machine_line(result["machine"]), fontsize=9)
    write_picture(path, figure)
