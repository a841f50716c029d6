"""Histories against pandas, and sort orders against `numpy.lexsort`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.sampling.interactions import histories, run_starts, stable_order

WIDE = st.integers(-(2**63), 2**63 - 1)
NARROW = st.integers(-3, 3)


def columns_of(rows: list[tuple[int, ...]], width: int) -> list[np.ndarray]:
    return [np.array([row[place] for row in rows], dtype=np.int64) for place in range(width)]


@given(st.lists(st.tuples(NARROW, WIDE, NARROW), max_size=60))
def test_stable_order_matches_lexsort(rows: list[tuple[int, ...]]) -> None:
    columns = columns_of(rows, 3)
    np.testing.assert_array_equal(stable_order(*columns), np.lexsort(columns))


@pytest.mark.parametrize("span", [1, 2, 2**16 - 1, 2**16, 2**16 + 1, 2**32, 2**48, 2**63 - 1, 2**64 - 1])
@pytest.mark.parametrize("low", [-(2**63), -5, 0])
def test_stable_order_at_digit_boundaries(low: int, span: int) -> None:
    high = min(low + span, 2**63 - 1)
    values = np.array([high, low, high, low, high - 1, low + 1, low, high], dtype=np.int64)
    np.testing.assert_array_equal(stable_order(values), np.argsort(values, kind="stable"))


def test_stable_order_keeps_the_order_of_ties() -> None:
    values = np.array([1, 0, 1, 0, 0, 1])
    assert stable_order(values).tolist() == [1, 3, 4, 0, 2, 5]
    assert stable_order(np.zeros(5, dtype=np.int32)).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_stable_order_of_zero_rows_and_one_row(dtype: type) -> None:
    assert stable_order(np.array([], dtype=dtype)).tolist() == []
    assert stable_order(np.array([7], dtype=dtype), np.array([-7], dtype=dtype)).tolist() == [0]


def test_stable_order_of_columns_of_different_dtypes() -> None:
    rng = np.random.default_rng(5)
    time = rng.integers(-(10**15), 10**15, 5000)
    item = rng.integers(0, 200_000, 5000).astype(np.int32)
    user = rng.integers(-40, 40, 5000).astype(np.int8)
    np.testing.assert_array_equal(stable_order(time, item, user), np.lexsort([time, item, user]))


def test_run_starts() -> None:
    assert run_starts(np.array([3, 3, 1, 3, 3])).tolist() == [True, False, True, True, False]
    assert run_starts(np.array([9])).tolist() == [True]
    assert run_starts(np.array([], dtype=np.int64)).tolist() == []


def brute_force(users: np.ndarray, items: np.ndarray, times: np.ndarray) -> dict[str, list[int]]:
    """Users, their row counts, and their items in both orders, from pandas."""
    log = pd.DataFrame({"user": users, "item": items, "time": times})
    log = log.sort_values("time", kind="stable").drop_duplicates(["user", "item"], keep="first")
    counts = log.groupby("user").size()
    return {
        "users": counts.index.tolist(),
        "counts": counts.tolist(),
        "starts": (counts.cumsum() - counts).tolist(),
        "by_item": log.sort_values(["user", "item"])["item"].tolist(),
        "by_time": log.sort_values(["user", "time", "item"])["item"].tolist(),
        "rows": np.repeat(np.arange(len(counts)), counts).tolist(),
    }


def as_lists(history) -> dict[str, list[int]]:
    values = {name: np.asarray(getattr(history, name)) for name in ("users", "counts", "starts", "rows", "items")}
    values["by_item"] = values.pop("items")
    values["by_time"] = values["by_item"][np.asarray(history.by_time)]
    return {name: array.tolist() for name, array in values.items()}


@given(st.lists(st.tuples(st.integers(-1, 6), st.integers(0, 8), st.integers(-2, 3)), min_size=1, max_size=80))
def test_histories_match_pandas(rows: list[tuple[int, ...]]) -> None:
    columns = columns_of(rows, 3)
    assert as_lists(histories(*columns)) == brute_force(*columns)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
)
def test_histories_do_not_depend_on_row_order(rows: list[tuple[int, ...]], random) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert as_lists(histories(*columns_of(rows, 3))) == as_lists(histories(*columns_of(shuffled, 3)))


def test_a_repeated_pair_counts_at_its_earliest_time() -> None:
    # Item 5 first occurs at 10, so it precedes item 7 at 20; its repeat at 30 does not count.
    history = histories(np.array([1, 1, 1]), np.array([5, 7, 5]), np.array([30, 20, 10]))
    assert history.items[history.by_time].tolist() == [5, 7]
    assert history.times.tolist() == [10, 20]
    assert history.counts.tolist() == [2]


def test_ties_in_time_are_ordered_by_item() -> None:
    history = histories(np.array([1, 1, 1]), np.array([8, 2, 5]), np.array([4, 4, 4]))
    assert history.items[history.by_time].tolist() == [2, 5, 8]


def test_histories_of_many_rows_with_realistic_times() -> None:
    rng = np.random.default_rng(11)
    users, items = rng.integers(0, 300, 20_000).astype(np.int32), rng.integers(0, 70_000, 20_000).astype(np.int32)
    times = rng.integers(1_400_000_000, 1_400_000_500, 20_000) * 1_000_000  # microseconds, many ties
    history = histories(users, items, times)
    assert as_lists(history) == brute_force(users, items, times)
    assert {history.users.dtype, history.rows.dtype, history.by_time.dtype} == {np.dtype(np.int64)}


def test_histories_of_no_rows() -> None:
    nothing = np.array([], dtype=np.int64)
    assert all(values == [] for values in as_lists(histories(nothing, nothing, nothing)).values())


@pytest.mark.parametrize("place", range(3))
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.bool_])
def test_non_integer_columns_are_rejected(place: int, dtype: type) -> None:
    columns = [np.array([2, 1, 0]) for _ in range(3)]
    columns[place] = columns[place].astype(dtype)
    with pytest.raises(TypeError, match=f"should be integers, got {np.dtype(dtype)}"):
        histories(*columns)
