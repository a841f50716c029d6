"""Recommendation files, read back by other readers."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from model.recommend.recommendations import Recommendations
from model.recommend.writers import write_recommendations
from workflows.common.errors import UserError

TITLES = {"10": 'The "first", of all', "30": "Drei"}
ROWS = [  # user, rank, item, score, basis, title
    ("a,b", 1, 30, 0.75, "model", "Drei"),
    ("a,b", 2, 10, 0.5, "model", 'The "first", of all'),
    ("ü", 1, 20, 0.25, "popularity", None),
]


def parts() -> Iterator[Recommendations]:
    """Two parts; the second user has no recommendations."""
    users = np.array(["a,b", "none"], dtype=object)
    first = np.array([30, 10]), np.array([0.75, 0.5], dtype=np.float32)
    yield Recommendations(users, np.zeros(2, dtype=bool), np.array([0, 2, 2]), *first)
    last = np.array([20]), np.array([0.25], dtype=np.float32)
    yield Recommendations(np.array(["ü"], dtype=object), np.ones(1, dtype=bool), np.array([0, 1]), *last)


@pytest.mark.parametrize("titles", [None, TITLES])
def test_parquet_and_csv_have_one_row_per_recommendation(tmp_path: Path, titles: dict[str, str] | None) -> None:
    for suffix in (".csv", ".parquet"):
        write_recommendations(tmp_path / f"new/recs{suffix}", parts(), titles, overwrite=False)
    width = 6 if titles else 5
    names = ["user", "rank", "item", "score", "basis", "title"][:width]
    table = pq.read_table(tmp_path / "new/recs.parquet")
    assert table.column_names == names
    assert list(zip(*table.to_pydict().values(), strict=True)) == [row[:width] for row in ROWS]
    with (tmp_path / "new/recs.csv").open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == names
    assert lines == [["" if value is None else str(value) for value in row[:width]] for row in ROWS]


def test_json_has_one_object_per_user(tmp_path: Path) -> None:
    write_recommendations(tmp_path / "recs.json", parts(), TITLES, overwrite=False)
    items = [{"item": item, "score": score, "title": title} for _, _, item, score, _, title in ROWS]
    assert json.loads((tmp_path / "recs.json").read_text(encoding="utf-8")) == [
        {"user": "a,b", "basis": "model", "items": items[:2]},
        {"user": "none", "basis": "model", "items": []},
        {"user": "ü", "basis": "popularity", "items": items[2:]},
    ]


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".json"])
def test_files_are_written_atomically(tmp_path: Path, suffix: str) -> None:
    def failing() -> Iterator[Recommendations]:
        yield next(parts())
        raise KeyboardInterrupt

    target = tmp_path / f"recs{suffix}"
    with pytest.raises(KeyboardInterrupt):
        write_recommendations(target, failing(), None, overwrite=False)
    assert list(tmp_path.iterdir()) == []
    write_recommendations(target, parts(), None, overwrite=False)
    before = target.read_bytes()
    with pytest.raises(UserError, match=r"exists already.*--overwrite"):
        write_recommendations(target, parts(), None, overwrite=False)
    with pytest.raises(KeyboardInterrupt):
        write_recommendations(target, failing(), None, overwrite=True)
    write_recommendations(target, parts(), None, overwrite=True)
    assert target.read_bytes() == before  # unchanged
    assert list(tmp_path.iterdir()) == [target]


def test_integer_ids_stay_integers(tmp_path: Path) -> None:
    ids = np.array([2**62]), np.array([False]), np.array([0, 1]), np.array([7]), np.array([0.5], dtype=np.float32)
    write_recommendations(tmp_path / "recs.parquet", [Recommendations(*ids)], None, overwrite=False)
    frame = pd.read_parquet(tmp_path / "recs.parquet")
    assert frame.loc[0, ["user", "item"]].tolist() == [2**62, 7]
