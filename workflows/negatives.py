"""Negatives: items a user has not interacted with, drawn uniformly or by popularity, never by luck alone.

Lay all items on a line, each as long as its weight (1 where all are equally likely), and take the user's own items
out. A random number below what is left then is an item: its place on the whole line is found by one binary search
in the user's items, whose keys say how much is left before each. No candidate is ever rejected, so nothing loops
for luck, and a user who has seen nearly everything costs what any other does. All arithmetic is on integers, so
that NumPy, CuPy and torch draw the same items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, device

from workflows import counters
from workflows.interactions import Histories, count, run_starts

Array = Any  # an array of NumPy, CuPy or torch

# The weight of all items together, at most: with an owner's number (below 2**23) in front, a key fits 63 bits.
MAX_WEIGHT = 1 << 39


@dataclass(frozen=True)
class Candidates:
    """The items that can be drawn, laid on a line.

    Attributes:
        n_items: how many there are.
        before: int64 [n_items + 1], the weight before each place, and of all; None: every item weighs 1.
        items, places: int64 [n_items], the item at each place and the place of each item; None: in the order of ids.
        since: int64 [n_items], ascending: when the item at each place first occurred. Where it is given, only items
            that had appeared by the time of the positive are drawn.
    """

    n_items: int
    before: Array | None = None
    items: Array | None = None
    places: Array | None = None
    since: Array | None = None

    @property
    def weight(self) -> int:
        """Of all items together."""
        return self.n_items if self.before is None else int(self.before[-1])

    def place_of(self, items: Array) -> Array:
        """The place of each item, int64 [M]."""
        xp = array_namespace(items)
        return xp.astype(items, xp.int64) if self.places is None else xp.take(self.places, items)

    def item_at(self, places: Array) -> Array:
        """The item at each place, int64, any shape."""
        xp = array_namespace(places)
        if self.items is None:
            return places
        return xp.reshape(xp.take(self.items, xp.reshape(places, (-1,))), places.shape)

    def weight_before(self, places: Array) -> Array:
        """The weight before each place (0 .. n_items), int64 [M]."""
        return places if self.before is None else array_namespace(places).take(self.before, places)

    def place_at(self, points: Array) -> Array:
        """The place that holds each point of the line (0 <= point < weight), int64."""
        if self.before is None:
            return points
        xp = array_namespace(points)
        return xp.reshape(xp.searchsorted(self.before, xp.reshape(points, (-1,)), side="right"), points.shape) - 1

    def limits(self, times: Array) -> Array:
        """How many places had an item by each time, int64 [M]; all of them where time is not asked."""
        xp = array_namespace(times)
        if self.since is None:
            return xp.full(times.shape, self.n_items, dtype=xp.int64, device=device(times))
        return xp.searchsorted(self.since, xp.astype(times, xp.int64), side="right")


class Unseen:
    """What is left of the line for each of S owners, once their own items are taken out."""

    def __init__(self, owners: Array, places: Array, n_owners: int, candidates: Candidates) -> None:
        """
        Args:
            owners, places: int64 [N], ordered by owner, then place, no pair twice; 0 <= owner < n_owners.
        """
        xp = array_namespace(owners, places)
        before = candidates.weight_before(places)
        if candidates.before is None:
            taken = count(places.shape[0] + 1, places)
        else:
            weights = candidates.weight_before(places + 1) - before
            taken = xp.concat([xp.zeros(1, dtype=xp.int64, device=device(places)), xp.cumulative_sum(weights)])
        owner = count(n_owners, owners)
        self._taken = taken  # the weight of all rows before each row
        self._first = xp.take(taken, xp.searchsorted(owners, owner, side="left"))  # … before each owner's rows
        self._last = xp.take(taken, xp.searchsorted(owners, owner, side="right"))  # … and behind them
        self._pairs = owners * candidates.n_items + places
        self._keys = owners * candidates.weight + before - (taken[:-1] - xp.take(self._first, owners))
        self._candidates = candidates

    def left(self, owners: Array, limits: Array | None = None) -> Array:
        """The weight that is left to each owner, int64 [M]; of the places below its limit, where there is one."""
        xp = array_namespace(owners)
        first = xp.take(self._first, owners)
        if limits is None:
            return self._candidates.weight - (xp.take(self._last, owners) - first)
        end = xp.searchsorted(self._pairs, owners * self._candidates.n_items + limits, side="left")
        return self._candidates.weight_before(limits) - (xp.take(self._taken, end) - first)

    def usable_limits(self, owners: Array, limits: Array) -> Array:
        """The limits; where one leaves nothing, it does not count."""
        return array_namespace(limits).where(self.left(owners, limits) > 0, limits, self._candidates.n_items)

    def places(self, owners: Array, points: Array) -> Array:
        """The place that holds each point (0 <= point < left) of what is left to its owner.

        Args:
            owners: int64 [M].
            points: int64 [M, K], K points of each owner.
        Returns:
            int64 [M, K].
        """
        xp = array_namespace(owners, points)
        keys = (owners * self._candidates.weight)[:, None] + points
        row = xp.searchsorted(self._keys, xp.reshape(keys, (-1,)), side="right")
        taken = row if self._candidates.before is None else xp.take(self._taken, row)
        return self._candidates.place_at(
            points + (xp.reshape(taken, points.shape) - xp.take(self._first, owners)[:, None])
        )


def _ordered(owners: Array, places: Array, candidates: Candidates) -> tuple[Array, Array]:
    """The distinct (owner, place) pairs, in the order that `Unseen` takes."""
    xp = array_namespace(owners, places)
    pairs = xp.sort(owners * candidates.n_items + places)
    pairs = pairs[run_starts(pairs)]
    owners = pairs // candidates.n_items
    return owners, pairs - owners * candidates.n_items


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
        owners, places = _ordered(owners, places, candidates)
    chosen = _without_replacement(owners, places, history.users.shape[0], which, key, limits, candidates, length)
    return chosen if candidates.items is None else xp.sort(candidates.item_at(chosen), axis=1)


def _without_replacement(
    owners: Array,
    places: Array,
    n_owners: int,
    which: Array,
    key: Array,
    limits: Array,
    candidates: Candidates,
    length: int,
) -> Array:
    """`length` distinct unseen places of each owner in `which`, ascending: int64 [T, length]; repeats where fewer.

    Round after round, as many places as are missing are drawn of what is left, and those drawn twice count once.
    That is the same as drawing one after the other: a place that was drawn before would not be drawn again.
    """
    xp = array_namespace(owners, places)
    if not (which.shape[0] and length):
        return xp.zeros((which.shape[0], length), dtype=xp.int64, device=device(which))
    none = candidates.n_items  # a place that is missing, behind all others
    unseen = Unseen(owners, places, n_owners, candidates)
    limits = unseen.usable_limits(which, limits)
    number, owner, drawn = count(which.shape[0], which), which, xp.zeros_like(which)
    chosen = xp.zeros((which.shape[0], 0), dtype=xp.int64, device=device(which))
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
        owners, places, pairs = _drawn_too(owners, places, n_owners, owner, chosen, candidates)
        n_owners = owner.shape[0]
        owner = count(n_owners, owner)
        unseen = Unseen(pairs[0], pairs[1], n_owners, candidates)
    return xp.take(xp.concat(done), xp.argsort(xp.concat(numbers)), axis=0)


def _drawn_too(owners: Array, places: Array, n_owners: int, owner: Array, chosen: Array, candidates: Candidates):
    """Narrow (owners, places) down to some owners, numbered anew in their order; and the same with what they drew.

    Args:
        owner: int64 [T], ascending; chosen: int64 [T, L], `n_items` where a place is missing.
    Returns:
        owners, places, and the (owners, places) that the next round must not draw.
    """
    xp = array_namespace(owners, places)
    everyone = count(n_owners, owners)
    new = xp.searchsorted(owner, everyone, side="left")
    of_these = xp.take(xp.take(owner, xp.clip(new, max=owner.shape[0] - 1)) == everyone, owners)
    owners, places = xp.take(new, owners[of_these]), places[of_these]
    taken = chosen < candidates.n_items
    drawers = xp.broadcast_to(count(owner.shape[0], owner)[:, None], chosen.shape)[taken]
    return owners, places, _ordered(xp.concat([owners, drawers]), xp.concat([places, chosen[taken]]), candidates)


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

    Draw number n of a user is the same wherever the user's rows lie, as long as they are in the same order.

    Args:
        users: int64 [N], each user's rows consecutive and all there.
        items: int64 [N].
        seed: from `counters.stream_seed`; include the epoch for fresh draws.
        times: integers [N], where `candidates` asks for them.
    Returns:
        int64 [N, per_row] items, and bool [N]: False where the user has seen every item, so that there is no
        negative (what stands in such a row is to be left out).
    """
    xp = array_namespace(users, items)
    new_user = run_starts(users)
    owner = xp.cumulative_sum(xp.astype(new_user, xp.int64)) - 1
    starts = xp.nonzero(new_user)[0]
    row = count(users.shape[0], users) - xp.take(starts, owner)
    owners, places = _ordered(owner, candidates.place_of(items), candidates)
    taken = owners.shape[0] if exact else 0
    unseen = Unseen(owners[:taken], places[:taken], starts.shape[0], candidates)
    limits = None
    if candidates.since is not None:
        limits = unseen.usable_limits(owner, candidates.limits(times))
    bound = unseen.left(owner, limits)
    number = row[:, None] * per_row + count(per_row, users)[None, :]
    bits = counters.draws(counters.keys(seed, users)[:, None], number)
    points = counters.below(bits, xp.clip(bound, min=1)[:, None])
    places = xp.clip(unseen.places(owner, points), max=candidates.n_items - 1)
    return candidates.item_at(places), bound > 0
