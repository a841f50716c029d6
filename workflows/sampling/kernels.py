"""CUDA kernels for GPU arrays, each equivalent to the array code that it replaces.

Array code would take hundreds of launches, and several waits for the GPU, for a partition. Use these through
`workflows.device.kernels.gpu_kernels`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from array_api_compat import array_namespace, device

from workflows.device.frames import to_host
from workflows.device.kernels import launch
from workflows.sampling.candidates import Candidates
from workflows.sampling.interactions import Histories, Range, run_lengths, stable_order
from workflows.sampling.permutation import Permutation

Array = Any  # of CuPy or torch

_RANGE_THREADS = 1 << 16
_SIGN = 1 << 63


def value_ranges(*columns: Array) -> list[Range]:
    """See `interactions.value_ranges`; at most three columns."""
    xp = array_namespace(*columns)
    columns = tuple(_kernel_integers(column) for column in columns)
    ranges = xp.zeros(2 * len(columns), dtype=xp.int64, device=device(columns[0]))
    rows = columns[0].shape[0]
    given = [part for column in columns for part in _typed(column)] + [None, 0] * (3 - len(columns))
    threads = min(rows, _RANGE_THREADS)
    launch("value_ranges", threads, threads, rows, *given, ranges)
    flat = [int(value) % (1 << 64) for value in to_host(ranges)]
    return [(((1 << 64) - 1 - low) - _SIGN, high - _SIGN) for low, high in zip(flat[::2], flat[1::2], strict=True)]


def sort_keys(columns: Sequence[Array], ranges: Sequence[Range]) -> Array:
    """The 64-bit keys of `interactions.stable_order`: int64 [N].

    Args:
        columns: at most three, the last being the most significant; together their ranges fit in `KEY_BITS`.
    """
    xp = array_namespace(*columns)
    given: list[Any] = []
    width = 0
    for column, (low, high) in zip(columns, ranges, strict=True):
        given += [*_typed(_kernel_integers(column)), low, width]
        width += (high - low).bit_length()
    keys = xp.empty(columns[0].shape[0], dtype=xp.int64, device=device(columns[0]))
    launch("sort_keys", keys.shape[0], keys.shape[0], *given, *[None, 0, 0, 0] * (3 - len(columns)), keys)
    return keys


def histories(users: Array, items: Array, times: Array, ranges: Sequence[Range], drop_negative: bool) -> Histories:
    """See `interactions.histories`."""
    xp, rows, here = array_namespace(users), users.shape[0], device(users)
    users, items, times = (_kernel_integers(column) for column in (users, items, times))
    columns = [part for column in (users, items, times) for part in _typed(column)]

    def integers(n: int, dtype: Any = xp.int64) -> Array:
        return xp.empty(n, dtype=dtype, device=here)

    order = stable_order(times, items, users, ranges=ranges[::-1])
    flags = xp.empty((2, rows), dtype=xp.int64, device=here)
    launch("first_rows", rows, rows, order, *columns[:4], int(drop_negative), flags)
    sums = xp.cumulative_sum(flags, axis=1)
    n_pairs, n_users = to_host(sums[:, -1]).tolist()
    distinct, starts = integers(n_users), integers(n_users)
    owners, own_items, own_times = integers(n_pairs), integers(n_pairs, items.dtype), integers(n_pairs, times.dtype)
    launch("histories", rows, rows, order, sums, *columns, distinct, starts, owners, own_items, own_times)
    del order, flags, sums  # 40 bytes a row, before the second sort takes as many
    by_time = stable_order(own_times, owners, ranges=(ranges[2], (0, n_users)))
    return Histories(distinct, run_lengths(starts, n_pairs), starts, owners, own_items, own_times, by_time)


def series_negatives(
    history: Histories, selected: Array, candidates: Candidates, length: int, seed: int, exact: bool
) -> Array:
    """See `negatives.series_negatives`."""
    own = _own_positions(history, candidates)
    return _series_negatives(history, selected, own, candidates, length, seed, exact)


def _series_negatives(
    history: Histories,
    selected: Array,
    own: tuple[Array, Array | None],
    candidates: Candidates,
    length: int,
    seed: int,
    exact: bool,
) -> Array:
    """Args: own: see `_own_positions`."""
    xp, n_series = array_namespace(history.users), selected.shape[0]
    chosen = xp.empty((n_series, length), dtype=xp.int64, device=device(history.users))
    users = (history.users, history.starts, history.counts, history.by_time)
    line = (*own, candidates.cdf, candidates.items, candidates.since)
    scalars = (candidates.n_items, length, int(exact), seed)
    launch("series_negatives", n_series, n_series, selected, *users, *_typed(history.times), *line, *scalars, chosen)
    return chosen


def row_positions(
    users: Array,
    owners: Array,
    row_starts: Array,
    own_starts: Array | None,
    positions: Array,
    candidates: Candidates,
    cutoffs: Array | None,
    per_row: int,
    seed: int,
) -> tuple[Array, Array]:
    """The positions that `negatives.row_negatives` draws: int64 [N, per_row], and bool [N], whether there are any.

    Args:
        users: int64 [N], ids.
        owners: int64 [N], index of each row's user; row_starts: int64 [S], the user's first row.
        own_starts: int64 [S + 1]; owner o has the positions positions[own_starts[o] : own_starts[o + 1]]. None: no
            item is excluded.
        positions: int64 [P], ascending and distinct for each owner.
        cutoffs: int64 [N]; one that leaves nothing is ignored.
    """
    xp = array_namespace(users)
    rows = users.shape[0]
    chosen = xp.empty((rows, per_row), dtype=xp.int64, device=device(users))
    exists = xp.empty(rows, dtype=xp.uint8, device=device(users))
    weights = candidates.taken_weights(positions) if candidates.cdf is not None else None
    draw_again = own_starts is not None and candidates.cdf is None and cutoffs is None
    arrays = (users, owners, row_starts, own_starts, positions, weights, candidates.cdf, cutoffs)
    scalars = (candidates.n_items, per_row, int(draw_again), seed)
    launch("row_positions", rows * per_row, rows, *arrays, *scalars, chosen, exists)
    return chosen, xp.astype(exists, xp.bool)


def split_rows(
    history: Histories,
    held_out: Array,
    candidates: Candidates,
    seeds: tuple[int, int],
    test_negatives: int,
    train_negatives: int,
    exact: bool,
) -> dict[str, Array]:
    """The output columns of `LeaveOneOut`: user and item (int32), label (float32) and split (int8).

    Args:
        held_out: int64 [T], ascending indices of the users with a series.
        seeds: of the training and of the test negatives.
    """
    xp, here = array_namespace(history.users), device(history.users)
    n_train, n_test = history.rows.shape[0] - held_out.shape[0], held_out.shape[0] * (1 + test_negatives)
    full_before, n_samples = None, n_train * (1 + train_negatives)
    if train_negatives and exact:  # users with every item have no negatives
        full = xp.where(history.counts == candidates.n_items, history.counts, 0)
        sums = xp.cumulative_sum(full)
        n_samples -= train_negatives * (int(to_host(sums[-1:])[0]) if full.shape[0] else 0)
        full_before = sums - full
    kinds = {"user": xp.int32, "item": xp.int32, "label": xp.float32, "split": xp.int8}
    columns = {name: xp.empty(n_samples + n_test, dtype=kind, device=here) for name, kind in kinds.items()}
    own = _own_positions(history, candidates)
    users = (history.users, history.starts, history.counts)
    line = (candidates.cdf, candidates.items, candidates.positions, candidates.since)
    times = _typed(history.times) if candidates.since is not None else (None, 0)
    launch(
        "train_rows",
        n_train,
        *(n_train, held_out, held_out.shape[0], *users, history.rows, history.by_time, *_typed(history.items), *times),
        *(*own, *line, candidates.n_items, train_negatives, int(exact), full_before, seeds[0], *columns.values()),
    )
    negatives = _series_negatives(history, held_out, own, candidates, test_negatives, seeds[1], exact)
    shown = (*users, history.by_time, *_typed(history.items))
    launch("test_rows", n_test, n_test, n_samples, test_negatives, held_out, *shown, negatives, *columns.values())
    return columns


def look_up_direct(ids: Array, low: int, table: Array) -> Array:
    """The entry of each id in an int32 table that begins at id `low`; the last entry for all ids outside: int32 [N]."""
    xp, n_ids = array_namespace(ids), ids.shape[0]
    ids = _kernel_integers(ids)
    found = xp.empty(n_ids, dtype=xp.int32, device=device(ids))
    launch("look_up_direct", n_ids, n_ids, *_typed(ids), low, table, table.shape[0] - 1, found)
    return found


def look_up_sorted(ids: Array, known: Array, numbers: Array) -> Array:
    """The number of each id: int32 [N], -1 if it is not known.

    Args:
        known: int64 [K], ascending; numbers: int32 [K].
    """
    xp, n_ids = array_namespace(ids), ids.shape[0]
    ids = _kernel_integers(ids)
    found = xp.empty(n_ids, dtype=xp.int32, device=device(ids))
    launch("look_up_sorted", n_ids, n_ids, *_typed(ids), known, numbers, known.shape[0], found)
    return found


def _own_positions(history: Histories, candidates: Candidates) -> tuple[Array, Array | None]:
    """Each user's positions on the line, ascending, and their cumulative weights (None: every weight is 1)."""
    xp = array_namespace(history.items)
    positions = candidates.position_of(history.items)
    if candidates.positions is not None:
        pairs = xp.sort(history.rows * candidates.n_items + positions)
        positions = pairs - history.rows * candidates.n_items
    return positions, candidates.taken_weights(positions) if candidates.cdf is not None else None


