"""Rules of the data against their definitions on lists, with rows that arrive in blocks of any size."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.spec.consistency import OwnerValues, find_series, run_starts, whole_rows

Row = tuple[int, float]  # user, label


@st.composite
def nearly_series(draw: st.DrawFn) -> list[Row]:
    """Series or near-series."""
    length, users = draw(st.integers(1, 4)), draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))
    rows = [(user, float(place == 0)) for user in users for place in range(length)]
    for place in draw(st.lists(st.integers(0, len(rows) - 1), max_size=1)):
        rows[place] = draw(st.tuples(st.integers(0, 3), st.sampled_from([0.0, 1.0])))
    return rows[: draw(st.integers(1, len(rows)))]


@given(nearly_series(), st.booleans(), st.integers(1, 9), st.none() | st.integers(1, 4))
def test_series_match_their_definition(rows: list[Row], labelled: bool, block_rows: int, declared: int | None) -> None:
    def read(names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        columns = dict(zip(("user", "label"), map(np.array, zip(*rows, strict=True)), strict=True))
        for start in range(0, len(rows), block_rows):
            yield {name: columns[name][start : start + block_rows] for name in names}

    found = find_series(read, declared, "user", "label" if labelled else None)
    runs = [len(list(run)) for _, run in itertools.groupby(rows, key=lambda row: row[0])]
    length = declared or runs[0]
    begin = [label > 0 for _, label in rows] == [place % length == 0 for place in range(len(rows))]
    if declared:
        assert (found.length, found.note) == (declared, "")
        assert bool(found.error) == (len(rows) % length > 0 or (labelled and not begin))
    elif length > 1 and set(runs) == {length} and (begin or not labelled):
        assert (found.length, found.error) == (length, "")
        assert found.note == f"test series of {length} rows, found in the data"
    else:
        assert found.length is None
        assert "test_samples_per_series is missing, and " in (found.note if labelled else found.error)
        assert bool(found.error) != labelled


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), min_size=1), st.integers(1, 9), st.booleans())
def test_an_owner_with_two_values_is_found(pairs: list[tuple[int, int]], block_rows: int, tensors: bool) -> None:
    make = torch.tensor if tensors else np.array
    values = OwnerValues(make([7] * 4))
    for start in range(0, len(pairs), block_rows):
        owners, block = zip(*pairs[start : start + block_rows], strict=True)
        values.add(make(owners), make(block))
    expected = {owner: {value for other, value in pairs if other == owner} for owner in range(4)}
    if all(len(found) < 2 for found in expected.values()):
        assert values.contradiction == ""
        assert values.table.tolist() == [min(expected[owner], default=7) for owner in range(4)]
    else:
        owner, told = values.contradiction.split(" has both ")
        assert {int(value) for value in told.split(" and ")} == expected[int(owner)] == {0, 1}


@pytest.mark.parametrize("make", [np.array, torch.tensor])
def test_runs_of_users(make) -> None:
    users = make([4, 4, 1, 1, 1, 4])
    assert run_starts(users).tolist() == [True, False, True, False, False, True]
    assert run_starts(users, 4).tolist() == [False, False, True, False, False, True]
    assert [whole_rows(users[:size]) for size in range(6)] == [0, 0, 0, 2, 2, 2]
