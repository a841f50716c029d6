"""Owners of side features, against a plain count of the values of each user and item."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.data import side_features
from model.data.dataset import open_train
from model.data.side_features import resolve_side_features
from model.data.test_set import open_test_set
from preprocessing.spec.feature_columns import FeatureColumns, SideFeature
from preprocessing.spec.feature_spec import read_feature_spec
from workflows.common.errors import UserError

CPU = torch.device("cpu")
N_USERS, N_ITEMS = 4, 5
CHANNELS = {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"]}
_NUMBERS = itertools.count()


def settled(folder: Path) -> tuple[FeatureColumns, dict[str, torch.Tensor]]:
    spec = read_feature_spec(folder)
    test = open_test_set(folder, spec, CPU)
    columns, tables = resolve_side_features(open_train(folder, spec, CPU), test.rows if test is not None else None, CPU)
    names = [feature.name for feature in columns.item_side]
    return columns, dict(zip(names, tables, strict=True))


def frame(rows: list[tuple[int, int]], **side_columns: list[float]) -> pd.DataFrame:
    users, items = zip(*rows, strict=True)
    labels = [float(place % 2 == 0) for place in range(len(rows))]
    return pd.DataFrame({"user": users, "item": items, "label": labels, **side_columns})


def constant_within(frames: list[pd.DataFrame], owner: str, name: str) -> bool:
    return bool((pd.concat(frames).groupby(owner)[name].nunique() <= 1).all())


_ROW = st.tuples(st.integers(0, N_USERS - 1), st.integers(0, N_ITEMS - 1), st.integers(0, 1), st.integers(0, 1))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(_ROW, min_size=1, max_size=8),
    st.lists(_ROW, min_size=1, max_size=4),
    st.sampled_from(["user", "item", "row"]),
    st.booleans(),
    st.sampled_from([1, 3, 1 << 20]),
)
def test_the_owner_has_a_single_value(
    write_frames: Callable[..., Path],
    train: list[tuple[int, int, int, int]],
    test: list[tuple[int, int, int, int]],
    drawn_for: str,
    numeric: bool,
    block_rows: int,
) -> None:
    of_owner = {"user": lambda row: row[0] % 2, "item": lambda row: row[1] % 2, "row": lambda row: row[2]}[drawn_for]
    frames = []
    for rows in (train, [row for one in test for row in (one, one)]):
        values = [of_owner(row) + (0.25 if numeric else 0) for row in rows]
        frames.append(frame([row[:2] for row in rows], x=values))
    sizes = {"user": N_USERS, "item": N_ITEMS, **({} if numeric else {"x": 2})}
    folder = write_frames(
        {"train": frames[0], "test": frames[1]},
        {**CHANNELS, "inputs": ["x"]},
        sizes,
        name=f"folder{next(_NUMBERS)}",
        test_samples_per_series=2,
    )
    before, side_features.BLOCK_ROWS = side_features.BLOCK_ROWS, block_rows
    try:
        columns, tables = settled(folder)
    finally:
        side_features.BLOCK_ROWS = before
    x = SideFeature("x", None if numeric else 2)
    is_items = not constant_within(frames[:1], "user", "x") and constant_within(frames, "item", "x")
    assert (columns.item_side, columns.row_side) == (((x,), ()) if is_items else ((), (x,)))
    assert columns.either_side == ()
    if is_items:
        known = pd.concat(frames).groupby("item")["x"].first()
        unknown = 0.0 if numeric else 2
        assert tables["x"].tolist() == [known.get(item, unknown) for item in range(N_ITEMS)]
        assert tables["x"].dtype == (torch.float32 if numeric else torch.int32)


def test_declared_owners_are_kept_and_the_table_includes_test_items(write_frames: Callable[..., Path]) -> None:
    train = frame([(0, 1), (1, 2), (1, 3)], kind=[0, 1, 1], price=[0.5, -1.0, 2.0], mood=[0, 1, 0])
    test = frame([(0, 4), (0, 2)], kind=[2, 1], price=[9.0, -1.0], mood=[1, 1])
    channels = {**CHANNELS, "categorical_item_inputs": ["kind"], "item_numbers": ["price"], "user_mood": ["mood"]}
    sizes = {"user": N_USERS, "item": N_ITEMS, "kind": 3, "mood": 2}
    folder = write_frames({"train": train, "test": test}, channels, sizes, test_samples_per_series=2)
    columns, tables = settled(folder)
    assert columns.item_side == (SideFeature("kind", 3), SideFeature("price"))
    assert columns.row_side == (SideFeature("mood", 2),)  # values may vary between rows
    assert tables["kind"].tolist() == [3, 0, 1, 1, 2]
    assert tables["price"].tolist() == [0.0, 0.5, -1.0, 2.0, 9.0]


def test_an_item_with_two_values_is_rejected(write_frames: Callable[..., Path]) -> None:
    sizes = {"user": N_USERS, "item": N_ITEMS, "kind": 7}
    channels = {**CHANNELS, "categorical_item_inputs": ["kind"]}
    rows, same, other = [(0, 1), (1, 2), (2, 2)], [4, 5, 5], [4, 5, 6]
    within = write_frames({"train": frame(rows, kind=other)}, channels, sizes, name="within")
    across = {"train": frame(rows, kind=same), "test": frame([(0, 3), (0, 2)], kind=[4, 6])}
    between = write_frames(across, channels, sizes, name="between", test_samples_per_series=2)
    for folder in (within, between):
        with pytest.raises(UserError, match=r"'kind'.* item 2 has both (5 and 6|6 and 5)"):
            settled(folder)


def test_test_rows_may_lack_item_features_but_not_row_features(write_frames: Callable[..., Path]) -> None:
    rows, test = [(0, 1), (0, 2), (1, 2), (1, 1)], frame([(0, 3), (0, 4)])
    sizes = {"user": N_USERS, "item": N_ITEMS}
    values = {"items": [7.0, 8.0, 8.0, 7.0], "rows": [1.0, 2.0, 3.0, 4.0]}
    folders = {}
    for name, column in values.items():
        frames = {"train": frame(rows, x=column), "test": test}
        channels = {**CHANNELS, "numeric_inputs": ["x"]}
        folders[name] = write_frames(frames, channels, sizes, name=name, test_samples_per_series=2)
    assert settled(folders["items"])[1]["x"].tolist() == [0.0, 7.0, 8.0, 0.0, 0.0]
    with pytest.raises(UserError, match=r"source_spec\.test has no feature x"):
        settled(folders["rows"])


def test_without_side_features_nothing_is_read(monkeypatch: pytest.MonkeyPatch, train_rows: Callable) -> None:
    rows = train_rows([[(0, 1, 1.0)]], N_USERS, N_ITEMS)
    monkeypatch.setattr(type(rows), "stream", None)
    assert resolve_side_features(rows, None, CPU) == (rows.columns, ())


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_non_finite_numbers_are_rejected(write_frames: Callable[..., Path], bad: float) -> None:
    train = frame([(0, 1), (1, 2)], x=[0.5, bad])
    sizes = {"user": N_USERS, "item": N_ITEMS}
    folder = write_frames({"train": train}, {**CHANNELS, "numeric_inputs": ["x"]}, sizes, time_ordered=True)
    with pytest.raises(UserError, match=r"'x' (holds (nan|inf), expected a finite 32-bit|has 1 empty)"):
        settled(folder)


def test_categories_outside_their_cardinality_are_rejected(write_frames: Callable[..., Path]) -> None:
    sizes = {"user": N_USERS, "item": N_ITEMS, "kind": 2}
    channels = {**CHANNELS, "categorical_item_inputs": ["kind"]}
    folder = write_frames({"train": frame([(0, 1), (1, 2)], kind=[0, 2])}, channels, sizes)
    with pytest.raises(UserError, match=r"'kind' holds 2, expected an id 0 \.\. 1; correct its cardinality"):
        settled(folder)
