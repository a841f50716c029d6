"""The split as plain NumPy files, which any environment can read. Test rows are never written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.data.dataset import Rows
from preprocessing.spec.reader import BLOCK_ROWS

_CPU = torch.device("cpu")


def write_split(train: Rows, path: Path, validation_items: Tensor | None = None) -> int:
    """Write train's positives in order, less the validation items, which are written apart; returns their number.

    Args:
        train: rows with a user, an item and a label column.
        path: of an .npz file with `users`, `items` (int32), `n_users`, `n_items` and perhaps `held_out` (int32, an
            item for each user, -1 for none).
    """
    columns, found = train.columns, []
    for users, items, labels in train.only((columns.user, columns.item, columns.label)).stream(BLOCK_ROWS, _CPU):
        kept = labels > 0
        if validation_items is not None:
            kept &= validation_items[users.long()] != items
        found.append(torch.stack([users[kept].int(), items[kept].int()]).numpy())
    users, items = np.concatenate(found, axis=1)
    arrays = {"users": users, "items": items, "n_users": columns.n_users, "n_items": columns.n_items}
    if validation_items is not None:
        arrays["held_out"] = validation_items.int().numpy()
    np.savez(path, **arrays)
    return len(users)
