"""Plots `quality.json`: HR@10 and NDCG@10 of each model, with standard errors. Needs only the JSON."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from workflows.common.render import write_picture

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it reports building its cache once

_COLOURS = {"baseline": "tab:gray", "plain": "tab:blue", "recipe": "tab:green", "ablation": "tab:olive"}


def draw_quality(result: dict[str, Any], path: Path) -> None:
    """A bar for each row and metric on the test series; marks show the expectation over all draws of negatives."""
    results = result["results"]
    figure = Figure(figsize=(11.5, 1.3 + 0.33 * len(results)), layout="constrained")
    for axes, metric in zip(figure.subplots(1, 2, sharey=True), ("hr@10", "ndcg@10"), strict=True):
        _bars(axes, results, metric)
    data, seeds = result["data"], len(result["seeds"])
    figure.suptitle(
        f"{data['users']:,} test users, {data['negatives']} negatives each; mean of seeds: {seeds}; lines: standard "
        "error; marks: as expected over all draws of the negatives",
        fontsize=9,
    )
    write_picture(path, figure)


def _bars(axes: Axes, results: list[dict[str, Any]], metric: str) -> None:
    places = range(len(results))
    sampled, expected = ([each["metrics"][f"{way} {metric}"] for each in results] for way in ("sampled", "expected"))
    values, errors = ([each[key] for each in sampled] for key in ("mean", "standard_error"))
    colours = [_COLOURS[each["kind"]] for each in results]
    axes.barh(places, values, height=0.7, color=colours, xerr=errors, error_kw={"elinewidth": 1.0})
    axes.plot([each["mean"] for each in expected], places, "k|", markersize=9)
    for place, (value, error) in enumerate(zip(values, errors, strict=True)):
        axes.text(value + error, place, f"  {value:.3f}", va="center", fontsize=8)
    axes.set_yticks(places, [each["row"] for each in results], fontsize=8)
    if not axes.yaxis_inverted():  # the panels share the axis
        axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.set_xlim(0, 1.15 * axes.get_xlim()[1])  # room for the labels
    axes.set_title(metric.upper(), fontsize=10)
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
