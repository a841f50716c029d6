"""The items of each user in CSR form (compressed sparse rows), on NumPy or torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from array_api_compat import array_namespace, device

from model.data.dataset import Rows
from preprocessing.spec.reader import BLOCK_ROWS
from workflows.sampling.interactions import count

Array = Any  # of NumPy or torch; CuPy's `repeat` takes no array of counts


@dataclass(frozen=True)
class UserItems:
    """One list of items per user, 4 bytes an item.

    Attributes:
        starts: int64 [U + 1]; user u has items[starts[u] : starts[u + 1]].
        items: int32 [N].
    """

    starts: Array
    items: Array

    @staticmethod
    def from_rows(train: Rows, device: torch.device) -> UserItems:
        """Collect the train positives of all users, in one pass over the rows."""
        columns = train.columns
        rows = train.only((columns.user, columns.item, columns.label))
        counts = torch.zeros(columns.n_users, dtype=torch.int64, device=device)
        blocks = []
        for users, items, labels in rows.stream(BLOCK_ROWS, device):
            positive = labels > 0
            users, items = users[positive], items[positive]
            counts += torch.bincount(users, minlength=columns.n_users)
            blocks.append((users, items))
        users, items = (torch.cat(column) for column in zip(*blocks, strict=True))
        starts = torch.zeros(columns.n_users + 1, dtype=torch.int64, device=device)
        torch.cumsum(counts, 0, out=starts[1:])
        if not bool((users[1:] >= users[:-1]).all()):  # partitioned by a hash of the user
            items = items[torch.argsort(users, stable=True)]
        return UserItems(starts, items)

    def take(self, users: Array) -> UserItems:
        """The lists of some users: integers [P], in any order, with repeats."""
        starts, _, elements = take_lists(self.starts, users)
        return UserItems(starts, array_namespace(elements).take(self.items, elements))

    def pairs(self, users: Array) -> tuple[Array, Array]:
        """(index into `users`, item), int64, one pair per item of the users' lists."""
        xp = array_namespace(self.items)
        _, owners, elements = take_lists(self.starts, users)
        return owners, xp.astype(xp.take(self.items, elements), xp.int64)


def take_lists(starts: Array, lists: Array) -> tuple[Array, Array, Array]:
    """Select some lists of a CSR layout.

    Args:
        starts: offsets of the lists, int64 [L + 1].
        lists: indices of the lists to select, integers [P].
    Returns:
        int64: the offsets of the selected lists [P + 1]; for each of their elements, the index of its list among the
        selected ones, and its own index in the layout.
    """
    xp, lists = array_namespace(starts), array_namespace(lists).astype(lists, starts.dtype)
    first = xp.take(starts, lists)
    counts = xp.take(starts, lists + 1) - first
    selected = xp.concat([xp.zeros(1, dtype=counts.dtype, device=device(counts)), xp.cumulative_sum(counts)])
    owners = xp.repeat(count(lists.shape[0], counts), counts)
    elements = count(owners.shape[0], counts) + xp.take(first - selected[:-1], owners)
    return selected, owners, elements
