"""Negatives against plain loops over sets, and their probabilities against enumeration."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import array_api_strict
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from workflows.device.loops import COMPILED_ROWS
from workflows.sampling import counter_rng, negatives
from workflows.sampling.counter_rng import stream_seed
from workflows.sampling.interactions import Histories, histories
from workflows.sampling.negatives import MAX_WEIGHT, Candidates, row_negatives, series_negatives

SEED = stream_seed(1, 2, 3)
EXACT = pytest.mark.parametrize("exact", [True, False])
OTHER_DEVICE = array_api_strict.Device("device1")


@dataclass(frozen=True)
class Case:
    """A log and its candidates.

    Attributes:
        users, items, times: int64 [N]; pairs may repeat.
        weights: weight of each item; None: all equal.
        first: first occurrence of each item; None: not time-aware.
    """

    n_items: int
    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    weights: np.ndarray | None = None
    first: np.ndarray | None = None

    @property
    def history(self) -> Histories:
        return histories(self.users, self.items, self.times)

    @property
    def candidates(self) -> Candidates:
        order = None if self.first is None else np.lexsort((np.arange(self.n_items), self.first))
        before = items = places = since = None
        if order is not None and self.first is not None:
            items, places, since = order, np.argsort(order), self.first[order]
        if self.weights is not None:
            weights = self.weights if order is None else self.weights[order]
            before = np.concatenate([[0], np.cumsum(weights)])
        return Candidates(self.n_items, before, items, places, since)

    @property
    def seen(self) -> dict[int, set[int]]:
        seen: dict[int, set[int]] = {}
        for user, item in zip(self.users.tolist(), self.items.tolist(), strict=True):
            seen.setdefault(user, set()).add(item)
        return seen

    def available(self, user: int, time: int) -> set[int]:
        """The candidate negatives for a user's positive at a given time."""
        unseen = set(range(self.n_items)) - self.seen[user]
        return (unseen & self.appeared(time)) or unseen

    def appeared(self, time: int) -> set[int]:
        return {item for item in range(self.n_items) if self.first is None or self.first[item] <= time}

    def last_times(self) -> dict[int, int]:
        """The time of each user's last interaction; repeated pairs count at their earliest time."""
        earliest: dict[tuple[int, int], int] = {}
        for user, item, time in zip(self.users.tolist(), self.items.tolist(), self.times.tolist(), strict=True):
            earliest[user, item] = min(time, earliest.get((user, item), time))
        return {user: max(time for (who, _), time in earliest.items() if who == user) for user, _ in earliest}


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Few items, so that ties and users with all items are common; weights differ by factors of a thousand or more."""
    n_items = draw(st.integers(1, 9))
    item = st.integers(0, n_items - 1)
    rows = draw(st.lists(st.tuples(st.integers(-2, 5), item, st.integers(0, 6)), min_size=1, max_size=30))
    users, items, times = np.array(sorted(rows, key=lambda row: row[0]), dtype=np.int64).T
    each = {"min_size": n_items, "max_size": n_items}
    weights = draw(st.none() | st.lists(st.sampled_from([1, 2, 1000, 10**9]), **each).map(np.array))
    first = draw(st.none() | st.lists(st.integers(0, 8), **each).map(np.array))
    return Case(n_items, users, items, times, weights, first)


def with_unseen(case: Case) -> np.ndarray:
    """Indices of the users in the history who have an unseen item."""
    return np.flatnonzero(case.history.counts < case.n_items)


def library_copy(value: Any, convert: Callable[[np.ndarray], Any]) -> Any:
    """A `Histories` or `Candidates` with its arrays in another library."""
    arrays = {name: convert(array) for name, array in vars(value).items() if isinstance(array, np.ndarray)}
    return replace(value, **arrays)


def strict(values: np.ndarray) -> Any:
    return array_api_strict.asarray(values, device=OTHER_DEVICE)


def to_numpy(values: Any) -> np.ndarray:
    assert values.device == OTHER_DEVICE
    return np.asarray(array_api_strict.from_dlpack(values, device=array_api_strict.Device("CPU_DEVICE")))


# --- Test series ------------------------------------------------------------------------------------------------


@given(cases(), st.integers(0, 12), st.integers(0, 1000))
def test_series_are_distinct_unseen_items_if_there_are_enough(case: Case, length: int, seed: int) -> None:
    history, which, last = case.history, with_unseen(case), case.last_times()
    series = series_negatives(history, which, case.candidates, length, stream_seed(seed))
    assert series.shape == (len(which), length)
    for user, row in zip(history.users[which].tolist(), series.tolist(), strict=True):
        available = case.available(user, last[user])
        assert row == sorted(row)
        assert set(row) <= available
        assert len(set(row)) == min(length, len(available))
        if row:  # if there are fewer, repeats are spread evenly
            times = Counter(row).values()
            assert max(times) - min(times) <= (len(available) < length)


@given(cases(), st.integers(0, 5), st.integers(0, 1000))
def test_inexact_series_are_any_items_that_had_appeared(case: Case, length: int, seed: int) -> None:
    history, which, last = case.history, with_unseen(case), case.last_times()
    series = series_negatives(history, which, case.candidates, length, stream_seed(seed), exact=False)
    assert series.shape == (len(which), length)
    for user, row in zip(history.users[which].tolist(), series.tolist(), strict=True):
        assert row == sorted(row)
        assert set(row) <= (case.appeared(last[user]) or set(range(case.n_items)))


def uniform_case(n_users: int, seen: Iterable[int], n_items: int, weights: list[int] | None = None) -> Case:
    """Many users who have all seen the same items."""
    items = np.array(sorted(seen))
    users = np.repeat(np.arange(n_users), len(items))
    items = np.tile(items, n_users)
    return Case(n_items, users, items, np.zeros_like(users), None if weights is None else np.array(weights))


def series_of(case: Case, length: int, **options: Any) -> np.ndarray:
    return series_negatives(case.history, with_unseen(case), case.candidates, length, SEED, **options)


@pytest.mark.parametrize("n_unseen", [5, 7, 8, 9])
def test_series_cover_all_subsets_evenly(n_unseen: int, assert_uniform: Callable) -> None:
    series = series_of(uniform_case(20_000, {0, 2}, n_unseen + 2), 4)
    subsets = Counter(map(tuple, series.tolist()))
    unseen = set(range(n_unseen + 2)) - {0, 2}
    assert set(subsets) == set(itertools.combinations(sorted(unseen), 4))
    assert_uniform(np.array(list(subsets.values())))


def test_pairs_in_longer_series_are_uniform(assert_uniform: Callable) -> None:
    series = series_of(uniform_case(10_000, {39, 40}, 41), 6)
    together = np.zeros((39, 39), dtype=np.int64)
    # One pair of each series, so that counts are independent.
    chosen = np.sort(np.argsort(np.random.default_rng(0).random((10_000, 6)), axis=1)[:, :2], axis=1)
    pairs = np.take_along_axis(series, chosen, axis=1)
    np.add.at(together, (pairs[:, 0], pairs[:, 1]), 1)
    assert_uniform(together[np.triu_indices(39, k=1)])


def successive_sampling(weights: dict[int, int], length: int) -> dict[tuple[int, ...], float]:
    """The probability of each set under sequential draws without replacement, by weight."""
    chances: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(weights, length):
        chance, left = 1.0, float(sum(weights.values()))
        for item in order:
            chance *= weights[item] / left
            left -= weights[item]
        subset = tuple(sorted(order))
        chances[subset] = chances.get(subset, 0.0) + chance
    return chances


def assert_chances(counts: Counter, chances: dict[Any, float]) -> None:
    """Chi-square test with a false alarm rate of one in a million."""
    total = sum(counts.values())
    assert set(counts) <= set(chances)
    expected = np.array(list(chances.values())) * total
    assert expected.min() >= 5, "too few draws for a chi-square test"
    assert stats.chisquare([counts[outcome] for outcome in chances], expected).pvalue > 1e-6


@pytest.mark.parametrize("weights", [[5, 1, 2, 3, 9, 4, 30], [1, 1, 1, 1, 1, 1, 1], [20, 7, 5, 5, 5, 90, 20]])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_popularity_series_match_sequential_draws_by_weight(weights: list[int], length: int) -> None:
    # After a heavy item is drawn, later rounds exclude it: this reveals wrong probabilities.
    case = uniform_case(40_000, {1, 6}, 7, weights)
    found = Counter(map(tuple, series_of(case, length).tolist()))
    assert_chances(found, successive_sampling({item: weights[item] for item in (0, 2, 3, 4, 5)}, length))


def test_popularity_weights_hold_for_time_aware_candidates() -> None:
    weights, first = [9, 1, 4, 2, 6], np.array([3, 0, 9, 1, 3])
    case = replace(uniform_case(30_000, {3}, 5, weights), first=first)
    case = replace(case, times=case.times + 5)  # item 2 appeared at 9
    found = Counter(map(tuple, series_of(case, 2).tolist()))
    assert_chances(found, successive_sampling({0: 9, 1: 1, 4: 6}, 2))


def test_inexact_series_follow_the_weights_of_all_items() -> None:
    weights = [9, 1, 4, 2]
    case = uniform_case(10_000, {0}, 4, weights)
    found = Counter(series_of(case, 3, exact=False).ravel().tolist())
    assert_chances(found, {item: weight / 16 for item, weight in enumerate(weights)})


@EXACT
def test_all_items_are_candidates_if_none_had_appeared(exact: bool, assert_uniform: Callable) -> None:
    # As when a fitted workflow transforms a log older than the one it was fitted on.
    case = replace(uniform_case(5000, {5}, 6), first=np.arange(6) + 100)
    series, (rows, _) = series_of(case, 1, exact=exact), rows_of(case, 1, exact=exact)
    for drawn in (series, rows):
        assert_uniform(np.bincount(drawn.ravel(), minlength=6 - exact))


def random_case(n_users: int, n_items: int, per_user: int, kind: str, seed: int = 4) -> Case:
    """A mix of users: one has all items, one all but one, the others fewer than `per_user`."""
    rng = np.random.default_rng(seed)
    users = np.repeat(np.arange(n_users), rng.integers(1, per_user, n_users))
    items = rng.integers(0, n_items, len(users))
    users = np.concatenate([users, np.full(n_items, n_users), np.full(n_items - 1, n_users + 1)])
    items = np.concatenate([items, np.arange(n_items), np.arange(n_items - 1)])
    times = rng.integers(0, 50, len(users))
    weights = rng.integers(1, 1000, n_items) ** 2 if "popularity" in kind else None
    first = rng.integers(0, 60, n_items) if "time" in kind else None
    return Case(n_items, users * 7, items, times, weights, first)


KINDS = pytest.mark.parametrize("kind", ["exact", "popularity", "time", "popularity and time"])


@KINDS
@EXACT
def test_series_depend_only_on_the_user(kind: str, exact: bool) -> None:
    # Other users in the partition cannot change a draw.
    case = random_case(30, 40, 25, kind)
    whole = dict(zip(case.history.users[with_unseen(case)], series_of(case, 12, exact=exact), strict=True))
    for blocks in (2, 7, 31):
        for block in range(blocks):
            mine = case.users // 7 % blocks == block
            part = replace(case, users=case.users[mine], items=case.items[mine], times=case.times[mine])
            found = series_of(part, 12, exact=exact)
            for user, row in zip(part.history.users[with_unseen(part)], found, strict=True):
                np.testing.assert_array_equal(row, whole[user])
    reseeded = series_negatives(case.history, with_unseen(case), case.candidates, 12, SEED + 1, exact)
    assert (reseeded != np.array(list(whole.values()))).any()


def test_series_of_some_users_match_those_of_all() -> None:
    case = random_case(30, 40, 25, "popularity")
    which = with_unseen(case)
    some = which[::3]
    found = series_negatives(case.history, some, case.candidates, 12, SEED)
    np.testing.assert_array_equal(found, series_of(case, 12)[::3])


@KINDS
@EXACT
def test_series_use_only_the_array_standard_and_one_device(kind: str, exact: bool) -> None:
    case = random_case(12, 40, 35, kind)  # nearly all series have collisions and need several rounds
    which = with_unseen(case)
    history, candidates = library_copy(case.history, strict), library_copy(case.candidates, strict)
    found = series_negatives(history, strict(which), candidates, 20, SEED, exact)
    np.testing.assert_array_equal(to_numpy(found), series_of(case, 20, exact=exact))


@pytest.mark.parametrize(("users", "length"), [(0, 5), (5, 0), (0, 0)])
@EXACT
def test_empty_series(users: int, length: int, exact: bool) -> None:
    case = uniform_case(5, {0}, 4)
    found = series_negatives(case.history, np.arange(users), case.candidates, length, SEED, exact)
    assert found.shape == (users, length)


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shape of each drawn block of random bits."""
    drawn: list[tuple[int, ...]] = []
    draws = counter_rng.draws

    def counted(*args: Any) -> Any:
        bits = draws(*args)
        drawn.append(bits.shape)
        return bits

    monkeypatch.setattr(counter_rng, "draws", counted)
    monkeypatch.setattr(negatives, "host_loops", lambda _: None)  # compiled loops draw one at a time
    return drawn


