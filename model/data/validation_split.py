"""A leave-one-out validation split of train, so that the epoch is never chosen on test."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from model.data.batch import Batch
from model.data.dataset import Rows
from model.data.partitions import TablePartitions
from model.data.test_set import TestSet
from preprocessing.spec.reader import BLOCK_ROWS
from workflows.common.errors import UserError
from workflows.sampling import counter_rng
from workflows.sampling.candidates import Candidates
from workflows.sampling.interactions import histories
from workflows.sampling.negatives import series_negatives

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

    Raises:
        UserError: no user has two items.
    """
    columns = train.columns
    validation_items = torch.full((columns.n_users,), -1, dtype=torch.int32)
    order_seed, negative_seed = (counter_rng.stream_seed(seed, stream) for stream in (_ORDER_STREAM, _NEGATIVE_STREAM))
    tables: list[pa.Table] = []
    for block in map(Batch.from_columns, train.whole_users(BLOCK_ROWS, torch.device("cpu"))):
        positives = block.take((block.labels > 0).nonzero().squeeze(1))
        users, items = (column.long().numpy() for column in (positives.users, positives.items))
        order = np.arange(len(users))
        if not time_ordered:
            order = counter_rng.mix(counter_rng.keys(order_seed, users * columns.n_items + items))
        history = histories(users, items, order)
        index = np.flatnonzero((history.counts > 1) & (history.counts < columns.n_items))
        if not len(index):
            continue
        last = history.by_time[history.starts[index] + history.counts[index] - 1]
        owners, chosen = history.users[index], history.items[last]
        validation_items[torch.from_numpy(owners)] = torch.from_numpy(chosen).int()
        drawn = series_negatives(history, index, Candidates(columns.n_items), negatives, negative_seed)
        # The source row of each positive, for its side features.
        source = np.flatnonzero(np.isin(users * columns.n_items + items, owners * columns.n_items + chosen))
        source = source[np.unique(users[source], return_index=True)[1]]
        side = [column.numpy()[source].repeat(1 + negatives) for column in positives.side]
        series = [owners.repeat(1 + negatives), np.column_stack([chosen, drawn]).reshape(-1), *side]
        names = [columns.user, columns.item, *(feature.name for feature in columns.row_side)]
        tables.append(pa.table(dict(zip(names, series, strict=True))).cast(columns.schema(names)))
    if not tables:
        raise UserError(
            "--validation leave-one-out: no user has two train items and lacks another, so there is nothing to hold out"
        )
    table = pa.concat_tables(tables)
    rows = Rows(columns, tuple(table.column_names), TablePartitions.from_table(columns, table), train.frames)
    return Validation(validation_items.to(device), TestSet(rows, 1 + negatives))
