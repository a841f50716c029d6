from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from preprocessing.prepare import report
from preprocessing.prepare.report import spread, write_report

STATS: dict[str, Any] = {
    "source": "log.csv",
    "rows_read": 20_000,
    "dropped_missing": 2_500,
    "dropped_below_min_rating": 0,
    "dropped_rare_birds": 1_234,
    "interactions": 16_266,
    "items": 7_321,
    "users": 5_432,
    "train_positives": 11_111,
    "train_rows": 22_222,
    "test_series": 5_155,
    "users_with_one_interaction": 271,
    "users_with_all_items": 6,
    "series_with_repeated_negatives": 4_444,
    "density": 0.000409,
    "test_negatives": 99,
    "train_negatives": 1,
    "order": "random",
    "seed": 17,
    "fingerprint": {"encoding": "1a2b", "split": "3c4d"},
    "partitions": 13,
    "rare_setting": "on",
    "rare_number": 3.75,
}
# Small counts, counts around the limit between tallying and sorting, and large ones.
COUNTS = st.lists(
    st.one_of(st.integers(1, 9), st.integers((1 << 16) - 2, (1 << 16) + 2), st.integers(1, 1 << 30)), min_size=1
)


class Text(HTMLParser):
    """The tags of a page with attributes, and its text: one string per heading, tile and table row."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[str] = [""]
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("h1", "h2", "dt", "tr"):
            self.rows.append("")

    def handle_data(self, data: str) -> None:
        self.rows[-1] = f"{self.rows[-1]} {data.strip()}".strip()


@pytest.fixture(scope="module")
def page(fresh: Callable[[], Path]) -> Callable[..., str]:
    def write(stats: dict[str, Any] = STATS, users: Any = (5, 2, 2, 1), items: Any = (1, 1, 1, 7)) -> str:
        folder = fresh()
        write_report(folder, stats, np.array(users, np.int64), np.array(items, np.int64))
        assert [path.name for path in folder.iterdir()] == ["report.html"]
        return (folder / "report.html").read_text(encoding="utf-8")

    return write


@given(COUNTS)
def test_spread_matches_sorting(counts: list[int]) -> None:
    ordered = sorted(counts, reverse=True)
    result = spread(np.array(counts, np.int64))
    tops = np.arange(1, len(counts) + 1)
    assert result.ids == len(counts)
    assert len(result.values) == len(set(counts))
    np.testing.assert_array_equal(result.at_rank(tops), ordered)
    np.testing.assert_allclose(result.share_of_top(tops), [sum(ordered[:top]) / sum(ordered) for top in tops])
    summary = result.summary()
    assert (summary["max"], summary["once"]) == (max(counts), counts.count(1))
    np.testing.assert_allclose([summary["mean"], summary["median"]], [np.mean(counts), np.median(counts)])


def test_spread_of_several_blocks_of_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.random.default_rng(0).zipf(1.3, 1_000).clip(max=1 << 40)
    whole = spread(counts)
    monkeypatch.setattr(report, "_CHUNK_IDS", 64)
    pieces = spread(counts)
    for name in ("values", "ranks", "sums"):
        np.testing.assert_array_equal(getattr(pieces, name), getattr(whole, name))


def test_top_percentages_are_rounded_up_to_whole_ids() -> None:
    # 150 ids: one with 851 interactions, 149 with one each; 1 % of them is 1.5 ids.
    summary = spread(np.array([1] * 149 + [851])).summary()
    assert summary["top"] == {1: (2, 0.852), 10: (15, 0.865), 50: (75, 0.925)}
    assert spread(np.array([3])).summary()["top"] == {1: (1, 1.0), 10: (1, 1.0), 50: (1, 1.0)}


def test_charts_show_the_counts() -> None:
    axes = Figure().subplots(1, 3)
    counts = np.array([9, 1, 1, 2, 3, 4, 7, 8, 1, 1])
    report._draw_ranks(axes[0], spread(counts), "#000000")
    np.testing.assert_array_equal(axes[0].lines[0].get_xydata(), [*enumerate([9, 8, 7, 4, 3, 2, 1, 1, 1, 1], 1)])
    report._draw_shares(axes[1], spread(np.array([3, 1])), "#000000")
    np.testing.assert_allclose(axes[1].lines[0].get_xydata(), [(0, 0), (50, 75), (100, 100)])
    report._draw_histogram(axes[2], spread(counts), "#000000")
    bars = axes[2].patches[0].get_data()
    np.testing.assert_allclose(bars.values, [40, 20, 20, 20])  # 1, 2–3, 4–7, 8–15
    np.testing.assert_array_equal(bars.edges, [1, 2, 4, 8, 16])


def test_a_log_axis_has_labels_even_for_a_single_point() -> None:
    axes = Figure().subplots()
    report._draw_ranks(axes, spread(np.array([3])), "#000000")
    for low, high in (axes.get_xlim(), axes.get_ylim()):
        assert low < 1
        assert high > 10


@pytest.mark.parametrize("stop", [1, 2, 10, 1_000, 10**9])
def test_long_curves_are_thinned_but_keep_their_endpoints(stop: int) -> None:
    ranks = report._log_spaced(stop)
    assert (ranks[0], ranks[-1]) == (1, stop)
    assert len(ranks) <= 200
    assert (np.diff(ranks) > 0).all()


def test_every_number_is_on_the_page(page: Callable[..., str]) -> None:
    rows = Text(page()).rows
    for row in (
        "rows read 20,000 100 %",
        "– without user, item or time 2,500 12.5 %",
        "– rated below --min-rating 0 0 %",
        "– rare birds 1,234 6.17 %",
        "interactions kept 16,266 81.3 %",
        "interactions 16,266",
        "users 5,432",
        "items 7,321",
        "density 0.0409 %",
        "order of a user's interactions by time, as in the files, or drawn; the last one is held out random",
        "seed of the negatives, and of a drawn order 17",
        "partitions 13",
        "rare setting on",
        "rare number 3.75",
        "interactions, mean 2.5 2.5",
        "interactions, median 2.0 1.0",
        "interactions, most 5 7",
        "with a single interaction 1 3",
        "interactions held by the busiest 50 % 70 % top 2 80 % top 2",
    ):
        assert rows.count(row) == 1, row
    bars = [attrs["style"] for _, attrs in Text(page()).tags if attrs.get("class") == "bar"]
    assert bars == ["width:100.00%", "width:12.50%", "width:6.17%", "width:81.33%"]
    text = "\n".join(rows)
    for value in ("11,111", "22,222", "5,155", "271", "4,444", "99"):
        assert len(re.findall(rf" {value}$", text, re.M)) == 1, value


def test_source_names_are_escaped(page: Callable[..., str]) -> None:
    name = "<script>alert('1')</script>.csv"
    parsed = Text(page(STATS | {"source": name, "dropped_<i>": 1, "rare_setting": "<i>"}))
    assert not {"script", "i"} & {tag for tag, _ in parsed.tags}
    assert f"Data report: {name}" in parsed.rows
    assert "– <i> 1 0.005 %" in parsed.rows
    assert "rare setting <i>" in parsed.rows


def test_a_source_name_that_is_not_utf_8_is_still_written(page: Callable[..., str]) -> None:
    assert r"log-\udce9.csv" in page(STATS | {"source": b"log-\xe9.csv".decode("utf-8", "surrogateescape")})


def test_equal_inputs_give_equal_bytes(page: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    first = page()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")  # matplotlib would use it to date the charts
    assert page() == first
    assert page(users=(5, 2, 1, 1)) != first


def test_the_page_is_self_contained(page: Callable[..., str]) -> None:
    written = page()
    tags = Text(written).tags
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in tags}
    assert all(attrs[name].startswith("#") for _, attrs in tags for name in attrs if name.endswith(("href", "src")))
    assert set(re.findall(r"https?://[^\"\s]+", written)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert "default-src 'none'" in written


def test_charts_are_complete_svgs_with_unique_ids(page: Callable[..., str]) -> None:
    written = page()
    charts = re.findall(r"<svg.*?</svg>", written, re.S)
    assert len(charts) == 3
    for chart in charts:
        ET.fromstring(chart)
        own = set(re.findall(r' id="([^"]+)"', chart))
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', chart)) <= own
    ids = re.findall(r' id="([^"]+)"', written)
    assert len(ids) == len(set(ids))


def test_charts_use_the_theme_colours(page: Callable[..., str]) -> None:
    written = page()
    assert "#00000" not in written
    for colour in ("currentColor", "var(--users)", "var(--items)"):
        assert colour in "".join(re.findall(r"<svg.*?</svg>", written, re.S))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("users", "items"),
    [([1], [1]), ([3], [1, 1, 1]), ([2] * 50, [100]), ([1] * 99, [1] * 99), ([1 << 40], [1 << 39, 1 << 39])],
)
def test_degenerate_logs_have_a_report(page: Callable[..., str], users: list[int], items: list[int]) -> None:
    written = page(users=users, items=items)
    assert "nan" not in written.lower()
    assert written.count("<svg") == 3


def test_the_page_stays_small_for_many_ids(page: Callable[..., str]) -> None:
    counts = np.random.default_rng(1).zipf(1.5, 300_000).clip(max=10**7)
    assert len(page(users=counts, items=counts)) < 200_000
