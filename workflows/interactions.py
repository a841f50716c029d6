"""Array code on interactions of whole users: one row per pair, time order, the last one held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, device

Array = Any  # an array of NumPy or CuPy; torch sorts no 16-bit digits

_DIGIT_BITS = 16


def count(n: int, like: Array) -> Array:
    """0 .. n-1 as int64, in the library and on the device of `like`."""
    return array_namespace(like).arange(n, dtype=array_namespace(like).int64, device=device(like))


def stable_order(*columns: Array) -> Array:
    """Positions that sort rows by `columns`, the last one being the most significant; ties keep their order.

    A radix sort: libraries sort 16-bit digits in linear time, several times faster than a lexsort.

    Args:
        columns: integer arrays of one length; each is shifted to start at 0, so that only its range costs.
    Returns:
        int64 positions.
    """
    xp = array_namespace(*columns)
    order = None
    for column in columns:
        if column.shape[0] == 0:
            return xp.zeros(0, dtype=xp.int64, device=device(column))
        low = int(xp.min(column))
        span = int(xp.max(column)) - low
        shift = 0
        while shift == 0 or span >> shift:
            digits = xp.astype(((xp.astype(column, xp.int64) - low) >> shift) & 0xFFFF, xp.uint16)
            step = xp.argsort(digits if order is None else xp.take(digits, order), stable=True)
            order = step if order is None else xp.take(order, step)
            shift += _DIGIT_BITS
    return order


def run_starts(values: Array) -> Array:
    """True where a value differs from the one before it: where each run begins, shape [N]."""
    xp = array_namespace(values)
    first = xp.ones(min(1, values.shape[0]), dtype=xp.bool, device=device(values))
    return xp.concat([first, values[1:] != values[:-1]])


@dataclass(frozen=True)
class Histories:
    """The interactions of S whole users, one row per (user, item), N rows.

    Attributes:
        users: int64 [S] ids in ascending order.
        counts: int64 [S] rows of each user.
        starts: int64 [S] first row of each user, in either order below.
        by_item: int64 [N] items, users in order, each user's items ascending.
        by_time: int64 [N] items, users in order, each user's items by (time, item).
    """

    users: Array
    counts: Array
    starts: Array
    by_item: Array
    by_time: Array

    @property
    def rows(self) -> Array:
        """Which of the S users each row belongs to, int64 [N]."""
        xp = array_namespace(self.users)
        return xp.repeat(count(self.users.shape[0], self.users), self.counts)


def histories(users: Array, items: Array, times: Array) -> Histories:
    """Sort interactions into histories; of a pair that occurs again the earliest time counts.

    The result does not depend on the order of the rows: times that tie are ordered by item.

    Args:
        users, items: integer ids; times: integers in any unit; all of one length.

    Raises:
        TypeError: a column is not of integers.
    """
    xp = array_namespace(users, items, times)
    for column in (users, items, times):
        if not xp.isdtype(column.dtype, "integral"):
            raise TypeError(f"users, items and times should be integers, got {column.dtype}")
    order = stable_order(times, items, users)
    users, items = xp.take(users, order), xp.take(items, order)
    new_user = run_starts(users)
    first = xp.nonzero(new_user | run_starts(items))[0]
    users, items, times = xp.take(users, first), xp.take(items, first), xp.take(times, xp.take(order, first))
    starts = xp.nonzero(run_starts(users))[0]
    ends = xp.concat([starts[1:], xp.asarray([users.shape[0]], dtype=xp.int64, device=device(users))])
    distinct = xp.take(users, starts)
    return Histories(
        users=xp.astype(distinct, xp.int64),
        counts=(ends - starts)[: distinct.shape[0]],
        starts=starts,
        by_item=xp.astype(items, xp.int64),
        by_time=xp.astype(xp.take(items, stable_order(times, users)), xp.int64),
    )
