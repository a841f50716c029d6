"""Train positives: how many each item has (its popularity), and which users have any."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.data.dataset import Rows
from model.distributed.process_group import ProcessGroup
from preprocessing.spec.reader import BLOCK_ROWS
from workflows.sampling.interactions import run_starts


@dataclass(frozen=True)
class TrainPositives:
    """Train positives over all ranks.

    Attributes:
        of_items: number of each item, int64 [n_items].
        has_any: whether a user has one, bool [n_users].
    """

    of_items: Tensor
    has_any: Tensor


def count_positives(rows: Rows, world: ProcessGroup, validation_items: Tensor | None = None) -> TrainPositives:
    """Count the train positives in one pass; each rank counts its share of the partitions.

    Args:
        validation_items: int32 [n_users], one item per user that is not counted, -1 for none.
    """
    columns = rows.columns
    counts = torch.zeros(columns.n_items, dtype=torch.int64, device=world.device)
    has_any = torch.zeros(columns.n_users, dtype=torch.int32, device=world.device)
    local = range(world.rank, rows.n_partitions, world.size)
    pairs = rows.only((columns.user, columns.item, columns.label))
    for users, items, labels in pairs.stream(BLOCK_ROWS, world.device, local):
        counted = labels > 0
        if validation_items is not None:
            counted &= validation_items[users] != items
        if not bool(counted.all()):  # host sync: once per block
            users, items = users[counted], items[counted]
        counts += torch.bincount(items, minlength=counts.shape[0])
        has_any[users[run_starts(users)]] = 1  # users are mostly consecutive
    return TrainPositives(world.sum(counts), world.sum(has_any) > 0)


def item_popularity(rows: Rows, world: ProcessGroup, validation_items: Tensor | None = None) -> Tensor:
    """Train positives of each item, int64 [n_items]; see `count_positives`."""
    return count_positives(rows, world, validation_items).of_items
