"""Items by user against plain dicts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.data import user_items as module
from model.data.dataset import Rows, open_train
from model.data.user_items import UserItems, take_lists
from preprocessing.spec.feature_spec import read_feature_spec

CPU = torch.device("cpu")
Row = tuple[int, int, float]
N_USERS, N_ITEMS = 7, 9
_NUMBERS = itertools.count()


def brute(parts: list[list[Row]]) -> dict[int, list[int]]:
    """Train positives by user, ascending."""
    found: dict[int, list[int]] = {user: [] for user in range(N_USERS)}
    for user, item, label in itertools.chain(*parts):
        if label > 0:
            found[user].append(item)
    return {user: sorted(items) for user, items in found.items()}


def check(seen: UserItems, expected: dict[int, list[int]]) -> None:
    assert (seen.starts.dtype, seen.items.dtype) == (torch.int64, torch.int32)
    assert seen.starts.shape == (N_USERS + 1,)
    bounds = itertools.pairwise(seen.starts.tolist())
    assert {user: sorted(seen.items[a:b].tolist()) for user, (a, b) in enumerate(bounds)} == expected
    assert len(seen.items) == sum(map(len, expected.values()))


def check_users(seen: UserItems, expected: dict[int, list[int]], users: torch.Tensor) -> None:
    owners, items = seen.pairs(users)
    assert owners.dtype == items.dtype == torch.int64
    found: list[list[int]] = [[] for _ in users]
    for owner, item in zip(owners.tolist(), items.tolist(), strict=True):
        found[owner].append(item)
    assert [sorted(own) for own in found] == [expected[user] for user in users.tolist()]


@st.composite
def folders(draw) -> list[list[Row]]:
    """Whole users in parts, in any order, with label-0 rows and duplicates."""
    users = draw(st.lists(st.integers(0, N_USERS - 1), min_size=1, unique=True))
    pairs = st.tuples(st.integers(0, N_ITEMS - 1), st.sampled_from([0.0, 0.5, 1.0]))
    blocks = [[(user, *pair) for pair in draw(st.lists(pairs, min_size=1, max_size=12))] for user in users]
    cut = draw(st.integers(0, len(blocks)))
    return [[row for block in some for row in block] for some in (blocks[:cut], blocks[cut:])]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(folders(), st.lists(st.integers(0, N_USERS - 1), max_size=10), st.integers(1, 5))
def test_seen_matches_a_loop_over_the_rows(
    write_folder: Callable[..., Path], parts: list[list[Row]], users: list[int], block_rows: int
) -> None:
    folder = write_folder(parts, N_USERS, N_ITEMS, name=f"folder{next(_NUMBERS)}")
    rows, expected = open_train(folder, read_feature_spec(folder), CPU), brute(parts)
    with pytest.MonkeyPatch.context() as patch:
        for rows_at_a_time in (module.BLOCK_ROWS, block_rows):
            patch.setattr(module, "BLOCK_ROWS", rows_at_a_time)
            seen = UserItems.from_rows(rows, CPU)
            check(seen, expected)
            for dtype in (torch.int32, torch.int64):
                check_users(seen, expected, torch.tensor(users, dtype=dtype))


def test_users_may_be_in_any_part(train_rows: Callable[..., Rows]) -> None:
    parts = [[(4, 8, 1.0), (4, 0, 1.0), (5, 3, 1.0)], [], [(0, 2, 1.0), (3, 1, 1.0)], [(1, 7, 1.0)]]
    seen = UserItems.from_rows(train_rows(parts, N_USERS, N_ITEMS), CPU)
    assert seen.starts.tolist() == [0, 1, 2, 2, 3, 5, 6, 6]
    assert seen.items.tolist() == [2, 7, 1, 8, 0, 3]  # each user's in order


def test_label_0_rows_are_not_seen(train_rows: Callable[..., Rows]) -> None:
    rows = train_rows([[(1, 2, 0.0), (1, 3, 1.0), (1, 2, 0.0), (2, 5, 0.0)]], N_USERS, N_ITEMS)
    check(UserItems.from_rows(rows, CPU), brute([[(1, 3, 1.0)]]))
    nothing = train_rows([[(1, 2, 0.0)], [(0, 5, 0.0)]], N_USERS, N_ITEMS, name="nothing")
    check(UserItems.from_rows(nothing, CPU), brute([]))


def test_queried_users_may_repeat_be_unordered_or_empty(train_rows: Callable[..., Rows]) -> None:
    seen = UserItems.from_rows(
        train_rows([[(1, 2, 1.0), (1, 5, 1.0), (4, 0, 1.0), (4, 0, 1.0)]], N_USERS, N_ITEMS), CPU
    )
    owners, items = seen.pairs(torch.tensor([4, 6, 1, 0, 1]))
    assert owners.tolist() == [0, 0, 2, 2, 4, 4]
    assert items.tolist() == [0, 0, 2, 5, 2, 5]
    for users in ([], [6, 0, 2]):
        owners, items = seen.pairs(torch.tensor(users, dtype=torch.int64))
        assert (owners.tolist(), items.tolist()) == ([], [])


@pytest.mark.parametrize("kind", [np.asarray, torch.tensor])
def test_lists_can_be_selected_in_any_order(kind: Callable[..., Any]) -> None:
    starts, owners, elements = take_lists(kind([0, 2, 2, 5]), kind([2, 0, 1, 2]))
    assert starts.tolist() == [0, 3, 5, 5, 8]
    assert owners.tolist() == [0, 0, 0, 1, 1, 3, 3, 3]
    assert elements.tolist() == [2, 3, 4, 0, 1, 2, 3, 4]
