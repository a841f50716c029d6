"""Rankings stored as columns, and top-k against Python's sort."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.recommend.recommendations import Ranking, Recommendations, best

few_values = st.sampled_from([-math.inf, -1.5, 0.0, 0.25, 3.0])


@given(
    st.integers(1, 9).flatmap(lambda n: st.lists(st.lists(few_values, min_size=n, max_size=n), min_size=1)), st.data()
)
def test_ties_are_ordered_by_column(rows: list[list[float]], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 12))
    found, columns = best(torch.tensor(rows), k)
    for row, scores, places in zip(rows, found.tolist(), columns.tolist(), strict=True):
        ordered = sorted(range(len(row)), key=lambda place: (-row[place], place))[:k]
        assert scores == [row[place] for place in ordered]
        there = [place for place in ordered if row[place] > -math.inf]
        assert places[: len(there)] == there


FOUND = Recommendations(
    np.array([7, 9, 8]),
    np.array([False, False, True]),
    np.array([0, 2, 2, 3]),
    np.array(["b", "a", "b"], dtype=object),
    np.array([0.75, 0.5, 0.25], dtype=np.float32),
)


def test_rankings_are_a_sequence() -> None:
    rankings = [
        Ranking(7, "model", ["b", "a"], [0.75, 0.5]),
        Ranking(9, "model", [], []),
        Ranking(8, "popularity", ["b"], [0.25]),
    ]
    assert list(FOUND) == rankings
    assert FOUND[-1] == rankings[2]
    assert FOUND[1:] == rankings[1:]
    assert len(FOUND) == 3
    with pytest.raises(IndexError):
        FOUND[3]


def test_a_table_has_one_row_per_recommendation() -> None:
    table = FOUND.to_table()
    assert table.schema.types == [pa.int64(), pa.int32(), pa.string(), pa.float32(), pa.string()]
    assert table.to_pydict() == {
        "user": [7, 7, 8],
        "rank": [1, 2, 1],
        "item": ["b", "a", "b"],
        "score": [0.75, 0.5, 0.25],
        "basis": ["model", "model", "popularity"],
    }
