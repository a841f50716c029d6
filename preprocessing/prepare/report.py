"""`report.html`: rows read, dropped and kept, and the distribution of interactions over users and items."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workflows.common.render import templates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

REPORT_NAME = "report.html"
_TOP_PERCENTS = (1, 10, 50)
_CURVE_POINTS = 200  # per curve, whatever the number of ids
_CHUNK_IDS = 1 << 20  # counted at a time, to avoid a second copy of the counts
_COMMON_COUNTS = 1 << 16  # smaller counts are tallied in a table; the few larger ones are sorted

# Placeholder colours, replaced by the page's CSS variables so charts follow its light and dark themes.
_INK, _USERS, _ITEMS = "#000001", "#000002", "#000003"
_CSS_COLOURS = {_INK: "currentColor", _USERS: "var(--users)", _ITEMS: "var(--items)"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: small, searchable, in the page's font
    "savefig.transparent": True,
    "font.size": 11.0,
    **dict.fromkeys(("axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), _INK),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
}


@dataclass(frozen=True)
class Spread:
    """Distribution of interactions over ids, busiest first; ids with equal counts share an entry.

    A log of N interactions has at most √(2N) entries, whatever its number of ids.
    """

    values: np.ndarray  # interactions per id, int64 [V], descending
    ranks: np.ndarray  # number of ids with at least that many, int64 [V]
    sums: np.ndarray  # total interactions of those ids, int64 [V]

    @property
    def ids(self) -> int:
        """Number of ids."""
        return int(self.ranks[-1])

    def at_rank(self, ranks: Any) -> np.ndarray:
        """Interactions of the ids at these ranks (from 1), int64."""
        return self.values[np.searchsorted(self.ranks, ranks)]

    def share_of_top(self, top: Any) -> np.ndarray:
        """Share of all interactions held by the `top` busiest ids (at least 1), float64."""
        entry = np.searchsorted(self.ranks, top)
        return (self.sums[entry] - (self.ranks[entry] - top) * self.values[entry]) / self.sums[-1]

    def summary(self) -> dict[str, Any]:
        """Figures for the page's table; the top p % is rounded up to whole ids."""
        tops = {percent: -(-self.ids * percent // 100) for percent in _TOP_PERCENTS}
        return {
            "ids": self.ids,
            "mean": float(self.sums[-1] / self.ids),
            "median": float(self.at_rank([(self.ids + 1) // 2, self.ids // 2 + 1]).mean()),
            "max": int(self.values[0]),
            "once": int(np.diff(self.ranks, prepend=0)[self.values == 1].sum()),
            "top": {percent: (top, float(self.share_of_top(top))) for percent, top in tops.items()},
        }


def spread(counts: np.ndarray) -> Spread:
    """Summarise the interactions per id.

    Args:
        counts: int64, each at least 1, shape [ids], not empty.
    """
    table = np.zeros(_COMMON_COUNTS + 1, np.int64)
    rest = []
    for start in range(0, len(counts), _CHUNK_IDS):
        chunk = counts[start : start + _CHUNK_IDS]
        table += np.bincount(np.minimum(chunk, _COMMON_COUNTS), minlength=_COMMON_COUNTS + 1)
        rest.append(chunk[chunk >= _COMMON_COUNTS])
    common = np.flatnonzero(table[:-1])
    rare, times = np.unique(np.concatenate(rest), return_counts=True)
    values = np.concatenate([common, rare])[::-1]
    ids = np.concatenate([table[common], times])[::-1]
    return Spread(values, np.cumsum(ids), np.cumsum(values * ids))


def write_report(folder: Path, stats: dict[str, Any], user_counts: np.ndarray, item_counts: np.ndarray) -> None:
    """Write `report.html`, a self-contained page; equal arguments give equal bytes.

    Args:
        folder: a prepared folder, or its staging folder.
        stats: content of `stats.json`.
        user_counts, item_counts: positives (train and held out) of each encoded id, int64, each at least 1,
            shapes [users] and [items], not empty.
    """
    users, items = spread(user_counts), spread(item_counts)
    dropped = {key: count for key, count in stats.items() if key.startswith("dropped_")}
    environment = templates(Path(__file__).parent)
    environment.filters |= {"number": _number, "percent": _percent}
    page = environment.get_template("report.html.j2").render(
        stats=stats,
        dropped=dropped,
        spreads=[users.summary(), items.summary()],
        charts=_draw(users, items),
    )
    # A file name that is not UTF-8 contains lone surrogates, which cannot be encoded directly.
    (folder / REPORT_NAME).write_text(page, encoding="utf-8", errors="backslashreplace")


def _number(value: Any) -> str:
    return f"{round(value, 2):,}" if isinstance(value, int | float) else str(value)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _draw(users: Spread, items: Spread) -> dict[str, str]:
    """Inline SVGs: interactions by rank, share of the busiest, ids by number of interactions."""
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it logs building its font cache
    charts: dict[str, Callable[[Axes, Spread, str], None]] = {
        "rank": _draw_ranks,
        "share": _draw_shares,
        "histogram": _draw_histogram,
    }
    return {name: _svg(name, draw, users, items) for name, draw in charts.items()}


def _svg(name: str, draw: Callable[[Axes, Spread, str], None], users: Spread, items: Spread) -> str:
    import matplotlib
    from matplotlib.figure import Figure

    # Reused parts get hashed ids, salted per chart because all charts share the page.
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.4, 3.2))
        figure.subplots_adjust(left=0.16, right=0.97, bottom=0.18, top=0.96)
        axes = figure.subplots()
        draw(axes, items, _ITEMS)
        draw(axes, users, _USERS)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' id="[\w.]+_\d+"', "", svg)  # identical across charts, and never referenced
    return re.sub("|".join(_CSS_COLOURS), lambda found: _CSS_COLOURS[found[0]], svg)


def _draw_ranks(axes: Axes, ids: Spread, colour: str) -> None:
    ranks = _log_spaced(ids.ids)
    # The marker shows the busiest id, and makes a curve of a single id visible.
    axes.loglog(ranks, ids.at_rank(ranks), color=colour, marker="o", markersize=4, markevery=[0])
    axes.set_xlabel("rank")
    axes.set_ylabel("interactions")
    _plain_log_axis(axes, "xy")


def _draw_shares(axes: Axes, ids: Spread, colour: str) -> None:
    top = _log_spaced(ids.ids)
    percent, held = 100 * top / ids.ids, 100 * ids.share_of_top(top)
    axes.plot([0, *percent], [0, *held], color=colour)
    axes.set_xlabel("% of users / items, busiest first")
    axes.set_ylabel("% of interactions")


def _draw_histogram(axes: Axes, ids: Spread, colour: str) -> None:
    edges = 2 ** np.arange(int(ids.values[0]).bit_length() + 1)
    counted, _ = np.histogram(ids.values, edges, weights=np.diff(ids.ranks, prepend=0))
    share = 100 * counted / ids.ids
    axes.stairs(share, edges, fill=True, facecolor=(colour, 0.3), edgecolor=colour, linewidth=1.2)
    axes.set_xscale("log")
    axes.set_xlabel("interactions (1, 2–3, 4–7, 8–15, …)")
    axes.set_ylabel("% of users / items")
    _plain_log_axis(axes, "x")


def _log_spaced(stop: int) -> np.ndarray:
    """Integers 1 .. `stop` inclusive, about evenly spaced on a log axis, int64."""
    return np.unique(np.rint(np.geomspace(1, stop, _CURVE_POINTS)).astype(np.int64))


def _plain_log_axis(axes: Axes, names: str) -> None:
    """Label a log axis 1, 10, 100, 1k …, starting at 1 and covering at least one decade."""
    from matplotlib.ticker import EngFormatter, NullLocator

    for name in names:
        axis = getattr(axes, f"{name}axis")
        axis.set_major_formatter(EngFormatter(sep=""))
        axis.set_minor_locator(NullLocator())
        _, stop = axis.get_data_interval()
        axis.axes.set(**{f"{name}lim": (0.8, 1.3 * max(10.0, stop))})