def _kernel_integers(column: Array) -> Array:
    """A column as the kernels read it: int32 or int64, contiguous."""
    xp = array_namespace(column)
    return column if column.dtype in (xp.int32, xp.int64) else xp.astype(column, xp.int64)


def _typed(column: Array) -> tuple[Array, int]:
    """A column for a kernel, and the bytes per value."""
    return column, 4 if column.dtype == array_namespace(column).int32 else 8


def train_batch(
    columns: tuple[Array, Array, Array | None],
    numbers: tuple[int, int],
    row_starts: Array,
    own: tuple[Array | None, Array | None, Array | None],
    own_weights: Array | None,
    candidates: Candidates,
    per_row: int,
    seed: int,
    order: Permutation,
    part: tuple[int, int],
    group_size: int,
    with_rows: bool,
) -> tuple[Array, Array, Array, Array | None]:
    """Samples of some elements of an epoch, see `model.data.resident_batches`: users, items int32, labels float32.

    Args:
        columns: users, items int32 and labels float32 of all rows [N]; no labels: all are 1.
        numbers: of rows that get negatives, at the front, and of rows that get none, at the end.
        row_starts: [n_users], each user's first row.
        own: items int32, ascending and distinct for each user, and the starts and ends [n_users] of the users' items;
            None if negatives may be any items.
        own_weights: [len(items) + 1], cumulative weight before each of them; None: every weight is 1.
        candidates: not time-aware.
        seed: of the negatives.
        order: of the elements; `part` of it is made: start, stop.
        group_size: samples per element, 1 + per_row or 1.
        with_rows: also return the row of each sample, int64.
    """
    xp, users = array_namespace(row_starts), columns[0]
    n_samples = (part[1] - part[0]) * group_size
    found = [xp.empty(n_samples, dtype=dtype, device=device(users)) for dtype in (xp.int32, xp.int32, xp.float32)]
    rows = xp.empty(n_samples, dtype=xp.int64, device=device(users)) if with_rows else None
    own_items, own_starts, own_ends = own
    table = (*columns, users.shape[0], *numbers, row_starts, own_items, own_weights, own_starts, own_ends)
    scalars = (candidates.n_items, per_row, order.seed, order.height, order.width, seed)
    launch("train_batch", n_samples, n_samples, part[0], group_size, *table, candidates.cdf, *scalars, *found, rows)
    return *found, rows
