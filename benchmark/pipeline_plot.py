"""The picture of `pipeline.json`: time, memory and, where it was measured, growth. Drawn from the JSON alone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it tells of the cache it builds once

_COLOURS = {"ours": "tab:green", "baseline": "tab:gray"}
_LABELS = {"ours": "this pipeline", "baseline": "pandas"}


def draw_pipeline(result: dict[str, Any], path: Path) -> None:
    """Bars of wall time and peak memory of each case with their ratio; a line of growth."""
    growth = result.get("growth")
    figure = Figure(figsize=(15 if growth else 10.5, 4.2), layout="constrained")
    panels = figure.subplots(1, 3 if growth else 2)
    _bars(panels[0], result["cases"], "wall_s", 1.0, "Wall time, seconds")
    _bars(panels[1], result["cases"], "peak_pss_bytes", 1 << 20, "Peak memory (PSS), MiB")
    if growth:
        _growth(panels[2], growth)
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    shape, machine = result["shape"], result["machine"]
    figure.suptitle(
        f"{shape['rows']:,} interactions, {shape['users']:,} users, {shape['items']:,} items; "
        f"{machine['cores']} cores of {machine['cpu']}; median of {result['repeats']}",
        fontsize=9,
    )
    partial = path.with_name(f".{path.name}.partial.png")
    figure.savefig(partial, dpi=110, metadata={"Software": None})
    partial.replace(path)


def _bars(axes: Axes, cases: list[dict[str, Any]], measured: str, unit: float, title: str) -> None:
    """A pair of bars for each case; ours says how many times as much pandas takes."""
    for offset, name in ((-0.2, "baseline"), (0.2, "ours")):
        places = [index + offset for index in range(len(cases))]
        values = [case[name][measured] / unit for case in cases]
        axes.barh(places, values, height=0.38, color=_COLOURS[name], label=_LABELS[name])
        for place, value, case in zip(places, values, cases, strict=True):
            ratio = f"  (pandas: {case['baseline_over_ours'][measured]:.1f} ×)" if name == "ours" else ""
            axes.text(value, place, f" {value:,.3g}{ratio}", va="center", fontsize=8)
    axes.set_yticks(range(len(cases)), [case["name"] for case in cases])
    axes.invert_yaxis()
    axes.margins(x=0.3)
    axes.set_xlim(left=0)
    axes.set_title(title)
    axes.legend(frameon=False, loc="lower right", fontsize=8)


def _growth(axes: Axes, growth: dict[str, Any]) -> None:
    """Seconds and peak memory over the number of rows, both logarithmic."""
    rows = [point["rows"] for point in growth["points"]]
    axes.loglog(rows, [point["wall_s"] for point in growth["points"]], "o-", color="tab:green", label="seconds")
    memory = [point["peak_pss_bytes"] / (1 << 20) for point in growth["points"]]
    axes.loglog(rows, memory, "s--", color="tab:orange", label="peak PSS, MiB")
    axes.set_xlabel("rows")
    axes.set_title("Growth, users in proportion")
    axes.legend(frameon=False, fontsize=8)
