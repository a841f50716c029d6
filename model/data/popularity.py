"""Popularity of items: their numbers of train positives."""

from __future__ import annotations

import torch
from torch import Tensor

from model.data.dataset import Rows
from model.distributed.process_group import ProcessGroup
from preprocessing.spec.reader import BLOCK_ROWS


def item_popularity(rows: Rows, world: ProcessGroup, validation_items: Tensor | None = None) -> Tensor:
    """Train positives of each item over all ranks, int64 [n_items]; each rank counts its share of the partitions.

    Args:
        validation_items: int32 [n_users], one item per user that is not counted, -1 for none.
    """
    columns = rows.columns
    counts = torch.zeros(columns.n_items, dtype=torch.int64, device=world.device)
    local = range(world.rank, rows.n_partitions, world.size)
    pairs = rows.only((columns.user, columns.item, columns.label))
    for users, items, labels in pairs.stream(BLOCK_ROWS, world.device, local):
        counted = labels > 0
        if validation_items is not None:
            counted &= validation_items[users] != items
        counts += torch.bincount(items[counted], minlength=counts.shape[0])
    return world.sum(counts)
