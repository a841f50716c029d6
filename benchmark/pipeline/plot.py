"""Plots `pipeline.json`: time and memory. Needs only the JSON."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workflows.common.render import write_picture

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it reports building its cache once

_COLOURS = {"baseline": "tab:gray", "ours": "tab:green"}
_LABELS = {"baseline": "pandas", "ours": "this pipeline"}
_PANELS = (("wall_s", 1.0, "wall time, seconds"), ("peak_pss_bytes", float(1 << 20), "peak memory (PSS), MiB"))


def draw_pipeline(result: dict[str, Any], path: Path) -> None:
    """Bars of wall time and peak memory for each case."""
    figure = Figure(figsize=(11.5, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (measured, unit, title) in zip(panels, _PANELS, strict=True):
        _bars(axes, result["cases"], measured, unit, title)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    shape, machine = result["shape"], result["machine"]
    figure.suptitle(
        f"{shape['rows']:,} interactions, {shape['users']:,} users, {shape['items']:,} items; "
        f"{machine['cores']} cores of {machine['cpu']}; medians, runs: {result['repeats']}",
        fontsize=9,
    )
    write_picture(path, figure)


def _bars(axes: Axes, cases: list[dict[str, Any]], measured: str, unit: float, title: str) -> None:
    """A pair of bars for each case; ours is labelled with the ratio of pandas to it."""
    for offset, name in ((-0.2, "baseline"), (0.2, "ours")):
        places = [index + offset for index in range(len(cases))]
        values = [case[name][measured] / unit for case in cases]
        axes.barh(places, values, height=0.38, color=_COLOURS[name], label=_LABELS[name])
        for place, value, case in zip(places, values, cases, strict=True):
            ratio = f"  (pandas: {case['baseline_over_ours'][measured]:.1f} ×)" if name == "ours" else ""
            axes.text(value, place, f" {value:,.3g}{ratio}", va="center", fontsize=8)
    axes.set_yticks(range(len(cases)), [case["name"] for case in cases])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * axes.get_xlim()[1])  # room for the labels
    axes.set_title(title[0].upper() + title[1:])
