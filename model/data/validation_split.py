"""A leave-one-out validation split of train, so that the epoch is never chosen on test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from array_api_compat import array_namespace
from torch import Tensor

from model.data.batch import Batch
from model.data.dataset import Rows
from model.data.partitions import TablePartitions
from model.data.test_set import TestSet
from preprocessing.spec.reader import BLOCK_ROWS
from workflows.common.errors import UserError
from workflows.device.loops import host_view
from workflows.sampling import counter_rng
from workflows.sampling.candidates import Candidates
from workflows.sampling.interactions import count, histories, run_starts, stable_order
from workflows.sampling.negatives import series_negatives

Array = Any  # of NumPy or torch

_ORDER_STREAM, _NEGATIVE_STREAM = 6, 7


@dataclass(frozen=True)
class Validation:
    """One train interaction held out per user.

    Attributes:
        validation_items: int32 [n_users] on the device, the item held out of each user; -1: none.
        series: like test's: user, item and row side features, positive first.
    """

    validation_items: Tensor
    series: TestSet


def leave_one_out(train: Rows, time_ordered: bool, negatives: int, seed: int, device: torch.device) -> Validation:
    """Hold out one train interaction of every user with at least two items.

    It is the user's last if rows are ordered by time, otherwise drawn with `seed`. Its series has `negatives` items
    other than the user's train positives, distinct if there are enough; nothing is held out of users who have all
    items.

    Args:
        train: rows with the columns of a `Batch`, consecutive by user.
        device: where the split is computed.

    Raises:
        UserError: no user has two items.
    """
    columns = train.columns
    validation_items = torch.full((columns.n_users,), -1, dtype=torch.int32, device=device)
    order_seed, negative_seed = (counter_rng.stream_seed(seed, stream) for stream in (_ORDER_STREAM, _NEGATIVE_STREAM))
    tables: list[pa.Table] = []
    for block in map(Batch.from_columns, train.whole_users(BLOCK_ROWS, device)):
        positives = block.take((block.labels > 0).nonzero().squeeze(1))
        users, items = (_as_array(column.long()) for column in (positives.users, positives.items))
        xp, order = array_namespace(users), count(len(users), users)
        if not time_ordered:
            order = counter_rng.mix(counter_rng.keys(order_seed, users * columns.n_items + items))
        history = histories(users, items, order)
        index = xp.nonzero((history.counts > 1) & (history.counts < columns.n_items))[0]
        if not len(index):
            continue
        last = xp.take(history.by_time, xp.take(history.starts, index) + xp.take(history.counts, index) - 1)
        owners, chosen = xp.take(history.users, index), xp.take(history.items, last)
        validation_items[torch.as_tensor(owners)] = torch.as_tensor(chosen).int()
        drawn = series_negatives(history, index, Candidates(columns.n_items), negatives, negative_seed)
        series = torch.as_tensor(xp.concat([chosen[:, None], drawn], axis=1))
        each = torch.as_tensor(owners)
        source = torch.as_tensor(_first_rows(users * columns.n_items + items, owners * columns.n_items + chosen))
        repeated = [column.repeat_interleave(1 + negatives) for column in (each, *(c[source] for c in positives.side))]
        own = [column.cpu().numpy() for column in (repeated[0], series.reshape(-1), *repeated[1:])]  # to the host: once
        names = [columns.user, columns.item, *(feature.name for feature in columns.row_side)]
        tables.append(pa.table(dict(zip(names, own, strict=True))).cast(columns.schema(names)))
    if not tables:
        raise UserError(
            "--validation leave-one-out: no user has two train items and lacks another, so there is nothing to hold out"
        )
    table = pa.concat_tables(tables)
    rows = Rows(columns, tuple(table.column_names), TablePartitions.from_table(columns, table), train.frames)
    return Validation(validation_items, TestSet(rows, 1 + negatives))


def _as_array(column: Tensor) -> Array:
    """Host memory as NumPy's, for which there are compiled loops."""
    view = host_view(column)
    return column if view is None else view


def _first_rows(pairs: Array, wanted: Array) -> Array:
    """The first row of each wanted pair, int64 [T].

    Args:
        pairs: int64 [N]; wanted: int64 [T], ascending, each among the pairs.
    """
    xp = array_namespace(pairs)
    place = xp.clip(xp.searchsorted(wanted, pairs), max=len(wanted) - 1)
    rows = xp.nonzero(xp.take(wanted, place) == pairs)[0]
    place = xp.take(place, rows)
    order = stable_order(place)
    return xp.take(rows, order)[run_starts(xp.take(place, order))]
