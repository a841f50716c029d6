"""An item-item model in closed form (EASE, Steck 2019), as factors of users and items.

A user's score for an item is the sum of the item's weights for what the user has interacted with. That is linear in the
history, so that the best approximation of all scores by a product of narrow factors is known, too: it comes from the
leading eigenvectors of the scores' own items-by-items products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from model.users import UserBatch

MAX_ITEMS = 10_000  # whose weights for each other, 400 MB, are still quickly worked out

Blocks = Callable[[], Iterable[UserBatch]]
_USERS = 1024


def item_weights(products: Tensor, l2: float) -> Tensor:
    """The weights of all items for each other, float32 [I, I]: none for an item itself.

    Args:
        products: of the histories without weights, see `item_products`.
        l2: the penalty of the squared weights.
    """
    regular = products.clone()
    regular.diagonal().add_(l2)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(regular))
    weights = -inverse / inverse.diagonal()
    weights.fill_diagonal_(0.0)
    return weights


def item_products(blocks: Iterable[UserBatch], n_items: int, device: torch.device) -> Tensor:
    """XᵀX of the histories X, float32 [I, I]; by the weights of the interactions."""
    products = torch.zeros(n_items, n_items, device=device)
    for _, rows in histories(blocks, n_items):
        products.addmm_(rows.T, rows)
    return products


def histories(blocks: Iterable[UserBatch], n_items: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Users, and their histories as rows of weights, float32 [B, n_items], some at a time."""
    for block in blocks:
        for which in torch.arange(len(block.users), device=block.users.device).split(_USERS):
            some = block.take(which)
            rows = torch.zeros(len(which), n_items, device=which.device)
            rows.index_put_((some.owners, some.items), some.weights, accumulate=True)
            yield some.users, rows


def factors(weights: Tensor, products: Tensor, blocks: Blocks, n_users: int, width: int) -> tuple[Tensor, Tensor]:
    """The best factors of the scores: of users [n_users, width], and of items [n_items, width].

    Args:
        weights: see `item_weights`.
        products: of the histories that are scored, by their weights.
        blocks: those histories.
    """
    n_items, width_found = len(weights), min(width, len(weights))
    leading = torch.linalg.eigh(weights.T @ products @ weights).eigenvectors[:, -width_found:].flip(1)
    # An eigenvector's sign is arbitrary: the largest entry is made positive, so that libraries agree.
    leading *= leading.gather(0, leading.abs().argmax(0, keepdim=True)).sign()
    users = torch.zeros(n_users, width, device=weights.device)
    of_items = torch.nn.functional.pad(leading, (0, width - width_found))
    through = weights @ leading
    for ids, rows in histories(blocks(), n_items):
        users[ids, :width_found] = rows @ through
    # Alike in size on both sides, as trained factors are.
    size = users.square().mean(0).sqrt().clamp(min=1e-12).sqrt()
    return users / size, of_items * size
