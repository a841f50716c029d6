"""Plots `recommend.json`: users/s and peak memory of both variants. Needs only the JSON."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmark.common.machine import machine_line
from workflows.common.render import write_picture

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it reports building its cache once

_PANELS = (("users_per_s", "Users ranked per second"), ("peak_rss_mib", "Peak resident memory, MiB"))


def draw_recommend(result: dict[str, Any], path: Path) -> None:
    """A bar for each variant."""
    results = result["results"]
    figure = Figure(figsize=(11.5, 2.2), layout="constrained")
    for axes, (measured, title) in zip(figure.subplots(1, 2), _PANELS, strict=True):
        values = [each[measured] for each in results.values()]
        axes.barh(list(results), values, height=0.7, color=["tab:green", "tab:gray"])
        for place, value in enumerate(values):
            axes.text(value, place, f" {value:,.0f}", va="center", fontsize=8)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.2 * max(values))  # room for the labels
        axes.set_title(title, fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(machine_line(result["machine"]), fontsize=9)
    write_picture(path, figure)
