"""Plots `cost-model.json`: memory traffic per sample by stage, and bounds on every machine. Needs only the JSON."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workflows.common.render import write_picture

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it reports building its cache once

_BARS = {  # (program, precision): (label, colour)
    ("plain training", "tf32"): ("reference's way, TF32", "silver"),
    ("plain training", "amp"): ("reference's way, AMP", "tab:gray"),
    ("training", "tf32"): ("torch step, TF32", "lightgreen"),
    ("training", "amp"): ("torch step, AMP", "tab:green"),
    ("fused training", "tf32"): ("fused step, TF32", "lightskyblue"),
    ("fused training", "amp"): ("fused step, AMP", "tab:blue"),
}
_STAGE_COLOURS = {
    "loader": "tab:cyan",
    "negative sampling": "tab:purple",
    "gather": "tab:orange",
    "forward": "tab:blue",
    "backward": "tab:red",
    "batch": "tab:olive",
    "tiles": "cornflowerblue",
    "products": "lightcoral",
    "optimizer": "tab:brown",
}


def draw_cost_model(result: dict[str, Any], path: Path) -> None:
    size = max(each["batch_size"] for each in result["bounds"] if each["batch_size"])
    figure = Figure(figsize=(15, 5), layout="constrained")
    traffic, alone, together = figure.subplots(1, 3, width_ratios=(2.5, 3, 3))
    _traffic(traffic, result["counts"], size)
    devices = sorted({each["devices"] for each in result["bounds"]})
    for axes, number in ((alone, devices[0]), (together, devices[-1])):
        _bounds(axes, [b for b in result["bounds"] if b["batch_size"] == size and b["devices"] == number])
        axes.set_title(f"Million samples/s, devices: {number}, batches of {size:,}", fontsize=10)
    together.legend(fontsize=8, loc="upper left")
    shape = result["shape"]
    figure.suptitle(
        f"NOT MEASURED: {result['label']}. {shape['users']:,} users, {shape['items']:,} items.\n"
        "Outlines: upper bounds; bars: at usual efficiencies; crosses: published by NVIDIA for the reference",
        fontsize=9,
    )
    write_picture(path, figure)


def _traffic(axes: Axes, counts: list[dict[str, Any]], size: int) -> None:
    """Stacked bars: kilobytes of memory traffic per sample of each program, by stage."""
    programs = {
        ("plain training", "fp32"): "reference,\nfp32",
        ("plain training", "amp"): "reference,\nAMP",
        ("training", "fp32"): "torch,\nfp32",
        ("training", "amp"): "torch,\nAMP",
        ("fused training", "tf32"): "fused,\nTF32",
        ("fused training", "amp"): "fused,\nAMP",
    }
    labelled: set[str] = set()
    for place, (program, precision) in enumerate(programs):
        (stages,) = (
            each["stages"]
            for each in counts
            if (each["program"], each["precision"], each["batch_size"], each["devices"])
            == (program, precision, size, 1)
        )
        below = 0.0
        for stage, colour in _STAGE_COLOURS.items():
            if stage in stages:
                total = stages[stage]["total"]
                kilobytes = (total["read_bytes"] + total["written_bytes"]) / 1e3
                axes.bar(place, kilobytes, bottom=below, color=colour, label=None if stage in labelled else stage)
                labelled.add(stage)
                below += kilobytes
    axes.set_xticks(range(len(programs)), programs.values(), fontsize=8)
    axes.set_title("Kilobytes through memory per sample", fontsize=10)
    axes.set_ylim(0, 1.5 * axes.get_ylim()[1])  # room for the legend
    axes.legend(fontsize=8, ncols=2)
    _clean(axes)


def _bounds(axes: Axes, bounds: list[dict[str, Any]]) -> None:
    """Bars for each program and precision on each machine."""
    machines = list(dict.fromkeys(each["machine"] for each in bounds))
    for number, ((program, precision), (label, colour)) in enumerate(_BARS.items()):
        for place, machine in enumerate(machines):
            (found,) = (
                b for b in bounds if (b["program"], b["precision"], b["machine"]) == (program, precision, machine)
            )
            at = place + 0.14 * (number - 2.5)
            bound, likely = found["serial_samples_per_s"] / 1e6, found["realistic_samples_per_s"] / 1e6
            axes.bar(at, bound, width=0.12, fill=False, edgecolor=colour, linewidth=1)
            axes.bar(at, likely, width=0.12, color=colour, label=None if place else label)
            if program == "plain training" and found["published_samples_per_s"]:
                axes.plot(at, found["published_samples_per_s"] / 1e6, "kx", markersize=7)
    axes.set_xticks(range(len(machines)), machines)
    _clean(axes)


def _clean(axes: Axes) -> None:
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
