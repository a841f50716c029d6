"""Batches of whole users: every positive occurs once, weighted by age, on any number of ranks."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.data import user_loader as users_module
from model.data.dataset import Rows, open_train
from model.data.user_loader import UserBatch, UserLoader, UserLoaderConfig
from model.distributed.process_group import ProcessGroup
from preprocessing.spec.feature_spec import read_feature_spec

CPU = torch.device("cpu")
ALONE = ProcessGroup(CPU)
Row = tuple[int, int, float]
N_ITEMS = 30
LOADERS = ("merlin", "memory")
_NUMBERS = itertools.count()


def config(n_users: int = 2, loader: str = "memory", **change: object) -> UserLoaderConfig:
    """A config with batches of `n_users` users."""
    values = {"batch_size": n_users * N_ITEMS, "seed": 1, "in_memory": loader == "memory"}
    return UserLoaderConfig(**{**values, **change})  # type: ignore[arg-type]


def flat(parts: Iterable[list[Row]]) -> list[Row]:
    return list(itertools.chain.from_iterable(parts))


def user_rows(sizes: list[int], first_user: int = 0) -> list[Row]:
    """Distinct positives: sizes[i] items of user first_user + i, with a label-0 item before the last."""
    rng = np.random.default_rng(first_user)
    rows = []
    for user, size in enumerate(sizes, first_user):
        items = rng.choice(N_ITEMS, size + 1, replace=False).tolist()
        own = [(user, item, 1.0) for item in items[:size]]
        rows += [*own[:-1], (user, items[-1], 0.0), *own[-1:]]
    return rows


def histories(rows: list[Row], validation_items: torch.Tensor | None = None) -> dict[int, list[int]]:
    """Positives of each user in order, excluding held-out items."""
    found: dict[int, list[int]] = {}
    for user, item, label in rows:
        if label > 0 and (validation_items is None or validation_items[user] != item):
            found.setdefault(user, []).append(item)
    return found


def of_batch(batch: UserBatch) -> dict[int, list[int]]:
    """User histories in a batch."""
    assert (batch.users.dtype, batch.counts.dtype, batch.items.dtype) == (torch.int64,) * 3
    assert batch.weights.dtype is torch.float32
    assert len(batch) == len(batch.items) == len(batch.weights) == int(batch.counts.sum())
    assert (batch.counts > 0).all()
    items = [part.tolist() for part in batch.items.split(batch.counts.tolist())]
    found = dict(zip(batch.users.tolist(), items, strict=True))
    assert len(found) == len(batch.users)
    assert batch.owners.tolist() == [place for place, own in enumerate(items) for _ in own]
    return found


def of_epoch(batches: Iterable[UserBatch]) -> dict[int, list[int]]:
    """User histories in all batches; no user may occur twice."""
    found: dict[int, list[int]] = {}
    for batch in batches:
        own = of_batch(batch)
        assert not own.keys() & found.keys()
        found |= own
    return found


FOLDERS = {
    "several parts": [user_rows([5, 9, 3]), user_rows([7, 2], 3), user_rows([29, 28, 1, 4], 5)],
    "one part": [user_rows([4, 11, 6, 1, 20])],
    "one row": [[(2, 3, 1.0)]],
    "empty parts": [[], user_rows([5, 6]), [], user_rows([8], 2), []],
    "users without a positive": [[(0, 1, 0.0), (0, 2, 0.0)], [(1, 1, 0.0), *user_rows([3, 4], 2)]],
    "the same item twice": [[(0, 7, 1.0), (0, 8, 1.0), (0, 7, 1.0), (1, 7, 1.0)]],
}


@pytest.mark.parametrize("parts", FOLDERS.values(), ids=FOLDERS.keys())
@pytest.mark.parametrize("loader", LOADERS)
def test_every_positive_occurs_once_and_nothing_else(
    train_rows: Callable[..., Rows], parts: list[list[Row]], loader: str
) -> None:
    rows = train_rows(parts, 12, N_ITEMS)
    for n_users in (1, 2, 100):
        batches = list(UserLoader(rows, config(n_users, loader=loader), ALONE).epoch(0))
        assert of_epoch(batches) == histories(flat(parts))
        assert max(len(batch.users) for batch in batches) <= n_users
        sizes = [len(batch.users) for batch in batches]
        assert max(sizes) - min(sizes) <= 1  # nearly equal, so that no step has only a few users


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(1, N_ITEMS - 1), max_size=4), min_size=1, max_size=4).filter(any),
    st.integers(1, 6),
    st.sampled_from(LOADERS),
    st.integers(1, 4),
    st.data(),
)
def test_ranks_share_the_users_and_skip_held_out_items(
    write_folder: Callable[..., Path],
    parts: list[list[int]],
    n_users: int,
    loader: str,
    size: int,
    data: st.DataObject,
) -> None:
    first = np.cumsum([0, *map(len, parts)]).tolist()
    content = [user_rows(sizes, start) for sizes, start in zip(parts, first, strict=False)]
    folder = write_folder(content, 16, N_ITEMS, name=f"folder{next(_NUMBERS)}")
    rows = open_train(folder, read_feature_spec(folder), CPU)
    validation_items = torch.full((16,), -1, dtype=torch.int32)
    for user, items in histories(flat(content)).items():
        if len(items) > 1:
            validation_items[user] = data.draw(st.sampled_from([-1, *items]))
    worlds = [ProcessGroup(CPU, rank, size) for rank in range(size)]
    ranks = [
        list(UserLoader(rows, config(n_users, loader=loader), world, validation_items).epoch(3)) for world in worlds
    ]
    assert of_epoch(itertools.chain.from_iterable(ranks)) == histories(flat(content), validation_items)
    if loader == "memory":  # each step has the same users as on one rank
        alone = UserLoader(rows, config(n_users, loader=loader), ALONE, validation_items).epoch(3)
        for whole, *shares in zip(alone, *ranks, strict=True):
            assert torch.equal(torch.cat([share.users for share in shares]), whole.users)


@pytest.mark.parametrize("loader", LOADERS)
def test_epochs_differ_and_are_reproducible_by_seed(train_rows: Callable[..., Rows], loader: str) -> None:
    rows = train_rows([user_rows([2] * 20), user_rows([3] * 20, 20)], 40, N_ITEMS)

    def order(number: int, seed: int, again: int = 0) -> list[list[int]]:
        batches = UserLoader(rows, config(5, loader=loader, seed=seed), ALONE)
        for earlier in range(again):
            list(batches.epoch(earlier))
        return [batch.users.tolist() for batch in batches.epoch(number)]

    first = order(0, seed=1)
    assert first == order(0, seed=1)
    assert first == order(0, seed=1, again=2)  # independent of earlier reads
    orders = [first, order(1, seed=1), order(0, seed=2)]
    assert len({tuple(map(tuple, each)) for each in orders}) == 3
    assert flat(first) != sorted(flat(first))  # type: ignore[arg-type]


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("loader", LOADERS)
def test_weights_are_powers_of_age(train_rows: Callable[..., Rows], loader: str, power: float) -> None:
    parts = FOLDERS["several parts"]
    validation_items = torch.full((12,), -1, dtype=torch.int32)
    kept = histories(flat(parts))
    for user in (0, 3, 8):  # the latest item; the one before it becomes the latest
        validation_items[user] = kept[user][-1]
    batches = UserLoader(train_rows(parts, 12, N_ITEMS), config(recency=power, loader=loader), ALONE, validation_items)
    for batch in batches.epoch(0):
        for user, weights in zip(batch.users.tolist(), batch.weights.split(batch.counts.tolist()), strict=True):
            ages = np.arange(len(histories(flat(parts), validation_items)[user]), 0, -1.0)
            assert weights.tolist() == pytest.approx((ages**-power / (ages**-power).sum() * len(ages)).tolist())


def test_users_that_continue_in_the_next_block_stay_whole(
    train_rows: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(users_module, "BLOCK_ROWS", 4)
    parts = FOLDERS["several parts"]
    rows = train_rows(parts, 12, N_ITEMS)
    blocks = list(UserLoader(rows, config(recency=1.0), ALONE).blocks())
    assert len(blocks) > 3
    assert of_epoch(blocks) == histories(flat(parts))
    joined = UserBatch.joined(blocks)
    assert of_batch(joined) == of_epoch(blocks)
    for block in blocks:
        sums = [float(part.sum()) for part in block.weights.split(block.counts.tolist())]
        assert sums == pytest.approx(block.counts.tolist())
    which = torch.tensor([3, 0, 2])
    taken = joined.take(which, int(joined.counts[which].sum()))
    assert of_batch(joined.take(which)) == of_batch(taken)
    assert taken.users.tolist() == joined.users[which].tolist()
    assert of_batch(taken) == {user: of_batch(joined)[user] for user in taken.users.tolist()}
    parts_of = joined.weights.split(joined.counts.tolist())
    assert torch.equal(taken.weights, torch.cat([parts_of[int(place)] for place in which]))
    assert len(joined.take(torch.zeros(0, dtype=torch.int64))) == 0
