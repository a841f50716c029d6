"""User data gathered from rows, against plain loops over the rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from model.recommend.user_data import PreparedInteractions, UserHistories
from preprocessing.spec.feature_columns import FeatureColumns
from preprocessing.spec.feature_spec import read_feature_spec

N_USERS, N_ITEMS = 9, 7
CHANNELS = {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"], "user_inputs": ["hour"]}


def rows(rng: np.random.Generator, n: int) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "user": rng.integers(N_USERS, size=n),
            "item": rng.integers(N_ITEMS, size=n),
            "label": rng.integers(2, size=n).astype(float),
            "hour": rng.integers(24, size=n),
        }
    )


def by_hand(train: pd.DataFrame, test: pd.DataFrame, user: int) -> tuple[list[int], int | None]:
    """A user's items, and the hour of the last row."""
    items, hour = [], None
    for frame in (train, test):
        own = frame[frame["user"] == user]
        items += own.loc[own["label"] > 0, "item"].tolist()
        if hour is None and len(own):
            hour = int(own["hour"].iloc[-1])
    return items, hour


def check(known: UserHistories, train: pd.DataFrame, test: pd.DataFrame) -> None:
    for place, user in enumerate(known.users.tolist()):
        items, hour = by_hand(train, test, user)
        assert known.history.take(np.array([place])).items.tolist() == items
        assert known.has_row[place] == (hour is not None)
        assert known.row_side[0][place] == (hour or 0)
    assert known.history.starts[-1] == len(known.history.items)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("in_order", [False, True])
def test_rows_are_gathered_by_user(
    write_frames: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, seed: int, in_order: bool
) -> None:
    rng = np.random.default_rng(seed)
    train, test = rows(rng, 40), rows(rng, 11)
    train = train[~train["user"].isin([2, 5])]  # these users have no train rows
    if in_order:
        train = train.sort_values("user", kind="stable", ignore_index=True)
    monkeypatch.setattr("model.data.partitions._PART_ROWS", 10)
    monkeypatch.setattr("model.recommend.user_data.BLOCK_ROWS", 4)
    sizes = {"user": N_USERS, "item": N_ITEMS, "hour": 24}
    folder = write_frames({"train": train, "test": test}, CHANNELS, sizes, time_ordered=in_order)
    spec = read_feature_spec(folder)
    interactions = PreparedInteractions(folder, spec, FeatureColumns.from_spec(spec))
    users = np.array([1, 2, 4, 8])
    check(some := interactions.of_users(users), train, test)
    check(some.take(users[[0, 3]]), train, test)
    parts = list(interactions.by_part())
    assert sorted(user for part in parts for user in part.users.tolist()) == list(range(N_USERS))
    assert len(parts) > 2 or in_order  # a file with one row group is one part
    for part in parts:
        check(part, train, test)
