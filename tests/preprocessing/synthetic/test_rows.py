"""Both sampling methods draw distinct items by weight and include the pre-assigned ones."""

from __future__ import annotations

import numpy as np
import pytest

from preprocessing.synthetic import rows as module


@pytest.mark.parametrize("n_items", [20, 48])  # by race, and by rejection: two of 48 are few
def test_items_are_drawn_without_replacement_by_weight(n_items: int) -> None:
    n_users = 20_000
    weights = np.random.default_rng(0).uniform(1, 5, n_items)
    none = np.empty(0, dtype=np.int64)
    keys = module._distinct_pairs(np.full(n_users, 2), none, weights, np.random.default_rng(1))
    assert len(np.unique(keys)) == 2 * n_users
    assert (np.bincount(keys // n_items) == 2).all()
    # An item is drawn first, or second after any other item.
    p = weights / weights.sum()
    included = p + p * ((p / (1 - p)).sum() - p / (1 - p))
    found = np.bincount(keys % n_items, minlength=n_items) / n_users
    assert (np.abs(found - included) < 5 * np.sqrt(included * (1 - included) / n_users)).all()


@pytest.mark.parametrize("wanted", [3, 40])
def test_pre_assigned_items_are_included(wanted: int) -> None:
    n_items = 100
    weights = np.ones(n_items)
    weights[[7, 9]] = 1e-9  # would practically never be drawn
    given = np.array([7, 9, 2 * n_items + 7])
    keys = module._distinct_pairs(np.full(3, wanted), given, weights, np.random.default_rng(1))
    assert set(given) <= set(keys)
    assert (np.bincount(keys // n_items) == wanted).all()
    assert not set(keys) & {n_items + 7, n_items + 9, 2 * n_items + 9}


def test_row_counts_add_up_between_floor_and_cap() -> None:
    for rows in (2_000, 2_001, 9_999, 30_000):
        counts = module._counts(100, 300, rows, np.random.default_rng(1))
        assert counts.sum() == rows
        assert counts.min() >= 20
        assert counts.max() <= 300
    assert counts.min() == 300  # every user has every item


def test_the_times_of_the_most_active_users_end_within_the_log() -> None:
    counts = np.array([60_000, 1, 20])
    keys = np.concatenate([user * 100_000 + np.arange(count) for user, count in enumerate(counts)])
    rows = module._with_times(keys, counts, 5, 100_000, np.random.default_rng(1))
    times = rows["time"]
    assert module._FIRST_S <= times.min() <= times.max() <= module._LAST_S
    assert (np.diff(times)[np.diff(rows["user"]) == 0] >= 0).all()
    assert np.ptp(times[:60_000]) > 0.9 * (module._LAST_S - module._FIRST_S)
    assert list(np.unique(rows["user"])) == [5, 6, 7]
