"""Exact negatives: items a user has not interacted with, drawn uniformly, never by luck alone.

The draw is by rank: number the unseen items of a user 0 .. m-1, draw a number, and find its item from the
user's sorted positives p_0 < p_1 < …: unseen item number r is `r + j`, where j positives satisfy
`p_j - j <= r`. No candidate is ever rejected, so nothing loops and no shape depends on the data, which keeps
it exact for users who have seen nearly everything and free of host synchronisation on a GPU.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device

from workflows import counters
from workflows.interactions import Histories, count, run_starts

Array = Any  # an array of NumPy, CuPy or torch


def rank_keys(owners: Array, by_item: Array, starts: Array, n_items: int) -> Array:
    """The sorted table that `unseen_item` searches: int64 [N], ascending.

    Args:
        owners: int64 [N], 0 .. S-1, ascending: whose positive each row is.
        by_item: int64 [N] items, ascending and distinct within an owner.
        starts: int64 [S] first row of each owner.
    """
    xp = array_namespace(owners, by_item, starts)
    position = count(by_item.shape[0], by_item) - xp.take(starts, owners)
    return owners * n_items + by_item - position


def unseen_item(table: Array, starts: Array, owners: Array, ranks: Array, n_items: int) -> Array:
    """The unseen item number `ranks` of each owner, int64, the shape of `owners` (1-d).

    Args:
        table: from `rank_keys`.
        starts: int64 [S] first row of each owner.
        owners: int64, 0 .. S-1.
        ranks: int64, 0 <= rank < n_items - (number of the owner's positives).
    """
    xp = array_namespace(table, starts, owners, ranks)
    below = xp.searchsorted(table, owners * n_items + ranks, side="right")
    return ranks + below - xp.take(starts, owners)


def distinct_numbers(seed: int, ids: Array, bounds: Array, length: int) -> Array:
    """For each id, `length` numbers of [0, bound), drawn without replacement and in ascending order.

    Where a bound is smaller than `length`, every number occurs and the rest are repeats.

    Args:
        seed: from `counters.stream_seed`.
        ids: int64 [S]; equal ids draw equal numbers.
        bounds: int64 [S], at least 1.
    Returns:
        int64 [S, length].
    """
    xp = array_namespace(ids, bounds)
    if length == 0 or ids.shape[0] == 0:
        return xp.zeros((ids.shape[0], length), dtype=xp.int64, device=device(ids))
    key = counters.keys(seed, ids)[:, None]
    slot = count(length, ids)[None, :]
    wide = bounds >= 2 * length
    # Narrow ranges: shuffle the whole range, so that the last free number is not awaited by chance.
    done, places = [_shuffled(xp, key[~wide], bounds[~wide], length)], [xp.nonzero(~wide)[0]]
    # Wide ranges: draw, and where a number came twice draw the second one again.
    place = xp.nonzero(wide)[0]
    key, bound = xp.take(key, place, axis=0), xp.take(bounds, place)[:, None]
    rows, drawn = xp.sort(counters.below(counters.draws(key, slot), bound), axis=1), length
    while True:
        again = xp.concat([xp.zeros_like(rows[:, :1], dtype=xp.bool), rows[:, 1:] == rows[:, :-1]], axis=1)
        repeated = xp.any(again, axis=1)
        done.append(rows[~repeated])
        places.append(place[~repeated])
        again, rows, place = again[repeated], rows[repeated], place[repeated]
        if not place.shape[0]:
            break
        key, bound = key[repeated], bound[repeated]
        fresh = counters.below(counters.draws(key, slot + drawn), bound)
        rows = xp.sort(xp.where(again, fresh, rows), axis=1)
        drawn += length
    return xp.take(xp.concat(done), xp.argsort(xp.concat(places)), axis=0)


def _shuffled(xp: Any, key: Array, bounds: Array, length: int) -> Array:
    """`length` distinct numbers of each small range (bound < 2 * length), ascending; repeats if it has fewer."""
    number = count(2 * length, bounds)[None, :]
    bound = bounds[:, None]
    # 62 random bits order the range; numbers beyond it come last.
    priority = (counters.draws(key, number) >> 2) & ((1 << 62) - 1)
    priority = xp.where(number < bound, priority, (1 << 62) + number)
    chosen = xp.argsort(priority, axis=1)[:, :length]
    slot = count(length, bounds)[None, :]
    return xp.sort(xp.where(slot < bound, chosen, slot % bound), axis=1)


def series_negatives(history: Histories, which: Array, n_items: int, length: int, seed: int) -> Array:
    """`length` distinct negatives outside all positives of some users, ascending: int64 [T, length].

    A user with fewer unseen items gets all of them and repeats; each must have at least one.

    Args:
        which: int64 [T], which of the history's users.
        seed: from `counters.stream_seed`.
    """
    xp = array_namespace(history.users)
    table = rank_keys(history.rows, history.by_item, history.starts, n_items)
    bounds = n_items - xp.take(history.counts, which)
    ranks = distinct_numbers(seed, xp.take(history.users, which), bounds, length)
    items = unseen_item(table, history.starts, xp.repeat(which, length), xp.reshape(ranks, (-1,)), n_items)
    return xp.reshape(items, ranks.shape)


def row_negatives(users: Array, items: Array, n_items: int, per_row: int, seed: int) -> tuple[Array, Array]:
    """Negatives for training: `per_row` for each row, outside all items the user has in these rows.

    Draw number n of a user is the same wherever the user's rows lie, as long as they are in the same order.

    Args:
        users: int64 [N], each user's rows consecutive and all there.
        items: int64 [N].
        seed: from `counters.stream_seed`; include the epoch for fresh draws.
    Returns:
        int64 [N, per_row] items, and bool [N]: False where the user has seen every item, so that there is no
        negative (what stands in such a row is to be left out).
    """
    xp = array_namespace(users, items)
    n_rows = users.shape[0]
    new_user = run_starts(users)
    owner = xp.cumulative_sum(xp.astype(new_user, xp.int64)) - 1
    starts = xp.nonzero(new_user)[0]
    place = count(n_rows, users) - xp.take(starts, owner)
    # Each user's distinct items in ascending order; a repeated pair is counted once.
    pairs = xp.sort(owner * n_items + items)
    pairs = pairs[run_starts(pairs)]
    pair_owner = pairs // n_items
    pair_starts = xp.nonzero(run_starts(pair_owner))[0]
    table = rank_keys(pair_owner, pairs - pair_owner * n_items, pair_starts, n_items)
    ends = xp.concat([pair_starts[1:], xp.asarray([pairs.shape[0]], dtype=xp.int64, device=device(pairs))])
    unseen = n_items - (ends - pair_starts)
    bound = xp.take(unseen, owner)
    number = place[:, None] * per_row + count(per_row, users)[None, :]
    bits = counters.draws(counters.keys(seed, users)[:, None], number)
    ranks = xp.reshape(counters.below(bits, xp.clip(bound, min=1)[:, None]), (-1,))
    found = unseen_item(table, pair_starts, xp.repeat(owner, per_row), ranks, n_items)
    return xp.reshape(xp.clip(found, max=n_items - 1), (n_rows, per_row)), bound > 0
