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
    """A line for each engine and precision, with a band from the median latency to the 99th percentile."""
    sizes = [int(size) for size in result["num_batches"]]
    figure = Figure(figsize=(11.5, 4.4), layout="constrained")
    speed, latency = figure.subplots(1, 2)
    precisions = list(dict.fromkeys(found["precision"] for found in result["engines"]))
    for found in result["engines"]:
        dashes, colour = "-" if found["precision"] == precisions[0] else "--", _COLOURS[found["engine"]]
        style: dict[str, Any] = {"color": colour, "linestyle": dashes, "marker": "o"}
        style["label"] = f"{found['engine']}, {found['precision']}" if len(precisions) > 1 else found["engine"]
        speed.loglog(sizes, [found[f"batch_{size}_mean_throughput"] for size in sizes], **style)
        median, last = ([1000 * found[f"batch_{size}_{key}_latency"] for size in sizes] for key in ("p50", "p99"))
        latency.loglog(sizes, median, **style)
        latency.fill_between(sizes, median, last, color=colour, alpha=0.15, linewidth=0)
    for axes, title in ((speed, "Samples scored per second"), (latency, "Latency, ms: median to 99th percentile")):
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("batch size")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    speed.legend(frameon=False)
    shape = result["shape"]
    figure.suptitle(
        f"{shape['n_users']:,} users, {shape['n_items']:,} items, {', '.join(precisions)}; {_where(result)}; "
        "batches of random pairs",
        fontsize=9,
    )
    write_picture(path, figure)


def _where(result: dict[str, Any]) -> str:
    machine = result["machine"]
    on_cpu = f"{result['threads']} of {machine['cores']} cores of {machine['cpu']}"
    return on_cpu if result["device"] == "cpu" else result["device"]