@KINDS
def test_a_user_with_one_unseen_item_needs_no_retries(kind: str, rounds: list) -> None:
    n_items = 50_000
    case = replace(random_case(1, n_items, 2, kind), users=np.zeros(n_items - 1, dtype=np.int64))
    case = replace(case, items=np.delete(np.arange(n_items), 777), times=np.zeros(n_items - 1, dtype=np.int64))
    assert series_of(case, 100).tolist() == [[777] * 100]
    assert len(rounds) <= 2
    rounds.clear()
    negatives, exists = row_negatives(case.users, case.items, case.candidates, 2, SEED, case.times)
    assert exists.all()
    assert (negatives == 777).all()
    assert rounds == [(n_items - 1, 2)]


@pytest.mark.parametrize(
    ("weights", "most"),
    [([MAX_WEIGHT - 299] + [1] * 299, 12), ([1 << min(place, 37) for place in range(38)] + [1] * 200, 25)],
    ids=["one dominant item", "doubling weights"],
)
def test_extreme_weights_need_few_rounds(weights: list[int], most: int, rounds: list) -> None:
    # Rejection sampling would need about 10^11 draws.
    n_items = len(weights)
    case = uniform_case(50, {n_items - 1}, n_items, weights)
    series = series_of(case, n_items - 2)  # all but one of the remaining items
    for row in series.tolist():
        assert len(set(row)) == n_items - 2
    assert len(rounds) <= most
    assert sum(users * drawn for users, drawn in rounds) < 50 * n_items * 10


