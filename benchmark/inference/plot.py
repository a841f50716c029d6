"""Plots `inference.json`: samples/s and latency over the batch size. Needs only the JSON."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from workflows.common.render import write_picture

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it reports building its cache once

_COLOURS = {"eager": "tab:gray", "compiled": "tab:blue", "onnx": "tab:orange", "projections": "tab:green"}


def draw_inference(result: dict[str, Any], path: Path) -> None:
    """A line for each engine, with a band from the median latency to the 99th percentile."""
    sizes = [int(size) for size in result["num_batches"]]
    figure = Figure(figsize=(11.5, 4.4), layout="constrained")
    speed, latency = figure.subplots(1, 2)
    for name, found in result["engines"].items():
        style = {"color": _COLOURS[name], "label": name}
        speed.loglog(sizes, [found[f"batch_{size}_mean_throughput"] for size in sizes], "o-", **style)
        median, last = ([1000 * found[f"batch_{size}_{key}_latency"] for size in sizes] for key in ("p50", "p99"))
        latency.loglog(sizes, median, "o-", **style)
        latency.fill_between(sizes, median, last, color=_COLOURS[name], alpha=0.15, linewidth=0)
    for axes, title in ((speed, "Samples scored per second"), (latency, "Latency, ms: median to 99th percentile")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("batch size")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    speed.legend(frameon=False)
    shape, machine = result["shape"], result["machine"]
    figure.suptitle(
        f"{shape['n_users']:,} users, {shape['n_items']:,} items, {result['precision']}; {result['threads']} of "
        f"{machine['cores']} cores of {machine['cpu']}; batches of random pairs",
        fontsize=9,
    )
    write_picture(path, figure)
