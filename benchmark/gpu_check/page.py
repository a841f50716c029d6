"""The report of `python -m benchmark gpu-check`: JSON, two plots, and a page that needs only the JSON."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from benchmark.common.page import embedded, write_page
from workflows.common.files import write_json
from workflows.common.render import write_picture

RESULT_NAME, REPORT_NAME = "report.json", "report.html"
_SPEED_NAME, _LOSS_NAME = "throughput.png", "losses.png"
logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it reports building its cache once


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write the results so far, each file atomically.

    Args:
        report: the contents of `report.json`.
    """

    write_json(folder / RESULT_NAME, report)
    speeds = [each for each in _all(report, "figures") if each["unit"] == "samples/s"]
    pictures = [
        name
        for name, drawn in ((_SPEED_NAME, _draw_speeds(folder, speeds)), (_LOSS_NAME, _draw_losses(folder, report)))
        if drawn
    ]
    write_page(
        folder / REPORT_NAME,
        Path(__file__).with_name("report.html.j2"),
        report=report,
        figures=_all(report, "figures"),
        pictures=[embedded(folder / name) for name in pictures],
    )


def _all(report: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [each for check in report["checks"].values() for each in check.get(kind, [])]


def _draw_speeds(folder: Path, speeds: list[dict[str, Any]]) -> bool:
    """Bars of samples/s, each with a mark at the reference's published figure."""
    if not speeds:
        return False
    figure = Figure(figsize=(10, 0.9 + 0.35 * len(speeds)), layout="constrained")
    axes = figure.subplots()
    axes.barh(
        range(len(speeds)), [each["value"] for each in speeds], height=0.7, color="tab:green", label="measured here"
    )
    published = [(place, each["published"]) for place, each in enumerate(speeds) if each["published"]]
    if published:
        places, values = zip(*published, strict=True)
        axes.plot(values, places, "k|", markersize=14, label=speeds[places[0]]["published_of"])
    axes.set_yticks(range(len(speeds)), [each["what"] for each in speeds], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("samples/s")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, folder / _SPEED_NAME)
    return True


def _draw_losses(folder: Path, report: dict[str, Any]) -> bool:
    """A panel for each check that trained: loss by step or epoch."""
    checks = {name: check["curves"] for name, check in report["checks"].items() if check.get("curves")}
    if not checks:
        return False
    figure = Figure(figsize=(4.6 * len(checks), 3.4), layout="constrained")
    for axes, (name, curves) in zip(figure.subplots(1, len(checks), squeeze=False).flat, checks.items(), strict=True):
        for label, losses in curves.items():
            axes.plot(losses, label=label, marker=".", linewidth=1.0)
        axes.set_title(f"{name}: loss", fontsize=10)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)
    _save(figure, folder / _LOSS_NAME)
    return True


def _save(figure: Figure, path: Path) -> None:
    write_picture(path, figure)
