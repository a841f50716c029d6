"""The items that can be drawn as negatives, and what is left of them for users who have seen some.

Lay all items on a line, each as long as its weight (1 where all are equally likely), and take the user's own items
out. A random number below what is left then is an item: its place on the whole line is found by one binary search
in the user's items, whose keys say how much is left before each. Nothing loops for luck, and a user who has seen
nearly everything costs what any other does. All arithmetic is on integers, so
that NumPy, CuPy and torch find the same items.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from array_api_compat import array_namespace, device

from workflows.interactions import count, run_starts

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

    @cached_property
    def weight(self) -> int:
        """Of all items together (host sync: once)."""
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
        self.candidates, self._owners, self._places, self._n_owners = candidates, owners, places, n_owners
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

    def left(self, owners: Array, limits: Array | None = None) -> Array:
        """The weight that is left to each owner, int64 [M]; of the places below its limit, where there is one."""
        xp = array_namespace(owners)
        first = xp.take(self._first, owners)
        if limits is None:
            return self.candidates.weight - (xp.take(self._last, owners) - first)
        end = xp.searchsorted(self._pairs, owners * self.candidates.n_items + limits, side="left")
        return self.candidates.weight_before(limits) - (xp.take(self._taken, end) - first)

    def usable_limits(self, owners: Array, limits: Array) -> Array:
        """The limits; where one leaves nothing, it does not count."""
        return array_namespace(limits).where(self.left(owners, limits) > 0, limits, self.candidates.n_items)

    def taken(self, owners: Array, places: Array) -> Array:
        """Whether places are their owner's own: bool [M, K].

        Args:
            owners: int64 [M].
            places: int64 [M, K], K places for each owner.
        """
        xp = array_namespace(owners, places)
        if not self._pairs.shape[0]:
            return xp.zeros(places.shape, dtype=xp.bool, device=device(places))
        pairs = xp.reshape(owners[:, None] * self.candidates.n_items + places, (-1,))
        row = xp.clip(xp.searchsorted(self._pairs, pairs, side="left"), max=self._pairs.shape[0] - 1)
        return xp.reshape(xp.take(self._pairs, row) == pairs, places.shape)

    def places(self, owners: Array, points: Array) -> Array:
        """The place that holds each point (0 <= point < left) of what is left to its owner.

        Args:
            owners: int64 [M].
            points: int64 [M, K], K points of each owner.
        Returns:
            int64 [M, K].
        """
        xp = array_namespace(owners, points)
        keys = (owners * self.candidates.weight)[:, None] + points
        row = xp.searchsorted(self._keys, xp.reshape(keys, (-1,)), side="right")
        taken = row if self.candidates.before is None else xp.take(self._taken, row)
        return self.candidates.place_at(
            points + (xp.reshape(taken, points.shape) - xp.take(self._first, owners)[:, None])
        )

    def without(self, owners: Array, places: Array) -> Unseen:
        """What is left to some of the owners, numbered anew in their order, once these places are taken out, too.

        Args:
            owners: int64 [T], ascending.
            places: int64 [T, L]; `n_items` stands for none.
        """
        xp = array_namespace(owners, places)
        everyone = count(self._n_owners, owners)
        new = xp.searchsorted(owners, everyone, side="left")
        of_these = xp.take(xp.take(owners, xp.clip(new, max=owners.shape[0] - 1)) == everyone, self._owners)
        taken = places < self.candidates.n_items
        takers = xp.broadcast_to(count(owners.shape[0], owners)[:, None], places.shape)[taken]
        pairs = ordered_pairs(
            xp.concat([xp.take(new, self._owners[of_these]), takers]),
            xp.concat([self._places[of_these], places[taken]]),
            self.candidates.n_items,
        )
        return Unseen(pairs[0], pairs[1], owners.shape[0], self.candidates)


def ordered_pairs(owners: Array, places: Array, n_items: int) -> tuple[Array, Array]:
    """The distinct (owner, place) pairs, in the order that `Unseen` takes."""
    xp = array_namespace(owners, places)
    pairs = xp.sort(owners * n_items + places)
    pairs = pairs[run_starts(pairs)]
    owners = pairs // n_items
    return owners, pairs - owners * n_items
