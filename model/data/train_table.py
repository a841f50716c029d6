"""The train rows in device memory, laid out so that any sample of an epoch can be made alone."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.data.batch import Batch, runs
from preprocessing.spec.reader import BLOCK_ROWS
from workflows.device.loops import host_view
from workflows.sampling.interactions import run_starts, stable_order

if TYPE_CHECKING:  # steps on other batches do not need Merlin
    from model.data.dataset import Rows


@dataclass(frozen=True)
class TrainTable:
    """Rows in one piece of memory, 8 bytes each besides labels and side features.

    The first `n_drawn` rows get negatives: each user's consecutive, ascending by item. The last `n_alone` get none.

    Attributes:
        users, items: int32 [N].
        labels: float32 [N]; None: all are 1.
        side: row side features, [N] each.
        starts, ends: int64 [n_users]; the rows of user u among the first `n_drawn` are starts[u] … ends[u] - 1.
    """

    users: Tensor
    items: Tensor
    labels: Tensor | None
    side: tuple[Tensor, ...]
    n_drawn: int
    n_alone: int
    starts: Tensor
    ends: Tensor

    @property
    def drawn(self) -> tuple[Tensor, Tensor]:
        """Users and items of the rows that get negatives."""
        return self.users[: self.n_drawn], self.items[: self.n_drawn]

    @cached_property
    def own(self) -> tuple[Tensor, Tensor, Tensor]:
        """The distinct items of each user: int32 items, and starts and ends as for the rows."""
        users, items = self.drawn
        first = run_starts(users) | run_starts(items)
        if bool(first.all()):  # host sync: once per run
            return items, self.starts, self.ends
        before = torch.zeros(self.n_drawn + 1, dtype=torch.int64, device=items.device)
        torch.cumsum(first, 0, out=before[1:])
        return items[first], before[self.starts], before[self.ends]


def load_train_table(
    rows: Rows, device: torch.device, draws: bool, uniform: bool, validation_items: Tensor | None
) -> TrainTable:
    """Read all rows but the held-out ones.

    Memory: the table itself, allocated once for all rows, and one block of `BLOCK_ROWS` with its sort.

    Args:
        rows: with the columns of a `Batch`, in its order; each user's consecutive.
        draws: whether negatives are drawn for the positives; otherwise no row gets any.
        uniform: whether they may be any items; otherwise users who have all items get none.
        validation_items: int32 [n_users], an item to leave out per user, -1 for none.
    """
    building = _Building(rows, device)
    with closing(rows.whole_users(BLOCK_ROWS, device)) as blocks:
        for columns in blocks:
            block = trained_on(Batch.from_columns(columns), validation_items)
            if not draws:
                building.append(block)
                continue
            positive = block.labels > 0
            if not bool(positive.all()):  # host sync: once per block and run, as all others here
                building.append_alone(block.take((~positive).nonzero().squeeze(1)))
                block = block.take(positive.nonzero().squeeze(1))
            block = _sorted(block, rows)
            if not uniform:
                block = _without_complete_users(block, rows.columns.n_items, building)
            building.append(block)
    return building.table()


def trained_on(block: Batch, validation_items: Tensor | None) -> Batch:
    """A block without its held-out rows."""
    if validation_items is None:
        return block
    held_out = (validation_items[block.users] == block.items) & (block.labels > 0)
    return block.take((~held_out).nonzero().squeeze(1))


def _sorted(block: Batch, rows: Rows) -> Batch:
    """The rows of each user ascending by item."""
    users, items = block.users, block.items
    host_users, host_items = host_view(users), host_view(items)
    if host_users is not None and host_items is not None:  # compiled loops sort host memory
        order = torch.from_numpy(stable_order(host_items, host_users))
    else:
        order = stable_order(items, users, ranges=[(0, rows.columns.n_items - 1), (0, rows.columns.n_users - 1)])
    return block.take(order)


def _without_complete_users(block: Batch, n_items: int, building: _Building) -> Batch:
    """The rows of users who lack an item; those of the others are appended alone."""
    first, run = runs(block.users)
    if not len(first) or int(torch.bincount(run).max()) < n_items:
        return block
    new = run_starts(block.users) | run_starts(block.items)
    complete = (torch.bincount(run[new]) == n_items)[run]
    building.append_alone(block.take(complete.nonzero().squeeze(1)))
    return block.take((~complete).nonzero().squeeze(1))


class _Building:
    """A table being filled from both ends."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self._n_rows, self._device = rows.n_rows, device
        self._columns: list[Tensor | None] = []
        self._n_drawn, self._n_alone = 0, 0
        self._starts = torch.zeros(rows.columns.n_users, dtype=torch.int64, device=device)
        self._ends = torch.zeros_like(self._starts)

    def append(self, block: Batch) -> None:
        """Add rows that get negatives, if any do; each user's consecutive."""
        first, run = runs(block.users)
        owners = block.users[first].long()
        self._starts[owners] = self._n_drawn + first
        self._ends[owners] = self._n_drawn + first + torch.bincount(run, minlength=len(first))
        self._write(block, self._n_drawn)
        self._n_drawn += len(block)

    def append_alone(self, block: Batch) -> None:
        self._n_alone += len(block)
        self._write(block, self._n_rows - self._n_alone)

    def _write(self, block: Batch, start: int) -> None:
        if not self._columns:
            self._columns = [self._empty(column) for column in block.columns]
            self._columns[2] = None
        if self._columns[2] is None and bool((block.labels != 1).any()):
            self._columns[2] = torch.ones(self._n_rows, device=self._device)
        for whole, column in zip(self._columns, block.columns, strict=True):
            if whole is not None:
                whole[start : start + len(block)] = column

    def _empty(self, like: Tensor) -> Tensor:
        return torch.empty(self._n_rows, dtype=like.dtype, device=self._device)

    def table(self) -> TrainTable:
        users, items, labels, *side = self._columns
        assert users is not None
        assert items is not None
        sides = tuple(column for column in side if column is not None)
        return TrainTable(users, items, labels, sides, self._n_drawn, self._n_alone, self._starts, self._ends)
