"""CUDA kernels for GPU arrays, each equivalent to the array code that it replaces.

Array code would take hundreds of launches, and several waits for the GPU, for the negatives of a partition. Use these
through `workflows.device.kernels.gpu_kernels`.
"""

from __future__ import annotations

from typing import Any

from array_api_compat import array_namespace, device

from workflows.device.kernels import launch
from workflows.sampling.candidates import Candidates

Array = Any  # an int64 array of CuPy or torch


def series_positions(
    starts: Array, ends: Array, positions: Array, candidates: Candidates, keys: Array, cutoffs: Array, length: int
) -> Array:
    """The positions that `negatives.series_negatives` draws: int64 [T, length], ascending.

    Args:
        starts, ends: [T]; the owner of series t has the positions positions[starts[t] : ends[t]].
        positions: [N], ascending for each owner.
        keys, cutoffs: [T], random key and cutoff per series; a cutoff that leaves nothing is ignored.
    """
    xp = array_namespace(positions)
    chosen = xp.empty((starts.shape[0], length), dtype=xp.int64, device=device(positions))
    weights = candidates.taken_weights(positions) if candidates.cdf is not None else None
    arrays = (starts, ends, positions, weights, candidates.cdf, keys, cutoffs)
    launch("series_positions", chosen.shape[0], chosen.shape[0], *arrays, candidates.n_items, length, chosen)
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
        users: [N], ids.
        owners: [N], index of each row's user; row_starts: [S], the user's first row.
        own_starts: [S + 1]; owner o has the positions positions[own_starts[o] : own_starts[o + 1]]. None: no item is
            excluded.
        positions: [P], ascending and distinct for each owner.
        cutoffs: [N]; one that leaves nothing is ignored.
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
