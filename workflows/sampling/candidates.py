"""The candidate items for negative sampling, and the ones remaining for a user who has seen some.

Inverse-CDF sampling: lay all items on a line, each as long as its weight (1 if all are equally likely), and remove the
user's own items. A random integer below the remaining weight then selects an item. One binary search over the user's
items, keyed by the weight remaining before each, finds its position on the full line. There is no rejection loop, so a
user who has seen nearly everything costs no more than any other. All arithmetic is on integers, so NumPy, CuPy and
torch select the same items.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from array_api_compat import array_namespace, device

from workflows.sampling.interactions import count, run_starts

Array = Any  # an array of NumPy, CuPy or torch

# Upper bound on the total weight: with an owner index (below 2**23) in the high bits, a key fits 63 bits.
MAX_WEIGHT = 1 << 39


@dataclass(frozen=True)
class Candidates:
    """The candidate items, laid out on a line.

    Attributes:
        n_items: number of items.
        cdf: int64 [n_items + 1], cumulative weight before each position, then the total; None: every weight is 1.
        items, positions: int64 [n_items], the item at each position and the position of each item; None: by id.
        since: int64 [n_items], ascending: first occurrence of the item at each position. If given, only items that
            had appeared by the time of the positive are drawn.
    """

    n_items: int
    cdf: Array | None = None
    items: Array | None = None
    positions: Array | None = None
    since: Array | None = None

    @cached_property
    def weight(self) -> int:
        """Total weight of all items (host sync: once)."""
        return self.n_items if self.cdf is None else int(self.cdf[-1])

    def position_of(self, items: Array) -> Array:
        """Position of each item, int64 [M]."""
        xp = array_namespace(items)
        return xp.astype(items, xp.int64) if self.positions is None else xp.take(self.positions, items)

    def item_at(self, positions: Array) -> Array:
        """Item at each position, int64, any shape."""
        xp = array_namespace(positions)
        if self.items is None:
            return positions
        return xp.reshape(xp.take(self.items, xp.reshape(positions, (-1,))), positions.shape)

    def cdf_at(self, positions: Array) -> Array:
        """Cumulative weight before each position (0 .. n_items), int64 [M]."""
        return positions if self.cdf is None else array_namespace(positions).take(self.cdf, positions)

    def position_at(self, points: Array) -> Array:
        """Position that contains each point of the line (0 <= point < weight), int64."""
        if self.cdf is None:
            return points
        xp = array_namespace(points)
        return xp.reshape(xp.searchsorted(self.cdf, xp.reshape(points, (-1,)), side="right"), points.shape) - 1

    def taken_weights(self, positions: Array) -> Array:
        """Cumulative weight before each of some positions, and past the last one: int64 [M + 1]."""
        xp = array_namespace(positions)
        if self.cdf is None:
            return count(positions.shape[0] + 1, positions)
        weights = xp.take(self.cdf, positions + 1) - xp.take(self.cdf, positions)
        return xp.concat([xp.zeros(1, dtype=xp.int64, device=device(positions)), xp.cumulative_sum(weights)])

    def cutoffs(self, times: Array) -> Array:
        """Number of items that had appeared by each time, int64 [M]; n_items if sampling is not time-aware."""
        xp = array_namespace(times)
        if self.since is None:
            return xp.full(times.shape, self.n_items, dtype=xp.int64, device=device(times))
        return xp.searchsorted(self.since, xp.astype(times, xp.int64), side="right")


class Unseen:
    """The line as it remains for each of S owners after their own items are removed."""

    def __init__(self, owners: Array, positions: Array, n_owners: int, candidates: Candidates) -> None:
        """
        Args:
            owners, positions: int64 [N], distinct pairs sorted by (owner, position); 0 <= owner < n_owners.
        """
        xp = array_namespace(owners, positions)
        self.candidates, self._owners, self._positions, self._n_owners = candidates, owners, positions, n_owners
        cdf, taken = candidates.cdf_at(positions), candidates.taken_weights(positions)
        owner = count(n_owners, owners)
        self._taken = taken  # cumulative weight of the rows before each row
        self._first = xp.take(taken, xp.searchsorted(owners, owner, side="left"))  # … at each owner's first row
        self._last = xp.take(taken, xp.searchsorted(owners, owner, side="right"))  # … and past the last one
        self._pairs = owners * candidates.n_items + positions
        self._keys = owners * candidates.weight + cdf - (taken[:-1] - xp.take(self._first, owners))

    def available(self, owners: Array, cutoffs: Array | None = None) -> Array:
        """Remaining weight of each owner, int64 [M]; with cutoffs, only of the positions below them."""
        xp = array_namespace(owners)
        first = xp.take(self._first, owners)
        if cutoffs is None:
            return self.candidates.weight - (xp.take(self._last, owners) - first)
        end = xp.searchsorted(self._pairs, owners * self.candidates.n_items + cutoffs, side="left")
        return self.candidates.cdf_at(cutoffs) - (xp.take(self._taken, end) - first)

    def usable_cutoffs(self, owners: Array, cutoffs: Array) -> Array:
        """The cutoffs, except that one that leaves nothing is replaced by n_items."""
        return array_namespace(cutoffs).where(self.available(owners, cutoffs) > 0, cutoffs, self.candidates.n_items)

    def taken(self, owners: Array, positions: Array) -> Array:
        """Whether each position holds one of its owner's own items, bool [M, K].

        Args:
            owners: int64 [M].
            positions: int64 [M, K], K positions per owner.
        """
        xp = array_namespace(owners, positions)
        if not self._pairs.shape[0]:
            return xp.zeros(positions.shape, dtype=xp.bool, device=device(positions))
        pairs = xp.reshape(owners[:, None] * self.candidates.n_items + positions, (-1,))
        row = xp.clip(xp.searchsorted(self._pairs, pairs, side="left"), max=self._pairs.shape[0] - 1)
        return xp.reshape(xp.take(self._pairs, row) == pairs, positions.shape)

    def positions(self, owners: Array, points: Array) -> Array:
        """Position that contains each point (0 <= point < `available`) of its owner's remaining line.

        Args:
            owners: int64 [M].
            points: int64 [M, K], K points per owner.
        Returns:
            int64 [M, K].
        """
        xp = array_namespace(owners, points)
        keys = (owners * self.candidates.weight)[:, None] + points
        row = xp.searchsorted(self._keys, xp.reshape(keys, (-1,)), side="right")
        taken = row if self.candidates.cdf is None else xp.take(self._taken, row)
        return self.candidates.position_at(
            points + (xp.reshape(taken, points.shape) - xp.take(self._first, owners)[:, None])
        )

    def without(self, owners: Array, positions: Array) -> Unseen:
        """The remaining line of a subset of owners, renumbered in order, with these positions removed as well.

        Args:
            owners: int64 [T], ascending.
            positions: int64 [T, L], padded with `n_items`.
        """
        xp = array_namespace(owners, positions)
        everyone = count(self._n_owners, owners)
        new = xp.searchsorted(owners, everyone, side="left")
        is_kept = xp.take(xp.take(owners, xp.clip(new, max=owners.shape[0] - 1)) == everyone, self._owners)
        taken = positions < self.candidates.n_items
        takers = xp.broadcast_to(count(owners.shape[0], owners)[:, None], positions.shape)[taken]
        pairs = ordered_pairs(
            xp.concat([xp.take(new, self._owners[is_kept]), takers]),
            xp.concat([self._positions[is_kept], positions[taken]]),
            self.candidates.n_items,
        )
        return Unseen(pairs[0], pairs[1], owners.shape[0], self.candidates)


def ordered_pairs(owners: Array, positions: Array, n_items: int) -> tuple[Array, Array]:
    """The distinct (owner, position) pairs, sorted as `Unseen` expects them."""
    xp = array_namespace(owners, positions)
    pairs = xp.sort(owners * n_items + positions)
    pairs = pairs[run_starts(pairs)]
    owners = pairs // n_items
    return owners, pairs - owners * n_items
