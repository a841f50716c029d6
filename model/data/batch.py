"""Training samples: each positive is followed by the negatives drawn for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Samples of one step; every column has shape [B].

    Attributes:
        users, items: int32 or int64 ids.
        labels: float32.
        side: row side features, int32 ids or float32 numbers.
        group_size: consecutive samples of one user that share one positive (1: ungrouped).
    """

    users: Tensor
    items: Tensor
    labels: Tensor
    side: tuple[Tensor, ...] = ()
    group_size: int = 1

    @staticmethod
    def from_columns(columns: Iterable[Tensor], group_size: int = 1) -> Batch:
        users, items, labels, *side = columns
        return Batch(users, items, labels, tuple(side), group_size)

    @property
    def columns(self) -> tuple[Tensor, ...]:
        return (self.users, self.items, self.labels, *self.side)

    def __len__(self) -> int:
        return self.labels.shape[0]

    def cut(self, start: int, stop: int) -> Batch:
        """Samples start … stop - 1; these should be whole groups."""
        return Batch.from_columns((column[start:stop] for column in self.columns), self.group_size)

    def take(self, index: Tensor) -> Batch:
        """Samples by index."""
        return Batch.from_columns(column.index_select(0, index) for column in self.columns)

    def followed_by(self, other: Batch) -> Batch:
        group_size = self.group_size if self.group_size == other.group_size else 1
        return Batch.from_columns(map(torch.cat, zip(self.columns, other.columns, strict=True)), group_size)


@dataclass(frozen=True)
class Groups:
    """Rows and the negatives drawn for each, not yet expanded to samples, which takes a quarter of the bytes.

    Attributes:
        rows: one sample each; positives if there are negatives.
        negatives: ids with the items' dtype, shape [rows, negatives per row].
    """

    rows: Batch
    negatives: Tensor

    @staticmethod
    def single(rows: Batch) -> Groups:
        """Rows without negatives."""
        return Groups(Batch.from_columns(rows.columns), rows.items.new_empty((len(rows), 0)))

    @property
    def size(self) -> int:
        """Samples per group."""
        return 1 + self.negatives.shape[1]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Tensor) -> Groups:
        """Groups by index."""
        return Groups(self.rows.take(index), self.negatives.index_select(0, index))

    def followed_by(self, other: Groups) -> Groups:
        """Concatenate groups of the same size."""
        return Groups(self.rows.followed_by(other.rows), torch.cat((self.negatives, other.negatives)))

    def samples(self) -> Batch:
        """Each row followed by its negatives."""
        if self.size == 1:
            return self.rows
        items = torch.cat((self.rows.items[:, None], self.negatives), dim=1)
        labels = self.rows.labels.new_zeros(items.shape)
        labels[:, 0] = self.rows.labels
        users, *side = (column.repeat_interleave(self.size) for column in (self.rows.users, *self.rows.side))
        return Batch(users, items.view(-1), labels.view(-1), tuple(side), self.size)


def runs(*columns: Tensor) -> tuple[Tensor, Tensor]:
    """Starts of the runs of equal rows, int64 [R], and the run of each row, int64 [N], for columns of shape [N]."""
    begins = torch.ones(len(columns[0]), dtype=torch.bool, device=columns[0].device)
    begins[1:] = False
    for column in columns:
        begins[1:] |= column[1:] != column[:-1]
    return begins.nonzero().squeeze(1), begins.cumsum(0) - 1  # host sync: once per chunk of pairs
