"""Plots `training.json`: samples/s and peak memory of each variant. Needs only the JSON."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workflows.common.render import write_picture

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it reports building its cache once

_COLOURS = {"plain": "tab:gray", "compiled": "tab:green", "torch": "tab:blue"}
_PANELS = (("samples_per_s", "Samples trained on per second"), ("peak_rss_mib", "Peak resident memory, MiB"))


def draw_training(result: dict[str, Any], path: Path) -> None:
    """A row for each batch size: bars of samples/s, and next to them of peak memory."""
    sizes = [bound["batch_size"] for bound in result["bounds"]]
    figure = Figure(figsize=(11.5, 0.9 + 3.3 * len(sizes)), layout="constrained")
    panels = figure.subplots(len(sizes), 2, squeeze=False)
    for row, size in zip(panels, sizes, strict=True):
        results = [each for each in result["results"] if each["batch_size"] == size]
        for axes, (measured, title) in zip(row, _PANELS, strict=True):
            _bars(axes, results, measured)
            axes.set_title(f"{title}, batches of {size:,}", fontsize=10)
    shape, machine = result["shape"], result["machine"]
    figure.suptitle(
        f"{shape['rows']:,} interactions, {shape['users']:,} users, {shape['items']:,} items; "
        f"{result['threads']} of {machine['cores']} cores of {machine['cpu']}; medians, runs: {result['repeats']}",
        fontsize=9,
    )
    write_picture(path, figure)


def _bars(axes: Axes, results: list[dict[str, Any]], measured: str) -> None:
    """A bar for each variant; speed bars are labelled with the speed-up over plain."""
    values = [each[measured] for each in results]
    colours = [_COLOURS[each["variant"].split()[0].rstrip(",")] for each in results]
    axes.barh(range(len(values)), values, height=0.7, color=colours)
    for place, (value, each) in enumerate(zip(values, results, strict=True)):
        ratio = f"  ({each['over_plain']:.1f} × plain)" if measured == "samples_per_s" and each["over_plain"] else ""
        axes.text(value, place, f" {value:,.0f}{ratio}", va="center", fontsize=8)
    axes.set_yticks(range(len(results)), [each["variant"] for each in results], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.45 * axes.get_xlim()[1])  # room for the labels
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
