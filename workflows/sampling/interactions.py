"""Array code for the interactions of whole users: deduplicated pairs, time order, stable sorting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, device

from workflows.device.loops import host_loops

Array = Any  # a NumPy or CuPy array; torch cannot sort 16-bit digits

_DIGIT_BITS = 16


def count(n: int, like: Array) -> Array:
    """0 .. n-1 as int64, in the array library and on the device of `like`."""
    return array_namespace(like).arange(n, dtype=array_namespace(like).int64, device=device(like))


def stable_order(*columns: Array) -> Array:
    """Positions that stably sort rows by `columns`, the last column being the most significant.

    A radix sort: libraries sort 16-bit digits in linear time, several times faster than a lexsort.

    Args:
        columns: integer arrays of equal length; each is shifted to start at 0, so the cost depends only on its range.
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
        # Modulo 2**64 (or 2**32 if that suffices), so that no difference overflows and no digit needs a mask.
        unsigned = xp.uint64 if span >> 32 else xp.uint32
        zero = xp.asarray(low % (1 << xp.iinfo(unsigned).bits), dtype=unsigned, device=device(column))
        shifted = xp.astype(column, unsigned) - zero
        for shift in range(0, max(span.bit_length(), 1), _DIGIT_BITS):
            digits = xp.astype(shifted >> shift, xp.uint16)
            step = xp.argsort(digits if order is None else xp.take(digits, order), stable=True)
            order = step if order is None else xp.take(order, step)
    return order


def run_starts(values: Array) -> Array:
    """True at the start of each run of equal values, bool [N]."""
    xp = array_namespace(values)
    first = xp.ones(min(1, values.shape[0]), dtype=xp.bool, device=device(values))
    return xp.concat([first, values[1:] != values[:-1]]) if values.shape[0] else first


@dataclass(frozen=True)
class Histories:
    """The interactions of S whole users: N rows, one per (user, item), users ascending.

    Attributes:
        users: int64 [S], ids in ascending order.
        counts: int64 [S], rows per user.
        starts: int64 [S], first row of each user, in either order below.
        rows: int64 [N], index (0 .. S-1) of each row's user, in either order below.
        items, times: integers [N], each user's items in ascending order, and the earliest time of each.
        by_time: int64 [N], positions in `items` that sort each user's rows by (time, item).
    """

    users: Array
    counts: Array
    starts: Array
    rows: Array
    items: Array
    times: Array
    by_time: Array


def histories(users: Array, items: Array, times: Array) -> Histories:
    """Sort interactions into histories; repeated pairs keep their earliest time.

    The result does not depend on the row order: ties in time are broken by item.

    Args:
        users, items: integer ids; times: integers in any unit; all of equal length.

    Raises:
        TypeError: a column does not hold integers.
    """
    xp = array_namespace(users, items, times)
    for column in (users, items, times):
        if not xp.isdtype(column.dtype, "integral"):
            raise TypeError(f"users, items and times should be integers, got {column.dtype}")
    loops = host_loops(users)
    found = None if loops is None else loops.histories(users, items, times)
    if found is not None:
        return Histories(*found)
    order = stable_order(items, users)
    users, items, times = (xp.take(column, order) for column in (users, items, times))
    first = run_starts(users) | run_starts(items)
    times = _earliest(times, first)
    users, items = users[first], items[first]
    new_user = run_starts(users)
    rows = xp.cumulative_sum(xp.astype(new_user, xp.int64)) - 1
    starts = xp.nonzero(new_user)[0]
    distinct = xp.astype(xp.take(users, starts), xp.int64)
    return Histories(
        distinct, run_lengths(starts, rows.shape[0]), starts, rows, items, times, stable_order(times, rows)
    )


def run_lengths(starts: Array, total: int) -> Array:
    """Rows from each start to the next one, or to `total` for the last: int64, same shape as `starts`."""
    if not starts.shape[0]:
        return starts
    xp = array_namespace(starts)
    return xp.concat([starts[1:], xp.full(1, total, dtype=starts.dtype, device=device(starts))]) - starts


def _earliest(times: Array, first: Array) -> Array:
    """The minimum time of each run; `first` is true at the start of each run."""
    xp = array_namespace(times, first)
    least = times[first]
    if least.shape == times.shape:
        return least
    run = xp.cumulative_sum(xp.astype(first, xp.int64)) - 1
    several = run_lengths(xp.nonzero(first)[0], times.shape[0]) > 1
    # Sort only the rows of repeated pairs, by time within their run, so that the minimum of each run comes first.
    rows = xp.nonzero(xp.take(several, run))[0]
    run, times = xp.take(run, rows), xp.take(times, rows)
    order = stable_order(times, run)
    leads = xp.take(times, order)[run_starts(xp.take(run, order))]
    position = xp.cumulative_sum(xp.astype(several, xp.int64)) - 1
    return xp.where(several, xp.take(leads, xp.clip(position, min=0)), least)
