"""Items each user has interacted with in train, for ranking against all other items."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.data.dataset import Rows

_BLOCK_ROWS = 1 << 20


@dataclass(frozen=True)
class UserItems:
    """Train positives by user in CSR form, 4 bytes each.

    Attributes:
        starts: int64 [n_users + 1]; user u has items[starts[u] : starts[u + 1]].
        items: int32 [N].
    """

    starts: Tensor
    items: Tensor

    @staticmethod
    def from_rows(train: Rows, device: torch.device) -> UserItems:
        columns = train.columns
        rows = train.only((columns.user, columns.item, columns.label))
        counts = torch.zeros(columns.n_users, dtype=torch.int64, device=device)
        blocks = []
        for users, items, labels in rows.stream(_BLOCK_ROWS, device):
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

    def of_users(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """The seen items of some users: (index into `users`, item), int64, one pair per train positive.

        Args:
            users: ids, shape [U].
        """
        first, last = self.starts[users], self.starts[users.long() + 1]
        counts = last - first
        owner = torch.repeat_interleave(torch.arange(len(users), device=users.device), counts)
        index = torch.arange(len(owner), device=users.device) - (counts.cumsum(0) - counts)[owner] + first[owner]
        return owner, self.items[index].long()
