"""Pictures of `peers.json`: quality of each row, and quality by time. They need only the JSON."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmark.peers.models import OURS
from workflows.common.render import write_picture

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it reports building its cache once

_COLOURS = {"ours": "tab:green", "default": "tab:gray", "tuned": "tab:blue"}  # by kind of row; all of ours are green


def draw_peers(result: dict[str, Any], path: Path) -> None:
    """Expected HR@10 and NDCG@10 of each row, with standard errors; rows without a result are named."""
    rows = result["results"]
    figure = Figure(figsize=(11.0, 1.4 + 0.3 * len(rows)), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2, sharey=True), ("hr@10", "ndcg@10"), strict=True):
        for place, each in enumerate(rows):
            if "error" in each:
                axes.text(0.0, place, "  did not run", va="center", fontsize=8, color="tab:red")
                continue
            found = each["metrics"][f"expected {metric}"]
            axes.barh(
                place,
                found["mean"],
                height=0.7,
                color=_COLOURS["ours" if each["peer"] == OURS else each["kind"]],
                xerr=found["standard_error"],
            )
            label = f"  {found['mean']:.3f}"
            axes.text(found["mean"] + found["standard_error"], place, label, va="center", fontsize=8)
        axes.set_yticks(range(len(rows)), [_label(each) for each in rows], fontsize=8)
        if not axes.yaxis_inverted():  # the panels share the axis
            axes.invert_yaxis()
        axes.set_xlim(0, 1.15 * axes.get_xlim()[1])  # room for the labels
        axes.set_title(f"expected {metric.upper()}", fontsize=10)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    write_picture(path, figure)


def draw_curves(result: dict[str, Any], path: Path) -> None:
    """HR@10 on test by CPU seconds since the start; a dot at the first point within 1 % of the final quality."""
    figure = Figure(figsize=(9.0, 5.5), layout="constrained")
    axes = figure.subplots()
    drawn = [each for each in result["results"] if each.get("curve") and each["kind"] != "default"]
    for number, each in enumerate(drawn or [each for each in result["results"] if each.get("curve")]):
        curve, style = each["curve"], "-" if each["peer"] == OURS else "--"
        seconds, quality = zip(*((point["cpu_s"], point["hr"]) for point in curve["points"]), strict=True)
        colour = colormaps["tab20"](2 * number % 20 + number // 10 % 2)  # dark ones first
        axes.plot(seconds, quality, style, color=colour, label=_label(each), linewidth=1.2)
        axes.plot(curve["within"]["cpu_s"], curve["within"]["hr"], "o", color=colour)
    axes.set_xscale("log")
    axes.set_xlabel("CPU seconds from the start, evaluation taken out")
    axes.set_ylabel("HR@10 on test")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.3)
    write_picture(path, figure)


def _label(each: dict[str, Any]) -> str:
    return f"{each['row']}, tuned" if each["kind"] == "tuned" else each["row"]