# --- Training rows ----------------------------------------------------------------------------------------------


def rows_of(case: Case, per_row: int, xp: ModuleType = np, seed: int = SEED, exact: bool = True):
    columns = [xp.asarray(column) for column in (case.users, case.items, case.times)]
    users, items, times = columns
    candidates = library_copy(case.candidates, xp.asarray)
    return row_negatives(users, items, candidates, per_row, seed, times, exact)


@given(cases(), st.integers(1, 5), st.integers(0, 1000))
def test_row_negatives_are_unseen_items_that_had_appeared(case: Case, per_row: int, seed: int) -> None:
    negatives, exists = rows_of(case, per_row, seed=stream_seed(seed))
    assert negatives.shape == (len(case.users), per_row)
    assert ((negatives >= 0) & (negatives < case.n_items)).all()  # valid ids even in rows to be ignored
    for user, time, there, row in zip(case.users, case.times, exists, negatives.tolist(), strict=True):
        assert there == (len(case.seen[user]) < case.n_items)  # False for a user who has seen everything
        assert not there or set(row) <= case.available(user, time)


@given(cases(), st.integers(0, 1000))
def test_inexact_row_negatives_are_any_items_that_had_appeared(case: Case, seed: int) -> None:
    negatives, exists = rows_of(case, 3, seed=stream_seed(seed), exact=False)
    assert exists.all()
    for time, row in zip(case.times, negatives.tolist(), strict=True):
        assert set(row) <= (case.appeared(time) or set(range(case.n_items)))


