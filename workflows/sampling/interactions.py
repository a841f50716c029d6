"""Array code for the interactions of whole users: deduplicated pairs, time order, stable sorting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from array_api_compat import array_namespace, device

from workflows.device.frames import host_integers
from workflows.device.kernels import gpu_kernels
from workflows.device.loops import host_loops

Array = Any  # a NumPy, CuPy or torch array

Range = tuple[int, int]  # the least and the greatest value of a column

KEY_BITS = 63  # of a signed 64-bit sort key


def count(n: int, like: Array) -> Array:
    """0 .. n-1 as int64, in the array library and on the device of `like`."""
    return array_namespace(like).arange(n, dtype=array_namespace(like).int64, device=device(like))


def value_ranges(*columns: Array) -> list[Range]:
    """The range of each integer column; none may be empty (host sync: once)."""
    kernels = gpu_kernels(columns[0])
    if kernels is not None:
        return kernels.value_ranges(*columns)
    xp = array_namespace(*columns)
    flat = host_integers(*(bound(column) for column in columns for bound in (xp.min, xp.max)))
    return list(zip(flat[::2], flat[1::2], strict=True))


def stable_order(*columns: Array, ranges: Sequence[Range] | None = None) -> Array:
    """Positions that stably sort rows by `columns`, the last column being the most significant.

    The columns are packed into as few 64-bit keys as their ranges allow, mostly one, and each key is sorted once.

    Args:
        columns: integer arrays of equal length.
        ranges: of the columns, if known; wider ones are fine.
    Returns:
        int64 positions.
    """
    xp = array_namespace(*columns)
    if not columns[0].shape[0]:
        return xp.zeros(0, dtype=xp.int64, device=device(columns[0]))
    ranges = ranges or value_ranges(*columns)
    kernels = gpu_kernels(columns[0])
    if kernels is not None and sum((high - low).bit_length() for low, high in ranges) <= KEY_BITS:
        return xp.argsort(kernels.sort_keys(columns, ranges), stable=True)
    order, key, width = None, None, 0
    for column, (low, high) in zip(columns, ranges, strict=True):
        bits = (high - low).bit_length()
        if key is not None and width + bits > KEY_BITS:
            order, key, width = _ordered(key, width, order), None, 0
        shifted = xp.astype(column, xp.int64, copy=False)
        if bits <= KEY_BITS:  # a wider column is a key of its own
            shifted = shifted - low
        key, width = shifted if key is None else key | (shifted << width), width + bits
    return _ordered(key, width, order)


def _ordered(key: Array, width: int, order: Array | None) -> Array:
    """`order` (None: as they come), sorted stably by a key of `width` bits."""
    xp = array_namespace(key)
    given = key if order is None else xp.take(key, order)
    loops = host_loops(given) if width <= KEY_BITS else None
    step = xp.argsort(given, stable=True) if loops is None else loops.key_order(given, width)
    return step if order is None else xp.take(order, step)


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


def histories(users: Array, items: Array, times: Array, *, drop_negative: bool = False) -> Histories:
    """Sort interactions into histories; repeated pairs keep their earliest time.

    The result does not depend on the row order: ties in time are broken by item.

    Args:
        users, items: integer ids; times: integers in any unit; all of equal length.
        drop_negative: whether to leave out rows with a negative user or item.

    Raises:
        TypeError: a column does not hold integers.
    """
    xp = array_namespace(users, items, times)
    for column in (users, items, times):
        if not xp.isdtype(column.dtype, "integral"):
            raise TypeError(f"users, items and times should be integers, got {column.dtype}")
    if not users.shape[0]:
        none = count(0, users)
        return Histories(none, none, none, none, items, times, none)
    ranges = value_ranges(users, items, times)
    kernels = gpu_kernels(users)
    if kernels is not None:
        return kernels.histories(users, items, times, ranges, drop_negative)
    if drop_negative and min(ranges[0][0], ranges[1][0]) < 0:
        known = xp.nonzero((users >= 0) & (items >= 0))[0]
        return histories(*(xp.take(column, known) for column in (users, items, times)))
    loops = host_loops(users)
    found = None if loops is None else loops.histories(users, items, times, ranges)
    if found is not None:
        return Histories(*found)
    # Sorted by time, too, so that the first row of each pair has its earliest time.
    order = stable_order(times, items, users, ranges=(ranges[2], ranges[1], ranges[0]))
    users, items, times = (xp.take(column, order) for column in (users, items, times))
    new_user = run_starts(users)
    pairs, owners = (
        xp.cumulative_sum(xp.astype(starts, xp.int64)) for starts in (new_user | run_starts(items), new_user)
    )
    n_pairs, n_users = host_integers(pairs[-1], owners[-1])
    if n_pairs < users.shape[0]:
        kept = xp.searchsorted(pairs, count(n_pairs, pairs) + 1, side="left")
        users, items, times, owners = (xp.take(column, kept) for column in (users, items, times, owners))
    rows = owners - 1
    starts = xp.searchsorted(rows, count(n_users, rows), side="left")
    by_time = stable_order(times, rows, ranges=(ranges[2], (0, n_users)))
    distinct = xp.astype(xp.take(users, starts), xp.int64)
    return Histories(distinct, run_lengths(starts, n_pairs), starts, rows, items, times, by_time)


def run_lengths(starts: Array, total: int) -> Array:
    """Rows from each start to the next one, or to `total` for the last: int64, same shape as `starts`."""
    if not starts.shape[0]:
        return starts
    xp = array_namespace(starts)
    return xp.concat([starts[1:], xp.full(1, total, dtype=starts.dtype, device=device(starts))]) - starts
