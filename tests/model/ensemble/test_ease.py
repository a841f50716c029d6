"""The item-item model against the textbook: a dense float64 inverse and the SVD of all scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from model.data.user_loader import UserBatch
from model.ensemble import ease
from model.ensemble.ease import factors, histories, item_products, item_weights

CPU = torch.device("cpu")
N_USERS, N_ITEMS = 60, 14


def interactions(users: list[int], seed: int, weighed: bool) -> UserBatch:
    """1 to 7 items per user; users with an even id have their last item twice."""
    g = torch.Generator().manual_seed(seed)
    own = [torch.randperm(N_ITEMS, generator=g)[: 1 + user % 7] for user in users]
    own = [torch.cat((items, items[-1:])) if user % 2 == 0 else items for user, items in zip(users, own, strict=True)]
    counts = torch.tensor([len(items) for items in own])
    n = int(counts.sum())
    weights = torch.rand(n, generator=g) + 0.5 if weighed else torch.ones(n)
    return UserBatch(torch.tensor(users), counts, torch.cat(own), weights)


def blocks(weighed: bool = False) -> list[UserBatch]:
    """Some users, unordered, in two blocks; the others have no interactions."""
    return [interactions(list(range(40, 3, -1)), 1, weighed), interactions(list(range(45, N_USERS)), 2, weighed)]


def dense(weighed: bool = False) -> np.ndarray:
    """The histories as a matrix, float64 [N_USERS, N_ITEMS]."""
    matrix = np.zeros((N_USERS, N_ITEMS))
    for block in blocks(weighed):
        for owner, item, weight in zip(block.owners, block.items, block.weights, strict=True):
            matrix[block.users[owner], item] += float(weight)
    return matrix


def textbook(matrix: np.ndarray, l2: float) -> np.ndarray:
    """B = I - P diag(1 / P_jj), with P = (XᵀX + l2 I)⁻¹: least squares with the diagonal constrained to zero."""
    inverse = np.linalg.inv(matrix.T @ matrix + l2 * np.eye(N_ITEMS))
    return np.eye(N_ITEMS) - inverse / np.diag(inverse)


def weights_of(l2: float) -> Tensor:
    return item_weights(item_products(blocks(), N_ITEMS, CPU), l2)


@pytest.mark.parametrize("l2", [0.1, 3.0, 1000.0])
def test_weights_match_the_textbook(l2: float) -> None:
    found = weights_of(l2)
    assert found.dtype is torch.float32
    assert (found.diagonal() == 0).all()
    np.testing.assert_allclose(found.numpy(), textbook(dense(), l2), rtol=1e-4, atol=1e-6)


def test_weights_are_optimal_with_a_zero_diagonal() -> None:
    # The textbook's own derivation: the gradient of |X - XB|² + l2 |B|² is zero off the diagonal.
    matrix, found = dense(), weights_of(3.0).double().numpy()
    gradient = -matrix.T @ (matrix - matrix @ found) + 3.0 * found
    off = ~np.eye(N_ITEMS, dtype=bool)
    assert np.abs(gradient[off]).max() < 1e-3 < np.abs(gradient[~off]).min()


@pytest.mark.parametrize("weighed", [False, True])
def test_histories_and_their_products(weighed: bool) -> None:
    matrix, users = dense(weighed), []
    for ids, rows in histories(blocks(weighed), N_ITEMS):
        np.testing.assert_allclose(rows.numpy(), matrix[ids.numpy()], rtol=1e-6)
        users += ids.tolist()
    assert sorted(users) == [*range(4, 41), *range(45, N_USERS)]
    products = item_products(blocks(weighed), N_ITEMS, CPU)
    np.testing.assert_allclose(products.numpy(), matrix.T @ matrix, rtol=1e-5)


def test_many_users_come_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = item_products(blocks(True), N_ITEMS, CPU)
    monkeypatch.setattr("model.ensemble.ease._USERS", 5)
    sizes = [len(ids) for ids, _ in histories(blocks(True), N_ITEMS)]
    assert sizes == [5] * 7 + [2] + [5] * 3
    torch.testing.assert_close(item_products(blocks(True), N_ITEMS, CPU), whole)


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("width", [1, 3, N_ITEMS - 1, N_ITEMS, N_ITEMS + 5])
def test_factors_are_optimal_for_their_width(width: int, weighed: bool) -> None:
    weights, matrix = weights_of(3.0), dense(weighed)
    products = item_products(blocks(weighed), N_ITEMS, CPU)
    users, items = factors(weights, products, lambda: blocks(weighed), N_USERS, width)
    assert (users.shape, items.shape) == ((N_USERS, width), (N_ITEMS, width))
    scores = matrix @ weights.double().numpy()
    left, values, right = np.linalg.svd(scores, full_matrices=False)
    best = (left[:, :width] * values[:width]) @ right[:width]
    np.testing.assert_allclose(users.double().numpy() @ items.double().numpy().T, best, atol=1e-4)
    if width >= N_ITEMS:
        np.testing.assert_allclose(best, scores, atol=1e-12)
        assert not users[:, N_ITEMS:].any()
        assert not items[:, N_ITEMS:].any()
    untouched = [*range(4), *range(41, 45)]
    assert not users[untouched].any()
    # Both sides of a factor have the same scale.
    sizes = [table[:, : min(width, N_ITEMS)].square().sum(0) for table in (users / N_USERS**0.5, items)]
    torch.testing.assert_close(sizes[0].clamp(min=1e-9), sizes[1].clamp(min=1e-9), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("width", [1, 3, 20])
def test_subspace_iteration_finds_the_leading_eigenvectors(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    g, n_items = torch.Generator().manual_seed(0), 90
    basis = torch.linalg.qr(torch.randn(n_items, n_items, generator=g)).Q
    scores = (torch.arange(1, n_items + 1) ** -1.0)[:, None] * basis.T  # singular values 1, 1/2, 1/3, ...
    weights = torch.eye(n_items) + 0.1 * torch.randn(n_items, n_items, generator=g)
    histories = scores.double() @ torch.linalg.inv(weights.double())
    monkeypatch.setattr(ease, "_EXACT", 0)
    found = ease._leading(weights, (histories.T @ histories).float(), width)
    torch.testing.assert_close(found.T @ found, torch.eye(width), atol=1e-5, rtol=0)
    # The right singular vectors of the scores are the columns of `basis`.
    torch.testing.assert_close((found.T @ basis[:, :width]).abs(), torch.eye(width), atol=1e-2, rtol=0)


def test_factors_do_not_depend_on_the_signs_of_eigenvectors(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, products = weights_of(3.0), item_products(blocks(), N_ITEMS, CPU)
    usual = factors(weights, products, blocks, N_USERS, 4)
    eigh = torch.linalg.eigh

    def other_signs(matrix: Tensor) -> torch.return_types.linalg_eigh:
        found = eigh(matrix)
        found.eigenvectors.mul_(torch.tensor([1.0, -1.0] * (N_ITEMS // 2)))
        return found

    monkeypatch.setattr(torch.linalg, "eigh", other_signs)
    for found, expected in zip(factors(weights, products, blocks, N_USERS, 4), usual, strict=True):
        assert torch.equal(found, expected)


def test_items_without_interactions_do_no_harm() -> None:
    few = [UserBatch(torch.tensor([2]), torch.tensor([3]), torch.tensor([1, 4, 5]), torch.ones(3))]
    products = item_products(few, N_ITEMS, CPU)
    users, items = factors(weights := item_weights(products, 0.5), products, lambda: few, N_USERS, 6)
    assert all(torch.isfinite(table).all() for table in (users, items, weights))
    scores = users @ items.T
    assert not scores[:, [0, 2, 3, *range(6, N_ITEMS)]].abs().gt(1e-5).any()
    assert (scores[2, [1, 4, 5]] > 0.1).all()
