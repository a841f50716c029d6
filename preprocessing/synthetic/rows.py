"""Rows of a synthetic log, sorted by user and time: long tails, distinct pairs, sessions; in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

# A row: user and item from 0, time in seconds since 1970, rating 0 .. 9 for 0.5 .. 5.0.
ROW = np.dtype([("user", "<i4"), ("item", "<i4"), ("time", "<i4"), ("rating", "u1")])

_MIN_PER_USER = 20  # as in MovieLens
_BLOCK_ROWS, _RACE_CELLS = 1 << 20, 1 << 22
_FIRST_S, _LAST_S = 789_652_009, 1_427_784_002  # MovieLens-20M: January 1995 to March 2015
_SESSION_GAP_S = 20 * 86_400
# Shares of the ratings 0.5, 1.0 … 5.0 in 256ths, about those of MovieLens-20M.
_RATINGS = np.repeat(np.arange(10, dtype=np.uint8), (3, 9, 4, 18, 11, 55, 28, 71, 20, 37))


def row_blocks(n_users: int, n_items: int, n_rows: int, seed: int) -> Iterator[np.ndarray]:
    """Generate a log sorted by user, then time, as `ROW` arrays of about `_BLOCK_ROWS` rows; no user is split.

    Args:
        n_rows: at least the number of users and of items (each occurs), and at most their product.
    """
    rng = np.random.default_rng([seed, 3])
    counts = _counts(n_users, n_items, n_rows, rng)
    starts = np.concatenate([[0], np.cumsum(counts)])
    # Log popularity falls with the square root of the rank, roughly as in MovieLens-20M.
    weights = np.exp(-11 * np.sqrt(rng.permutation(n_items) / n_items))
    # Assign each item to one row up front, so that every item occurs.
    lanes = np.arange(n_items + 1) * n_rows // n_items
    given_rows = lanes[:-1] + rng.integers(0, np.diff(lanes))
    given_items = rng.permutation(n_items)
    first = 0
    while first < n_users:
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + _BLOCK_ROWS, side="right")) - 1)
        low, high = np.searchsorted(given_rows, [starts[first], starts[last]])
        owners = np.searchsorted(starts, given_rows[low:high], side="right") - 1 - first
        given = owners * n_items + given_items[low:high]
        keys = _distinct_pairs(counts[first:last], given, weights, rng)
        yield _with_times(keys, counts[first:last], first, n_items, rng)
        first = last


def _counts(n_users: int, n_items: int, n_rows: int, rng: np.random.Generator) -> np.ndarray:
    """Rows per user, int64 [U]: a floor plus a lognormal tail, scaled and capped to add up to `n_rows`."""
    floor = min(_MIN_PER_USER, n_rows // n_users)
    tail = rng.lognormal(0.0, 1.38, n_users)  # MovieLens-20M's mean-to-median ratio above the floor of 20
    # The most active user of MovieLens-20M rated a third of the movies; a dense log needs a higher cap.
    cap = n_items // 3
    if cap * n_users < 2 * n_rows:
        cap = n_items

    def scaled(by: float) -> np.ndarray:
        return np.minimum(floor + np.floor(np.minimum(by * tail, cap)).astype(np.int64), cap)

    low, high = 0.0, cap / tail.min()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if scaled(middle).sum() <= n_rows else (low, middle)
    counts = scaled(low)
    while short := n_rows - int(counts.sum()):
        counts[np.flatnonzero(counts < cap)[:short]] += 1
    return counts


def _distinct_pairs(counts: np.ndarray, given: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw each user's items without replacement, in proportion to `weights`.

    Args:
        counts: int64 [S], number of items per user.
        given: int64 keys (`user * n_items + item`) that must be included.
    Returns:
        int64 [sum of counts] distinct keys, ascending.
    """
    n_items = len(weights)
    # Rejection sampling would keep redrawing popular items for users who need many.
    eager = counts > n_items // 16
    of_eager = eager[given // n_items]
    raced = _race(np.flatnonzero(eager), counts, given[of_eager], weights, rng)
    cumulative = np.cumsum(weights / weights.sum())
    wanted = np.where(eager, 0, counts)
    keys = np.sort(given[~of_eager])
    while len(keys) < wanted.sum():
        missing = wanted - np.bincount(keys // n_items, minlength=len(counts))
        owners = np.repeat(np.arange(len(counts)), missing)
        items = np.minimum(np.searchsorted(cumulative, rng.random(len(owners)), side="right"), n_items - 1)
        drawn = np.unique(owners * n_items + items)
        if len(keys):
            drawn = drawn[keys[np.minimum(np.searchsorted(keys, drawn), len(keys) - 1)] != drawn]
        keys = np.sort(np.concatenate([keys, drawn]), kind="stable")  # merges two sorted runs
    return np.sort(np.concatenate([keys, raced]), kind="stable")


def _race(
    users: np.ndarray, counts: np.ndarray, given: np.ndarray, weights: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """The same draw as an exponential race (Efraimidis and Spirakis 2006): the first `count` arrivals win."""
    n_items = len(weights)
    won = [np.empty(0, dtype=np.int64)]
    step = max(1, _RACE_CELLS // n_items)
    for start in range(0, len(users), step):
        runners = users[start : start + step]
        arrivals = rng.exponential(size=(len(runners), n_items)) / weights
        owners, items = np.divmod(given, n_items)
        here = np.isin(owners, runners)
        arrivals[np.searchsorted(runners, owners[here]), items[here]] = 0.0
        order = np.argsort(arrivals, axis=1)
        wins = np.arange(n_items) < counts[runners, None]
        won.append((runners[:, None] * n_items + order)[wins])
    return np.sort(np.concatenate(won))


def _with_times(keys: np.ndarray, counts: np.ndarray, first: int, n_items: int, rng: np.random.Generator) -> np.ndarray:
    """Rows in time order: users rate in random order, seconds apart within a session, with ties."""
    owners = np.repeat(np.arange(len(counts)), counts)
    order = np.argsort(owners + rng.random(len(keys)))
    gaps = rng.integers(0, 16, len(keys))
    breaks = rng.random(len(keys)) < 1 / 40
    gaps[breaks] = rng.exponential(_SESSION_GAP_S, int(breaks.sum())).astype(np.int64)
    elapsed = np.cumsum(gaps)
    ends = np.cumsum(counts)
    elapsed -= np.repeat(elapsed[ends - counts], counts)
    # Users who would outlast the log are sped up; each starts at a random time that lets them finish within it.
    span = _LAST_S - _FIRST_S
    lasted = elapsed[ends - 1]
    elapsed = np.where(np.repeat(lasted > span, counts), elapsed * (span / np.repeat(lasted, counts).clip(1)), elapsed)
    begins = _FIRST_S + np.floor(rng.random(len(counts)) * (span - np.minimum(lasted, span)))
    rows = np.empty(len(keys), dtype=ROW)
    rows["user"] = first + owners
    rows["item"] = keys[order] % n_items
    rows["time"] = np.repeat(begins, counts) + elapsed
    rows["rating"] = _RATINGS[rng.integers(0, 256, len(keys), dtype=np.uint8)]
    return rows
