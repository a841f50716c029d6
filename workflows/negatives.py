"""Negatives: items a user has not interacted with, for test series and for training."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device

from workflows import counters
from workflows.candidates import MAX_WEIGHT, Candidates, Unseen, ordered_pairs
from workflows.device import host_kernels, host_view
from workflows.interactions import Histories, count, run_starts

Array = Any  # an array of NumPy, CuPy or torch


def series_negatives(
    history: Histories, which: Array, candidates: Candidates, length: int, seed: int, exact: bool = True
) -> Array:
    """Negatives of a test series for the last interaction of some users, ascending: int64 [T, length].

    Exact ones lie outside all of the user's items and are distinct, as if drawn one after the other; a user with
    fewer unseen items gets all of them and repeats. Others may be any item, repeats and positives included.
    Where nothing unseen had appeared by the time of the positive, time is not asked.

    Args:
        which: int64 [T], ascending: which of the history's users; each must have an unseen item.
        seed: from `counters.stream_seed`.
    """
    xp = array_namespace(history.users)
    last = xp.take(history.by_time, xp.take(history.starts, which) + xp.take(history.counts, which) - 1)
    limits = candidates.limits(xp.take(history.times, last))
    key = counters.keys(seed, xp.take(history.users, which))
    if not exact:
        limits = xp.where(limits > 0, limits, candidates.n_items)
        bits = counters.draws(key[:, None], count(length, which)[None, :])
        chosen = candidates.place_at(counters.below(bits, candidates.weight_before(limits)[:, None]))
        return xp.sort(candidates.item_at(chosen), axis=1)
    owners, places = history.rows, candidates.place_of(history.items)
    if candidates.places is not None:
        owners, places = ordered_pairs(owners, places, candidates.n_items)
    kernels = host_kernels(places) if candidates.before is None else None
    if kernels is not None:
        starts, counts = xp.take(history.starts, which), xp.take(history.counts, which)
        chosen = kernels.distinct_places(starts, starts + counts, places, key, limits, candidates.n_items, length)
    else:
        unseen = Unseen(owners, places, history.users.shape[0], candidates)
        chosen = _without_replacement(unseen, which, key, unseen.usable_limits(which, limits), length)
    return chosen if candidates.items is None else xp.sort(candidates.item_at(chosen), axis=1)


def _without_replacement(unseen: Unseen, owner: Array, key: Array, limits: Array, length: int) -> Array:
    """`length` distinct places left to each owner, ascending: int64 [T, length]; repeats where there are fewer.

    Round after round, as many places as are missing are drawn of what is left, and those drawn twice count once.
    That is the same as drawing one after the other: a place that was drawn before would not be drawn again.

    Args:
        owner: int64 [T], ascending.
        key, limits: int64 [T], the random key and the limit of each.
    """
    xp = array_namespace(owner)
    if not (owner.shape[0] and length):
        return xp.zeros((owner.shape[0], length), dtype=xp.int64, device=device(owner))
    none = unseen.candidates.n_items  # a place that is missing, behind all others
    number, drawn = count(owner.shape[0], owner), xp.zeros_like(owner)
    chosen = xp.zeros((owner.shape[0], 0), dtype=xp.int64, device=device(owner))
    done, numbers = [], []
    while True:
        bound = unseen.left(owner, limits)
        missing = xp.where(bound > 0, length - xp.sum(xp.astype(chosen < none, xp.int64), axis=1), 0)
        found = _draw(unseen, owner, key, drawn, bound, missing, none)
        merged = xp.sort(xp.concat([chosen, found], axis=1), axis=1) if chosen.shape[1] else found
        again = merged[:, 1:] == merged[:, :-1]
        merged = xp.concat([merged[:, :1], xp.where(again, none, merged[:, 1:])], axis=1)
        gaps = xp.any(merged == none, axis=1) | (merged.shape[1] > length)
        done.append(merged[~gaps][:, :length])
        numbers.append(number[~gaps])
        # The others: close the gaps; finished are those that now have all, or all there is.
        chosen = xp.sort(merged[gaps], axis=1)[:, :length]
        state = [column[gaps] for column in (number, owner, key, limits, drawn + missing, bound)]
        finished = (chosen[:, -1] < none) | (state[-1] == 0)
        done.append(_repeated(chosen[finished], none))
        numbers.append(state[0][finished])
        chosen = chosen[~finished]
        number, owner, key, limits, drawn, bound = (column[~finished] for column in state)
        if not number.shape[0]:
            break
        # What these have drawn is out of the next round.
        unseen = unseen.without(owner, chosen)
        owner = count(owner.shape[0], owner)
    return xp.take(xp.concat(done), xp.argsort(xp.concat(numbers)), axis=0)


def _draw(unseen: Unseen, owner: Array, key: Array, drawn: Array, bound: Array, missing: Array, none: int) -> Array:
    """The next `missing` draws of each owner, with replacement, ascending: int64 [T, max missing]; then `none`."""
    xp = array_namespace(owner)
    slot = count(int(xp.max(missing)), owner)[None, :]
    bits = counters.draws(counters.advanced(key, drawn)[:, None], slot)
    points = counters.below(bits, xp.clip(bound, min=1)[:, None])
    # Sorted before the search, which then goes through its table once. What is not to be drawn comes last.
    points = xp.sort(xp.where(slot < missing[:, None], points, MAX_WEIGHT), axis=1)
    places = unseen.places(owner, xp.clip(points, max=xp.clip(bound - 1, min=0)[:, None]))
    return xp.where(points < MAX_WEIGHT, places, none)


def _repeated(chosen: Array, none: int) -> Array:
    """Fill missing places (`none`, at the end of each row) with repeats of the others; ascending."""
    xp = array_namespace(chosen)
    rows, length = chosen.shape
    there = xp.sum(xp.astype(chosen < none, xp.int64), axis=1)
    at = count(rows, chosen)[:, None] * length + count(length, chosen)[None, :] % xp.clip(there, min=1)[:, None]
    filled = xp.take(xp.reshape(chosen, (-1,)), xp.reshape(at, (-1,)))
    return xp.sort(xp.reshape(filled, chosen.shape), axis=1)


def row_negatives(
    users: Array,
    items: Array,
    candidates: Candidates,
    per_row: int,
    seed: int,
    times: Array | None = None,
    exact: bool = True,
) -> tuple[Array, Array]:
    """Negatives for training: `per_row` for each row; exact ones lie outside all items the user has in these rows.

    Draw number n of a user is the same wherever the user's rows lie, as long as they are in the same order. Where all
    items weigh the same it is any item, and if that is one of the user's own, any of the others: of n items, m of which
    are left, each of the m has the chance 1/n + (n - m)/n * 1/m = 1/m.

    Args:
        users: int32 or int64 [N], each user's rows consecutive and all there.
        items: the same type, [N].
        seed: from `counters.stream_seed`; include the epoch for fresh draws.
        times: integers [N], where `candidates` asks for them.
    Returns:
        [N, per_row] items, of the type of `items`, and bool [N]: False where the user has seen every item, so that
        there is no negative (what stands in such a row is to be left out).
    """
    xp = array_namespace(users, items)
    alike = exact and candidates.before is None and candidates.items is None and candidates.since is None
    host = (host_view(users), host_view(items)) if alike and candidates.n_items < 1 << 31 else ()
    kernels = host_kernels(host[0]) if host else None
    if kernels is not None:
        found = kernels.row_places(*host, candidates.n_items, per_row, seed)
        return tuple(xp.asarray(each, device=device(users)) for each in found)
    kind = items.dtype
    users, items = (xp.astype(column, xp.int64, copy=False) for column in (users, items))
    new_user = run_starts(users)
    owner = xp.cumulative_sum(xp.astype(new_user, xp.int64)) - 1
    starts = xp.nonzero(new_user)[0]
    row = count(users.shape[0], users) - xp.take(starts, owner)
    owners, places = ordered_pairs(owner, candidates.place_of(items), candidates.n_items)
    taken = owners.shape[0] if exact else 0
    unseen = Unseen(owners[:taken], places[:taken], starts.shape[0], candidates)
    limits = None
    if candidates.since is not None:
        limits = unseen.usable_limits(owner, candidates.limits(times))
    bound = unseen.left(owner, limits)
    number = row[:, None] * per_row + count(per_row, users)[None, :]
    bits = counters.draws(counters.keys(seed, users)[:, None], number)
    if alike:
        places = counters.below(bits, candidates.n_items)
        again = unseen.taken(owner, places)
        bits, owner = counters.mix(bits[again]), xp.broadcast_to(owner[:, None], again.shape)[again]
        points = counters.below(bits, xp.clip(unseen.left(owner), min=1))
        places[again] = unseen.places(owner, points[:, None])[:, 0]
    else:
        places = unseen.places(owner, counters.below(bits, xp.clip(bound, min=1)[:, None]))
    places = xp.clip(places, max=candidates.n_items - 1)
    return xp.astype(candidates.item_at(places), kind, copy=False), bound > 0
