"""Exact negatives against plain loops over sets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workflows.counters import stream_seed
from workflows.interactions import Histories, histories
from workflows.negatives import distinct_numbers, rank_keys, row_negatives, series_negatives, unseen_item

SEED = stream_seed(1, 2, 3)

# Items seen by each of some users, out of 0 .. n_items - 1; a user may have seen all of them.
N_ITEMS = st.integers(1, 9)


@st.composite
def seen_sets(draw) -> tuple[int, list[set[int]]]:
    n_items = draw(N_ITEMS)
    item = st.integers(0, n_items - 1)
    return n_items, draw(st.lists(st.sets(item, min_size=1), min_size=1, max_size=6))


def rows_of(seen: list[set[int]]) -> tuple[np.ndarray, np.ndarray]:
    users = np.array([user for user, items in enumerate(seen) for _ in items], dtype=np.int64)
    return users, np.array([item for items in seen for item in sorted(items)], dtype=np.int64)


def history_of(seen: list[set[int]]) -> Histories:
    users, items = rows_of(seen)
    return histories(users, items, np.zeros_like(users))


@given(seen_sets())
def test_unseen_item_enumerates_the_unseen_items_in_order(case: tuple[int, list[set[int]]]) -> None:
    n_items, seen = case
    owners, by_item = rows_of(seen)
    counts = np.array([len(items) for items in seen])
    starts = np.cumsum(counts) - counts
    table = rank_keys(owners, by_item, starts, n_items)
    assert (np.diff(table) >= 0).all()
    for owner, items in enumerate(seen):
        unseen = sorted(set(range(n_items)) - items)
        ranks = np.arange(len(unseen))
        assert unseen_item(table, starts, np.full(len(unseen), owner), ranks, n_items).tolist() == unseen


@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(1, 12), st.integers(0, 100))
def test_distinct_numbers_are_ascending_in_range_and_distinct(bounds: list[int], length: int, seed: int) -> None:
    ids = np.arange(len(bounds))
    numbers = distinct_numbers(stream_seed(seed), ids, np.array(bounds), length)
    assert numbers.shape == (len(bounds), length)
    for row, bound in zip(numbers.tolist(), bounds, strict=True):
        assert row == sorted(row)
        if bound >= length:
            assert len(set(row)) == length
            assert set(row) <= set(range(bound))
        else:  # all there is, and the rest repeats, spread evenly
            assert set(row) == set(range(bound))
            times = Counter(row).values()
            assert max(times) - min(times) <= 1


@pytest.mark.parametrize("length", [1, 2, 100])
def test_distinct_numbers_of_one_are_all_zero(length: int) -> None:
    assert distinct_numbers(SEED, np.arange(3), np.ones(3, dtype=np.int64), length).tolist() == [[0] * length] * 3


def test_distinct_numbers_of_exactly_the_range_are_the_range() -> None:
    assert distinct_numbers(SEED, np.arange(4), np.full(4, 50), 50).tolist() == [list(range(50))] * 4


@pytest.mark.parametrize(("ids", "length"), [(0, 5), (5, 0), (0, 0)])
def test_distinct_numbers_of_nothing(ids: int, length: int) -> None:
    assert distinct_numbers(SEED, np.arange(ids), np.full(ids, 9), length).shape == (ids, length)


@pytest.mark.parametrize("bound", [5, 7, 8, 9, 40])  # below, at and above twice the length, where the method changes
def test_distinct_numbers_cover_all_subsets_evenly(bound: int, assert_uniform: Callable) -> None:
    if bound == 40:  # too many subsets to count: single numbers and pairs of them
        numbers = distinct_numbers(SEED, np.arange(40_000), np.full(40_000, bound), 4)
        together = np.zeros((bound, bound), dtype=np.int64)
        for first in range(4):
            for second in range(first + 1, 4):
                np.add.at(together, (numbers[:, first], numbers[:, second]), 1)
        assert_uniform(together[np.triu_indices(bound, k=1)])
        return
    numbers = distinct_numbers(SEED, np.arange(40_000), np.full(40_000, bound), 4)
    subsets = Counter(map(tuple, numbers.tolist()))
    assert len(subsets) == len({tuple(sorted(s)) for s in subsets})
    possible = 1
    for k in range(4):
        possible = possible * (bound - k) // (k + 1)
    assert len(subsets) == possible
    assert_uniform(np.array(list(subsets.values())))


def test_distinct_numbers_follow_the_id_alone() -> None:
    # Neither the other ids of the block nor their bounds matter: partitions cannot change a draw.
    ids, bounds = np.arange(30), np.tile([3, 12, 500], 10)
    whole = distinct_numbers(SEED, ids, bounds, 8)
    order = np.random.default_rng(0).permutation(30)
    np.testing.assert_array_equal(distinct_numbers(SEED, ids[order], bounds[order], 8), whole[order])
    for place in range(30):
        alone = distinct_numbers(SEED, ids[place : place + 1], bounds[place : place + 1], 8)
        np.testing.assert_array_equal(alone[0], whole[place])
    assert (distinct_numbers(SEED + 1, ids, bounds, 8) != whole).any()


def test_distinct_numbers_elsewhere_are_those_of_numpy() -> None:
    # 200 of 400: nearly every row collides and is drawn again.
    ids, bounds = np.arange(40), np.repeat([1, 150, 399, 400, 10_000], 8)
    in_numpy = distinct_numbers(SEED, ids, bounds, 200)
    for library in (torch, array_api_strict):
        found = distinct_numbers(SEED, library.asarray(ids), library.asarray(bounds), 200)
        np.testing.assert_array_equal(in_numpy, np.asarray(found))


def test_distinct_numbers_use_only_the_array_standard_on_one_device() -> None:
    other = array_api_strict.Device("device1")
    ids, bounds = (array_api_strict.asarray(values, device=other) for values in (np.arange(9), np.full(9, 30)))
    numbers = distinct_numbers(SEED, ids, bounds, 15)  # nine series of 15 out of 30: each collides, some twice
    assert numbers.device == other
    on_cpu = array_api_strict.from_dlpack(numbers, device=array_api_strict.Device("CPU_DEVICE"))
    np.testing.assert_array_equal(np.asarray(on_cpu), distinct_numbers(SEED, np.arange(9), np.full(9, 30), 15))


@given(seen_sets(), st.integers(1, 12), st.integers(0, 1000))
def test_series_negatives_are_outside_all_positives(case: tuple[int, list[set[int]]], length: int, seed: int) -> None:
    n_items, seen = case
    which = np.array([user for user, items in enumerate(seen) if len(items) < n_items], dtype=np.int64)
    series = series_negatives(history_of(seen), which, n_items, length, stream_seed(seed))
    assert series.shape == (len(which), length)
    for user, row in zip(which, series.tolist(), strict=True):
        unseen = set(range(n_items)) - seen[user]
        assert set(row) <= unseen
        assert len(set(row)) == min(length, len(unseen))


def test_series_negatives_are_uniform_over_the_unseen(assert_uniform: Callable) -> None:
    seen = [{0, 3, 4, 9, 19}] * 6000
    series = series_negatives(history_of(seen), np.arange(6000), 20, 5, SEED)
    counts = np.bincount(series.ravel(), minlength=20)
    unseen = sorted(set(range(20)) - seen[0])
    assert counts[sorted(seen[0])].sum() == 0
    # Drawn without replacement, counts vary less than independent ones would, so compare one draw of each series.
    column = np.random.default_rng(0).integers(0, 5, 6000)
    assert_uniform(np.bincount(series[np.arange(6000), column], minlength=20)[unseen])


def row_rows(users: np.ndarray, items: np.ndarray, negatives: np.ndarray, exists: np.ndarray) -> list[tuple]:
    zipped = zip(users.tolist(), items.tolist(), exists.tolist(), negatives.tolist(), strict=True)
    return [(user, item, there, row if there else None) for user, item, there, row in zipped]


@given(seen_sets(), st.integers(1, 5), st.integers(0, 1000))
def test_row_negatives_are_outside_the_users_positives(
    case: tuple[int, list[set[int]]], per_row: int, seed: int
) -> None:
    n_items, seen = case
    users, items = rows_of(seen)
    negatives, exists = row_negatives(users, items, n_items, per_row, stream_seed(seed))
    assert negatives.shape == (len(users), per_row)
    assert ((negatives >= 0) & (negatives < n_items)).all()  # valid ids even where they are to be left out
    for user, there, row in zip(users.tolist(), exists.tolist(), negatives.tolist(), strict=True):
        assert there == (len(seen[user]) < n_items)  # False for a user who has seen everything
        assert not there or not set(row) & seen[user]


def test_row_negatives_are_uniform_over_the_unseen(assert_uniform: Callable) -> None:
    users = np.repeat(np.arange(3000), 4)
    items = np.tile([2, 7, 8, 11], 3000)
    negatives, exists = row_negatives(users, items, 12, 4, SEED)
    assert exists.all()
    counts = np.bincount(negatives.ravel(), minlength=12)
    assert counts[[2, 7, 8, 11]].sum() == 0
    assert_uniform(np.delete(counts, [2, 7, 8, 11]))


def test_row_negatives_count_a_repeated_pair_once() -> None:
    # Two distinct positives of three items: the third is the only negative.
    users, items = np.zeros(5, dtype=np.int64), np.array([2, 0, 2, 2, 0])
    negatives, exists = row_negatives(users, items, 3, 3, SEED)
    assert exists.all()
    assert (negatives == 1).all()


def test_row_negatives_do_not_depend_on_how_users_are_split_over_blocks() -> None:
    rng = np.random.default_rng(4)
    seen = [set(rng.integers(0, 30, rng.integers(1, 25)).tolist()) for _ in range(60)]
    seen[7] = set(range(30))
    users, items = rows_of(seen)
    whole = Counter(map(repr, row_rows(users, items, *row_negatives(users, items, 30, 4, SEED))))
    for blocks in (2, 7, 60):
        parts: Counter = Counter()
        for block in rng.permutation(blocks):
            mine = users % blocks == block
            parts += Counter(
                map(repr, row_rows(users[mine], items[mine], *row_negatives(users[mine], items[mine], 30, 4, SEED)))
            )
        assert parts == whole


def test_row_negatives_take_users_in_any_order() -> None:
    users, items = np.array([5, 5, 2, 9, 9]), np.array([0, 1, 3, 2, 0])
    negatives, exists = row_negatives(users, items, 5, 3, SEED)
    assert exists.all()
    for user in (5, 2, 9):
        mine = users == user
        alone, _ = row_negatives(users[mine], items[mine], 5, 3, SEED)
        np.testing.assert_array_equal(negatives[mine], alone)


def test_row_negatives_are_new_with_each_seed_and_draw() -> None:
    users, items = np.repeat(np.arange(50), 3), np.tile([0, 1, 2], 50)
    first, _ = row_negatives(users, items, 10_000, 4, stream_seed(1, 0))
    second, _ = row_negatives(users, items, 10_000, 4, stream_seed(1, 1))
    assert (first == second).mean() < 0.01
    assert len(np.unique(first)) > 0.9 * first.size


def test_row_negatives_in_torch_and_in_the_array_standard_are_those_of_numpy() -> None:
    rng = np.random.default_rng(9)
    seen = [set(rng.integers(0, 40, 30).tolist()) for _ in range(20)] + [set(range(40)), {39}, {0}]
    users, items = rows_of(seen)
    expected = row_negatives(users, items, 40, 4, SEED)
    for library in (torch, array_api_strict):
        found = row_negatives(library.asarray(users), library.asarray(items), 40, 4, SEED)
        for ours, theirs in zip(expected, found, strict=True):
            np.testing.assert_array_equal(ours, np.asarray(theirs))


def test_row_negatives_stay_on_the_device_of_the_rows() -> None:
    users, items = map(torch.from_numpy, rows_of([{0, 2}, {1}]))
    with torch.device("meta"):  # where an array that names no device would go
        negatives, exists = row_negatives(users, items, 4, 2, SEED)
    assert negatives.device == exists.device == users.device


@pytest.mark.parametrize("length", [0, 3])
def test_distinct_numbers_stay_on_the_device_of_the_ids(length: int) -> None:
    ids, bounds = torch.arange(50), torch.full((50,), 7)  # narrow enough for collisions
    with torch.device("meta"):
        numbers = distinct_numbers(SEED, ids, bounds, length)
    assert numbers.device == ids.device


@pytest.mark.parametrize("library", [np, torch])
def test_row_negatives_of_nothing(library) -> None:
    nothing = library.asarray(np.array([], dtype=np.int64))
    negatives, exists = row_negatives(nothing, nothing, 5, 3, SEED)
    assert tuple(negatives.shape) == (0, 3)
    assert tuple(exists.shape) == (0,)


def test_ids_near_the_largest_catalogue_do_not_overflow() -> None:
    n_items = 2**31 - 1
    users, items = np.array([0, 10**6, 10**6]), np.array([n_items - 1, 0, n_items - 1])
    negatives, exists = row_negatives(users, items, n_items, 50, SEED)
    assert exists.all()
    assert ((negatives >= 0) & (negatives < n_items)).all()
    series = series_negatives(histories(users, items, users), np.array([0, 1]), n_items, 50, SEED)
    assert not set(series[0].tolist()) & {n_items - 1}
    assert not set(series[1].tolist()) & {0, n_items - 1}
