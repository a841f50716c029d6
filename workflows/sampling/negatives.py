"""Negative sampling: items a user has not interacted with, for test series and for training."""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device

from workflows.device.kernels import gpu_kernels
from workflows.device.loops import host_loops, host_view
from workflows.sampling import counter_rng
from workflows.sampling.candidates import MAX_WEIGHT, Candidates, Unseen, ordered_pairs
from workflows.sampling.interactions import Histories, count, run_starts

Array = Any  # a NumPy, CuPy or torch array


def series_negatives(
    history: Histories, selected: Array, candidates: Candidates, length: int, seed: int, exact: bool = True
) -> Array:
    """Test negatives for the last interaction of the selected users, ascending: int64 [T, length].

    Exact negatives are unseen by the user and distinct, as if drawn sequentially without replacement; a user with
    fewer than `length` unseen items gets all of them, with repeats. Otherwise any item can be drawn, including repeats
    and positives. If no unseen item had appeared by the time of the positive, time is ignored.

    Args:
        selected: int64 [T], ascending indices of users in the history; each must have an unseen item.
        seed: from `counter_rng.stream_seed`.
    """
    kernels = gpu_kernels(history.users)
    if kernels is not None:
        return kernels.series_negatives(history, selected, candidates, length, seed, exact)
    xp = array_namespace(history.users)
    last = xp.take(history.by_time, xp.take(history.starts, selected) + xp.take(history.counts, selected) - 1)
    cutoffs = candidates.cutoffs(xp.take(history.times, last))
    key = counter_rng.keys(seed, xp.take(history.users, selected))
    if not exact:
        cutoffs = xp.where(cutoffs > 0, cutoffs, candidates.n_items)
        bits = counter_rng.draws(key[:, None], count(length, selected)[None, :])
        chosen = candidates.position_at(counter_rng.below(bits, candidates.cdf_at(cutoffs)[:, None]))
        return xp.sort(candidates.item_at(chosen), axis=1)
    owners, positions = history.rows, candidates.position_of(history.items)
    if candidates.positions is not None:
        owners, positions = ordered_pairs(owners, positions, candidates.n_items)
    loops = host_loops(positions) if candidates.cdf is None else None
    if loops is not None:
        starts, counts = xp.take(history.starts, selected), xp.take(history.counts, selected)
        chosen = loops.distinct_positions(starts, starts + counts, positions, key, cutoffs, candidates.n_items, length)
    else:
        unseen = Unseen(owners, positions, history.users.shape[0], candidates)
        chosen = _without_replacement(unseen, selected, key, unseen.usable_cutoffs(selected, cutoffs), length)
    return chosen if candidates.items is None else xp.sort(candidates.item_at(chosen), axis=1)


def _without_replacement(unseen: Unseen, owner: Array, key: Array, cutoffs: Array, length: int) -> Array:
    """`length` distinct remaining positions per owner, ascending: int64 [T, length]; repeats if there are fewer.

    Each round draws the missing number of positions from those remaining and drops duplicates. This is equivalent to
    sequential draws without replacement, in which a position already drawn could not be drawn again.

    Args:
        owner: int64 [T], ascending.
        key, cutoffs: int64 [T], random key and cutoff per owner.
    """
    xp = array_namespace(owner)
    if not (owner.shape[0] and length):
        return xp.zeros((owner.shape[0], length), dtype=xp.int64, device=device(owner))
    none = unseen.candidates.n_items  # marks a missing position; sorts after all others
    number, drawn = count(owner.shape[0], owner), xp.zeros_like(owner)
    chosen = xp.zeros((owner.shape[0], 0), dtype=xp.int64, device=device(owner))
    done, numbers = [], []
    while True:
        bound = unseen.available(owner, cutoffs)
        missing = xp.where(bound > 0, length - xp.sum(xp.astype(chosen < none, xp.int64), axis=1), 0)
        found = _draw(unseen, owner, key, drawn, bound, missing, none)
        merged = xp.sort(xp.concat([chosen, found], axis=1), axis=1) if chosen.shape[1] else found
        is_duplicate = merged[:, 1:] == merged[:, :-1]
        merged = xp.concat([merged[:, :1], xp.where(is_duplicate, none, merged[:, 1:])], axis=1)
        gaps = xp.any(merged == none, axis=1) | (merged.shape[1] > length)
        done.append(merged[~gaps][:, :length])
        numbers.append(number[~gaps])
        # Close the gaps of the others; an owner is finished if it has `length` positions or no candidates remain.
        chosen = xp.sort(merged[gaps], axis=1)[:, :length]
        state = [column[gaps] for column in (number, owner, key, cutoffs, drawn + missing, bound)]
        finished = (chosen[:, -1] < none) | (state[-1] == 0)
        done.append(_repeated(chosen[finished], none))
        numbers.append(state[0][finished])
        chosen = chosen[~finished]
        number, owner, key, cutoffs, drawn, bound = (column[~finished] for column in state)
        if not number.shape[0]:
            break
        # Exclude the positions drawn so far from the next round.
        unseen = unseen.without(owner, chosen)
        owner = count(owner.shape[0], owner)
    return xp.take(xp.concat(done), xp.argsort(xp.concat(numbers)), axis=0)


