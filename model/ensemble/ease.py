"""A closed-form item-item model (EASE, Steck 2019), factorised into user and item factors.

A user's score for an item is the sum of the item's weights over the user's history. This is linear in the history, so
the best low-rank approximation of all scores is known, too: it comes from the leading eigenvectors of the scores'
items-by-items Gram matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from model.data.user_loader import UserBatch
from workflows.device.torch_device import torch_generator

MAX_ITEMS = 10_000  # item-item weights of 400 MB are still fast to compute

Blocks = Callable[[], Iterable[UserBatch]]
_USERS = 1024
_EXACT = 16  # items per factor up to which the decomposition is a whole one
_PASSES = 6  # of subspace iteration


def item_weights(products: Tensor, l2: float) -> Tensor:
    """The item-item weights, float32 [I, I], with a zero diagonal.

    Args:
        products: XᵀX of the unweighted histories, see `item_products`.
        l2: L2 penalty on the weights.
    """
    regular = products.clone()
    regular.diagonal().add_(l2)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(regular))
    weights = -inverse / inverse.diagonal()
    weights.fill_diagonal_(0.0)
    return weights


def item_products(blocks: Iterable[UserBatch], n_items: int, device: torch.device) -> Tensor:
    """XᵀX, float32 [I, I], of the histories X as interaction weights."""
    products = torch.zeros(n_items, n_items, device=device)
    for _, rows in histories(blocks, n_items):
        products.addmm_(rows.T, rows)
    return products


def histories(blocks: Iterable[UserBatch], n_items: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of users and their histories as dense rows of weights, float32 [B, n_items]."""
    for block in blocks:
        for index in torch.arange(len(block.users), device=block.users.device).split(_USERS):
            some = block.take(index)
            rows = torch.zeros(len(index), n_items, device=index.device)
            rows.index_put_((some.owners, some.items), some.weights, accumulate=True)
            yield some.users, rows


def factors(weights: Tensor, products: Tensor, blocks: Blocks, n_users: int, width: int) -> tuple[Tensor, Tensor]:
    """The best factors of the scores: users [n_users, width] and items [n_items, width].

    Args:
        weights: see `item_weights`.
        products: XᵀX of the scored histories, with their weights.
        blocks: those histories.
    """
    n_items, width_found = len(weights), min(width, len(weights))
    leading = _leading(weights, products, width_found)
    # An eigenvector's sign is arbitrary: the largest entry is made positive, so that libraries agree.
    leading *= leading.gather(0, leading.abs().argmax(0, keepdim=True)).sign()
    users = torch.zeros(n_users, width, device=weights.device)
    of_items = torch.nn.functional.pad(leading, (0, width - width_found))
    through = weights @ leading
    for ids, rows in histories(blocks(), n_items):
        users[ids, :width_found] = rows @ through
    # Balance the scale of both sides, as in trained factors.
    size = users.square().mean(0).sqrt().clamp(min=1e-12).sqrt()
    return users / size, of_items * size


def _leading(weights: Tensor, products: Tensor, width: int) -> Tensor:
    """The leading eigenvectors of the scores' Gram matrix, [I, width].

    Many more items than that need a whole decomposition's time for few of its vectors; subspace iteration finds those
    to float32's precision, in time that grows with the square of the number of items instead of its cube.
    """

    def applied(columns: Tensor) -> Tensor:
        return weights.T @ (products @ (weights @ columns))

    n_items, n_columns = len(weights), 2 * width
    if n_items <= _EXACT * width:
        return torch.linalg.eigh(weights.T @ products @ weights).eigenvectors[:, -width:].flip(1)
    start = torch.randn(n_items, n_columns, generator=torch_generator(0, torch.device("cpu"))).to(weights.device)
    basis = torch.linalg.qr(start).Q
    for _ in range(_PASSES):
        basis = torch.linalg.qr(applied(basis)).Q
    within = torch.linalg.eigh(basis.T @ applied(basis)).eigenvectors[:, -width:].flip(1)
    return basis @ within
