"""The validation split against loops over each user's rows."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.data import validation_split as module
from model.data.dataset import Rows, open_train
from model.data.train_loader import SamplingConfig, TrainLoader
from model.data.validation_split import Validation, leave_one_out
from model.distributed.process_group import ProcessGroup
from preprocessing.spec.feature_spec import read_feature_spec
from workflows.common.errors import UserError

CPU = torch.device("cpu")
Row = tuple[int, int, float]
N_USERS, N_ITEMS = 6, 7
_NUMBERS = itertools.count()


def flat(parts: Iterable[list[Row]]) -> list[Row]:
    return list(itertools.chain.from_iterable(parts))


def items_of(rows: list[Row]) -> dict[int, list[int]]:
    """Distinct positive items of each user, in order of first occurrence."""
    found: dict[int, list[int]] = {}
    for user, item, label in rows:
        own = found.setdefault(user, [])
        if label > 0 and item not in own:
            own.append(item)
    return found


def series_of(validation: Validation) -> dict[int, tuple[int, ...]]:
    """Series of each user, positive first."""
    found: dict[int, tuple[int, ...]] = {}
    length = validation.series.length
    assert length is not None
    for users, items in validation.series.rows.only(("user", "item")).stream(length, CPU):
        assert len(users) == length
        (user,) = set(users.tolist())
        assert user not in found
        found[user] = tuple(items.tolist())
    return found


def check(validation: Validation, rows: list[Row], time_ordered: bool, negatives: int, n_items: int = N_ITEMS) -> None:
    """One item is held out of each eligible user; series hold it and items the user has not interacted with."""
    validation_items, series = validation.validation_items, series_of(validation)
    assert (validation_items.dtype, validation.series.length) == (torch.int32, 1 + negatives)
    own = items_of(rows)
    able = {user for user, items in own.items() if 1 < len(items) < n_items}
    assert {user for user, item in enumerate(validation_items.tolist()) if item != -1} == able == series.keys()
    for user, (positive, *drawn) in series.items():
        assert validation_items[user] == positive
        assert positive in ([own[user][-1]] if time_ordered else own[user])
        unseen = set(range(n_items)) - set(own[user])
        assert set(drawn) <= unseen
        assert len(drawn) == negatives
        assert len(set(drawn)) == min(negatives, len(unseen))


@st.composite
def folders(draw) -> list[list[Row]]:
    """Whole users in parts, in any order, with label-0 rows and duplicates; at least one user has two items."""
    users = draw(st.lists(st.integers(0, N_USERS - 1), min_size=1, unique=True))
    pairs = st.tuples(st.integers(0, N_ITEMS - 1), st.sampled_from([0.0, 0.5, 1.0]))
    blocks = [[(user, *pair) for pair in draw(st.lists(pairs, min_size=1, max_size=25))] for user in users]
    blocks[0] = [(users[0], 1, 1.0), (users[0], 5, 1.0)]
    cut = draw(st.integers(0, len(blocks)))
    return [[row for block in some for row in block] for some in (blocks[:cut], blocks[cut:])]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(folders(), st.booleans(), st.integers(1, 8), st.integers(0, 2**62))
def test_one_item_is_held_out_of_each_eligible_user(
    write_folder: Callable[..., Path], parts: list[list[Row]], time_ordered: bool, negatives: int, seed: int
) -> None:
    folder = write_folder(parts, N_USERS, N_ITEMS, name=f"folder{next(_NUMBERS)}")
    train = open_train(folder, read_feature_spec(folder), CPU)
    rows = flat(parts)
    found = leave_one_out(train, time_ordered, negatives, seed, CPU)
    check(found, rows, time_ordered, negatives)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_ROWS", 3)
        again = leave_one_out(train, time_ordered, negatives, seed, CPU)
        patch.setattr(module, "host_view", lambda _: None)  # torch's arrays, as on a GPU
        third = leave_one_out(train, time_ordered, negatives, seed, CPU)
    for other in (again, third):
        assert torch.equal(other.validation_items, found.validation_items)
        assert series_of(other) == series_of(found)


def test_the_last_item_is_held_out_if_rows_are_ordered_by_time(train_rows: Callable[..., Rows]) -> None:
    rows = [(0, 5, 1.0), (0, 2, 1.0), (0, 3, 1.0), (2, 6, 1.0), (2, 0, 1.0), (2, 4, 0.0), (4, 1, 1.0)]
    for seed in range(5):
        train = train_rows([rows], N_USERS, N_ITEMS, name=f"seed{seed}")
        found = leave_one_out(train, True, 3, seed, CPU)
        assert found.validation_items.tolist() == [3, -1, 0, -1, -1, -1]
        check(found, rows, True, 3)


def test_the_first_row_of_a_duplicate_pair_counts(train_rows: Callable[..., Rows]) -> None:
    train = train_rows([[(0, 5, 1.0), (0, 2, 1.0), (0, 5, 1.0), (1, 4, 1.0), (1, 4, 1.0)]], 2, N_ITEMS)
    assert leave_one_out(train, True, 2, 1, CPU).validation_items.tolist() == [2, -1]


def test_nothing_is_held_out_of_users_with_all_items_or_one(train_rows: Callable[..., Rows]) -> None:
    everything = [(0, item, 1.0) for item in range(N_ITEMS)]
    nearly = [(1, item, 1.0) for item in range(N_ITEMS - 1)]
    rows = [*everything, *nearly, (2, 3, 1.0), (2, 4, 0.0), (3, 3, 0.0)]
    train = train_rows([rows], N_USERS, N_ITEMS)
    for time_ordered in (True, False):
        found = leave_one_out(train, time_ordered, 4, 1, CPU)
        check(found, rows, time_ordered, 4)
        assert (found.validation_items >= 0).tolist() == [False, True, False, False, False, False]
        (_, *drawn) = series_of(found)[1]
        assert drawn == [N_ITEMS - 1] * 4  # the only unseen item


@pytest.mark.parametrize(
    "rows",
    [
        [(0, 3, 1.0), (1, 3, 1.0), (5, 0, 1.0)],
        [(0, 3, 1.0), (0, 3, 1.0), (1, 2, 1.0), (1, 4, 0.0)],
        [(0, 3, 0.0), (0, 4, 0.0)],
        [(0, item, 1.0) for item in range(N_ITEMS)],
    ],
    ids=["one row each", "repeats and label 0", "no positive", "all items"],
)
def test_a_split_without_eligible_users_is_rejected(train_rows: Callable[..., Rows], rows: list[Row]) -> None:
    train = train_rows([rows], N_USERS, N_ITEMS)
    for time_ordered in (True, False):
        with pytest.raises(UserError, match="--validation leave-one-out: no user has two"):
            leave_one_out(train, time_ordered, 3, 1, CPU)


def even_users(n_users: int, per_user: int, n_items: int) -> list[list[Row]]:
    """Rows of each user: distinct items in random order."""
    rng = np.random.default_rng(n_users)
    return [
        [(user, int(item), 1.0) for item in rng.choice(n_items, per_user, replace=False)] for user in range(n_users)
    ]


def test_draws_are_uniform(train_rows: Callable[..., Rows], assert_uniform: Callable) -> None:
    users = even_users(2000, 5, 12)
    found = leave_one_out(train_rows([flat(users)], 2000, 12), False, 3, 1, CPU)
    validation_items = found.validation_items.numpy()
    assert_uniform(np.bincount(validation_items, minlength=12))
    items = np.array([[item for _, item, _ in own] for own in users])
    places = np.nonzero(items == validation_items[:, None])[1]
    assert_uniform(np.bincount(places, minlength=5))  # among the user's rows
    assert_uniform(np.bincount((items < validation_items[:, None]).sum(axis=1), minlength=5))  # among the user's items
    drawn = [item for _, *negatives in series_of(found).values() for item in negatives]
    assert_uniform(np.bincount(drawn, minlength=12))


def test_draws_are_reproducible_by_seed_and_differ_between_seeds(train_rows: Callable[..., Rows]) -> None:
    train = train_rows([flat(even_users(200, 6, 15))], 200, 15)
    first, again, other = (leave_one_out(train, False, 4, seed, CPU) for seed in (1, 1, 2))
    assert torch.equal(first.validation_items, again.validation_items)
    assert series_of(first) == series_of(again)
    assert 0.05 < (first.validation_items == other.validation_items).float().mean() < 0.35  # one in six by chance
    ordered = [series_of(leave_one_out(train, True, 4, seed, CPU)) for seed in (1, 2)]
    assert all(ordered[0][user][0] == ordered[1][user][0] for user in range(200))
    assert np.mean([ordered[0][user] == ordered[1][user] for user in range(200)]) < 0.1


@pytest.mark.parametrize("time_ordered", [True, False])
def test_the_split_does_not_depend_on_partitions(train_rows: Callable[..., Rows], time_ordered: bool) -> None:
    users = even_users(30, 4, 11)
    layouts = [[flat(users)], users, [flat(users[20:]), [], flat(users[:20])]]
    if not time_ordered:
        layouts.append([flat(own[::-1] for own in users)])
    found = [
        leave_one_out(train_rows(parts, 30, 11, name=f"layout{place}"), time_ordered, 5, 3, CPU)
        for place, parts in enumerate(layouts)
    ]
    for other in found[1:]:
        assert torch.equal(other.validation_items, found[0].validation_items)
        assert series_of(other) == series_of(found[0])


@pytest.mark.parametrize("time_ordered", [True, False])
def test_large_and_small_blocks_hold_out_the_same_items(
    train_rows: Callable[..., Rows], monkeypatch: pytest.MonkeyPatch, time_ordered: bool
) -> None:
    users = even_users(400, 100, 150)  # enough rows for the compiled loops
    train = train_rows([flat(users)], 400, 150)
    whole = leave_one_out(train, time_ordered, 20, 3, CPU)
    check(whole, flat(users), time_ordered, 20, 150)
    monkeypatch.setattr(module, "BLOCK_ROWS", 1000)
    in_pieces = leave_one_out(train, time_ordered, 20, 3, CPU)
    assert torch.equal(in_pieces.validation_items, whole.validation_items)
    assert series_of(in_pieces) == series_of(whole)


@pytest.mark.parametrize("time_ordered", [True, False])
def test_series_have_the_side_features_of_the_held_out_row(
    write_frames: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, time_ordered: bool
) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 20)
    # The hour identifies the row, the age the user; the last row of each user has label 0.
    users = np.repeat([3, 0, 5, 1, 4], 6)
    rng = np.random.default_rng(3)
    items = np.concatenate([rng.permutation(9)[:6] for _ in range(5)])
    columns = {"user": users, "item": items, "label": 1.0, "hour": np.arange(30), "age": users / 10}
    frame = pd.DataFrame(columns)
    frame.loc[frame["hour"] % 6 == 5, "label"] = 0.0
    channels = {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"], "user_context": ["hour", "age"]}
    sizes = {"user": 6, "item": 9, "hour": 30}
    folder = write_frames({"train": frame}, channels, sizes, time_ordered=True)
    train = open_train(folder, read_feature_spec(folder), CPU)
    found = leave_one_out(train, time_ordered, 2, 1, CPU)
    assert found.series.rows.names == ("user", "item", "hour", "age")
    blocks = list(found.series.rows.stream(3, CPU))
    assert [column.dtype for column in blocks[0]] == [torch.int32, torch.int32, torch.int32, torch.float32]
    assert sorted(int(block[0][0]) for block in blocks) == [0, 1, 3, 4, 5]
    for of_user, of_items, hours, ages in blocks:
        user, hour = int(of_user[0]), int(hours[0])
        assert (users[hour], items[hour]) == (user, of_items[0])
        assert frame["label"][hour] == 1.0
        assert hours.tolist() == [hour] * 3
        torch.testing.assert_close(ages, torch.full((3,), user / 10))
        assert hour % 6 == 4 or not time_ordered


def test_the_series_uses_the_first_row_of_a_repeated_pair(write_frames: Callable[..., Path]) -> None:
    frame = pd.DataFrame({"user": 0, "item": [1, 2, 2, 1], "label": [1.0, 0.0, 1.0, 1.0], "hour": [0, 1, 2, 3]})
    channels = {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"], "user_context": ["hour"]}
    folder = write_frames({"train": frame}, channels, {"user": 1, "item": 5, "hour": 4}, time_ordered=True)
    found = leave_one_out(open_train(folder, read_feature_spec(folder), CPU), True, 3, 1, CPU)
    ((_, items, hours),) = found.series.rows.stream(10, CPU)
    assert items[0] == 2
    assert hours.tolist() == [2, 2, 2, 2]  # row 1 has label 0


def trained_on(train: Rows, validation_items: torch.Tensor, in_memory: bool, kind: str = "static") -> Counter:
    config = SamplingConfig(batch_size=7, per_positive=2, kind=kind, in_memory=in_memory, seed=1)
    found: Counter = Counter()
    for batch in TrainLoader(train, config, ProcessGroup(CPU), validation_items=validation_items).epoch(0):
        found.update(zip(*(column.tolist() for column in batch.columns), strict=True))
    return found


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(folders(), st.booleans(), st.booleans())
def test_all_rows_except_held_out_pairs_are_trained_on_once(
    write_folder: Callable[..., Path], parts: list[list[Row]], time_ordered: bool, in_memory: bool
) -> None:
    folder = write_folder(parts, N_USERS, N_ITEMS, name=f"folder{next(_NUMBERS)}")
    train = open_train(folder, read_feature_spec(folder), CPU)
    validation_items = leave_one_out(train, time_ordered, 3, 1, CPU).validation_items
    rows = flat(parts)
    kept = Counter(row for row in rows if not (row[2] > 0 and validation_items[row[0]] == row[1]))
    assert trained_on(train, validation_items, in_memory) == kept

    found = trained_on(train, validation_items, in_memory, kind="exact")
    assert kept <= found
    left = items_of(list(kept))
    drawn = found - kept
    assert all(label == 0.0 and item not in left[user] for user, item, label in drawn)
    positives = Counter(user for user, _, label in kept.elements() if label > 0)
    assert Counter(user for user, _, _ in drawn.elements()) == Counter(
        {user: 2 * times for user, times in positives.items() if len(left[user]) < N_ITEMS}
    )


@pytest.mark.parametrize("in_memory", [False, True], ids=["merlin", "memory"])
def test_duplicates_of_the_held_out_pair_leave_train_but_its_label_0_rows_stay(
    train_rows: Callable[..., Rows], in_memory: bool
) -> None:
    rows = [(0, 1, 1.0), (0, 2, 1.0), (0, 2, 0.5), (0, 2, 0.0), (0, 2, 1.0), (1, 2, 1.0), (1, 2, 1.0)]
    train = train_rows([rows], 2, N_ITEMS)
    validation_items = leave_one_out(train, True, 3, 1, CPU).validation_items
    assert validation_items.tolist() == [2, -1]
    expected = Counter([(0, 1, 1.0), (0, 2, 0.0), (1, 2, 1.0), (1, 2, 1.0)])
    assert trained_on(train, validation_items, in_memory) == expected