def _draw(unseen: Unseen, owner: Array, key: Array, drawn: Array, bound: Array, missing: Array, none: int) -> Array:
    """The next `missing` draws per owner, with replacement, ascending: int64 [T, max missing], padded with `none`."""
    xp = array_namespace(owner)
    slot = count(int(xp.max(missing)), owner)[None, :]
    bits = counter_rng.draws(counter_rng.advanced(key, drawn)[:, None], slot)
    points = counter_rng.below(bits, xp.clip(bound, min=1)[:, None])
    # Sorted, so that the search passes over its table once; the padding sorts last.
    points = xp.sort(xp.where(slot < missing[:, None], points, MAX_WEIGHT), axis=1)
    positions = unseen.positions(owner, xp.clip(points, max=xp.clip(bound - 1, min=0)[:, None]))
    return xp.where(points < MAX_WEIGHT, positions, none)


def _repeated(chosen: Array, none: int) -> Array:
    """Fill missing positions (`none`, at the end of each row) by repeating the others; ascending."""
    xp = array_namespace(chosen)
    rows, length = chosen.shape
    n_present = xp.sum(xp.astype(chosen < none, xp.int64), axis=1)
    index = count(rows, chosen)[:, None] * length + count(length, chosen)[None, :] % xp.clip(n_present, min=1)[:, None]
    filled = xp.take(xp.reshape(chosen, (-1,)), xp.reshape(index, (-1,)))
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
    """Training negatives, `per_row` per row; exact ones are not among the items the user has in these rows.

    Draw n of a user depends only on the order of the user's own rows, not on where they lie. With equal weights, the
    first draw is over all n items and, if it hits one of the user's own, a second is over the m unseen ones, so each
    of those has probability 1/n + (n - m)/n * 1/m = 1/m.

    Args:
        users: int32 or int64 [N], each user's rows consecutive and complete.
        items: same dtype, [N].
        seed: from `counter_rng.stream_seed`; include the epoch for fresh draws.
        times: integers [N], if `candidates` is time-aware.
    Returns:
        items [N, per_row], same dtype as `items`, and bool [N]: False if the user has seen every item and so has no
        negative (ignore the values in such a row).
    """
    xp = array_namespace(users, items)
    is_uniform = exact and candidates.cdf is None and candidates.items is None and candidates.since is None
    host = (host_view(users), host_view(items)) if is_uniform and candidates.n_items < 1 << 31 else ()
    loops = host_loops(host[0]) if host else None
    if loops is not None:
        found = loops.row_positions(*host, candidates.n_items, per_row, seed)
        return tuple(xp.asarray(each, device=device(users)) for each in found)
    kind = items.dtype
    users, items = (xp.astype(column, xp.int64, copy=False) for column in (users, items))
    new_user = run_starts(users)
    owner = xp.cumulative_sum(xp.astype(new_user, xp.int64)) - 1
    starts = xp.nonzero(new_user)[0]
    row = count(users.shape[0], users) - xp.take(starts, owner)
    owners, positions = ordered_pairs(owner, candidates.position_of(items), candidates.n_items)
    kernels = gpu_kernels(owners)
    if kernels is not None:
        own_starts = xp.searchsorted(owners, count(starts.shape[0] + 1, owners)) if exact else None
        cutoffs = None if candidates.since is None else candidates.cutoffs(times)
        positions, exists = kernels.row_positions(
            users, owner, starts, own_starts, positions, candidates, cutoffs, per_row, seed
        )
        return xp.astype(candidates.item_at(positions), kind, copy=False), exists
    taken = owners.shape[0] if exact else 0
    unseen = Unseen(owners[:taken], positions[:taken], starts.shape[0], candidates)
    cutoffs = None
    if candidates.since is not None:
        cutoffs = unseen.usable_cutoffs(owner, candidates.cutoffs(times))
    bound = unseen.available(owner, cutoffs)
    number = row[:, None] * per_row + count(per_row, users)[None, :]
    bits = counter_rng.draws(counter_rng.keys(seed, users)[:, None], number)
    if is_uniform:
        positions = counter_rng.below(bits, candidates.n_items)
        is_duplicate = unseen.taken(owner, positions)
        bits, owner = (
            counter_rng.mix(bits[is_duplicate]),
            xp.broadcast_to(owner[:, None], is_duplicate.shape)[is_duplicate],
        )
        points = counter_rng.below(bits, xp.clip(unseen.available(owner), min=1))
        positions[is_duplicate] = unseen.positions(owner, points[:, None])[:, 0]
    else:
        positions = unseen.positions(owner, counter_rng.below(bits, xp.clip(bound, min=1)[:, None]))
    positions = xp.clip(positions, max=candidates.n_items - 1)
    return xp.astype(candidates.item_at(positions), kind, copy=False), bound > 0