@pytest.mark.parametrize(
    ("n_users", "weights"),
    [(3000, None), (10_000, None), (3000, [3, 1, 8, 2, 2, 5, 90, 1, 1, 4, 6, 7])],
    ids=["uniform_case", "alike, compiled", "weights"],
)
def test_row_negatives_follow_the_weights_of_the_unseen_items(n_users: int, weights: list[int] | None) -> None:
    case = uniform_case(n_users, {2, 7, 8, 11}, 12, weights)
    assert (len(case.users) >= COMPILED_ROWS) == (n_users == 10_000)
    negatives, exists = rows_of(case, 4)
    assert exists.all()
    unseen = {item: 1 if weights is None else weights[item] for item in range(12) if item not in {2, 7, 8, 11}}
    total = sum(unseen.values())
    assert_chances(Counter(negatives.ravel().tolist()), {item: weight / total for item, weight in unseen.items()})


def test_users_rows_and_draws_are_independent(assert_uniform: Callable) -> None:
    # Sixteen unseen items: pairs of draws fill a 16 x 16 grid evenly only if they are independent.
    case = uniform_case(20_000, {16, 17}, 18)
    negatives, _ = rows_of(case, 2)
    of_user = negatives.reshape(20_000, 2, 2)

    def board(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.bincount(one * 16 + other, minlength=256)

    assert_uniform(board(of_user[:, 0, 0], of_user[:, 0, 1]))  # draws within a row
    assert_uniform(board(of_user[:, 0, 0], of_user[:, 1, 0]))  # rows within a user
    assert_uniform(board(of_user[:, 0, 1], of_user[:, 1, 0]))  # across a row boundary
    assert_uniform(board(of_user[:-1, 0, 0], of_user[1:, 0, 0]))  # across users
    series = series_of(case, 1)[:, 0]
    assert_uniform(board(series[:-1], series[1:]))


def test_row_negatives_count_a_repeated_pair_once() -> None:
    # Two distinct positives among three items: the third is the only negative.
    users, items = np.zeros(5, dtype=np.int64), np.array([2, 0, 2, 2, 0])
    negatives, exists = row_negatives(users, items, Candidates(3), 3, SEED)
    assert exists.all()
    assert (negatives == 1).all()


@KINDS
@EXACT
def test_row_negatives_do_not_depend_on_how_users_are_split_into_blocks(kind: str, exact: bool) -> None:
    case = random_case(60, 30, 25, kind)
    whole, exists = rows_of(case, 4, exact=exact)
    for blocks in (2, 7, 62):
        for block in range(blocks):
            mine = case.users // 7 % blocks == block
            part = replace(case, users=case.users[mine], items=case.items[mine], times=case.times[mine])
            found, there = rows_of(part, 4, exact=exact)
            np.testing.assert_array_equal(there, exists[mine])
            np.testing.assert_array_equal(found[there], whole[mine][there])


def test_row_negatives_accept_users_in_any_order() -> None:
    users, items = np.array([5, 5, 2, 9, 9]), np.array([0, 1, 3, 2, 0])
    negatives, exists = row_negatives(users, items, Candidates(5), 3, SEED)
    assert exists.all()
    for user in (5, 2, 9):
        mine = users == user
        alone, _ = row_negatives(users[mine], items[mine], Candidates(5), 3, SEED)
        np.testing.assert_array_equal(negatives[mine], alone)


def test_row_negatives_change_with_the_seed_and_the_draw() -> None:
    case = uniform_case(50, {0, 1, 2}, 10_000)
    (first, _), (second, _) = (rows_of(case, 4, seed=stream_seed(1, epoch)) for epoch in range(2))
    assert (first == second).mean() < 0.01
    assert len(np.unique(first)) > 0.9 * first.size


@KINDS
@EXACT
@pytest.mark.parametrize("library", [torch, array_api_strict])
def test_row_negatives_in_other_libraries_match_numpy(library: ModuleType, kind: str, exact: bool) -> None:
    case = random_case(20, 40, 30, kind)
    expected = rows_of(case, 4, exact=exact)
    for ours, theirs in zip(expected, rows_of(case, 4, library, exact=exact), strict=True):
        np.testing.assert_array_equal(ours, np.asarray(theirs))


@KINDS
def test_row_negatives_stay_on_the_device_of_the_rows(kind: str) -> None:
    case = random_case(4, 9, 5, kind)
    columns = [strict(column) for column in (case.users, case.items, case.times)]
    found = row_negatives(*columns[:2], library_copy(case.candidates, strict), 2, SEED, columns[2])
    for ours, theirs in zip(rows_of(case, 2), found, strict=True):
        np.testing.assert_array_equal(ours, to_numpy(theirs))


def test_torch_row_negatives_stay_on_the_device_of_the_rows() -> None:
    users, items = torch.tensor([0, 0, 1]), torch.tensor([0, 2, 1])
    with torch.device("meta"):  # the default device, for arrays created without an explicit one
        negatives, exists = row_negatives(users, items, Candidates(4), 2, SEED)
    assert negatives.device == exists.device == users.device


@pytest.mark.parametrize("library", [np, torch])
def test_row_negatives_of_no_rows(library: ModuleType) -> None:
    nothing = library.asarray(np.array([], dtype=np.int64))
    negatives, exists = row_negatives(nothing, nothing, Candidates(5), 3, SEED)
    assert tuple(negatives.shape) == (0, 3)
    assert tuple(exists.shape) == (0,)


def test_ids_of_the_largest_catalogue_do_not_overflow() -> None:
    n_items = 2**31 - 1
    users, items = np.array([0, 10**6, 10**6]), np.array([n_items - 1, 0, n_items - 1])
    negatives, exists = row_negatives(users, items, Candidates(n_items), 50, SEED)
    assert exists.all()
    assert ((negatives >= 0) & (negatives < n_items)).all()
    series = series_negatives(histories(users, items, users), np.array([0, 1]), Candidates(n_items), 50, SEED)
    assert not set(series[0].tolist()) & {n_items - 1}
    assert not set(series[1].tolist()) & {0, n_items - 1}


def test_the_maximum_weight_does_not_overflow_for_many_users() -> None:
    # 300,000 users at the maximum weight: keys near 2^57. Half the weight belongs to the item that all have seen.
    case = uniform_case(300_000, {1}, 3, [MAX_WEIGHT // 4, MAX_WEIGHT // 2, MAX_WEIGHT // 4])
    negatives, exists = rows_of(case, 1)
    assert exists.all()
    found = Counter(negatives.ravel().tolist())
    assert_chances(found, {0: 0.5, 2: 0.5})
