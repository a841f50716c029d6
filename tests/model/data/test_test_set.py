"""Test rows without a declared series length: which rows form series, and which do not."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.data.test_set import TestSet, open_test_set
from preprocessing.spec.feature_spec import read_feature_spec
from workflows.common.errors import UserError

CPU = torch.device("cpu")
N_USERS, N_ITEMS = 4, 9
_NUMBERS = itertools.count()
Row = tuple[int, float]  # user, label


def opened(write_frames: Callable[..., Path], rows: list[Row], labelled: bool = True, **metadata: int) -> TestSet:
    frame = pd.DataFrame({"user": [u for u, _ in rows], "item": 1, "label": [label for _, label in rows]})
    channels = {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"]}
    frames = {"train": frame, "test": frame if labelled else frame.drop(columns="label")}
    sizes = {"user": N_USERS, "item": N_ITEMS}
    folder = write_frames(frames, channels, sizes, name=f"folder{next(_NUMBERS)}", **metadata)
    test = open_test_set(folder, read_feature_spec(folder), CPU)
    assert test is not None
    return test


def length_of(rows: list[Row], labelled: bool) -> int | None:
    """The definition, on lists; None if the rows do not form series."""
    runs = [list(run) for _, run in itertools.groupby(rows, key=lambda row: row[0])]
    length = len(runs[0])
    equal = length > 1 and all(len(run) == length for run in runs)
    first = [place == 0 for _ in runs for place in range(length)]
    return length if equal and (not labelled or [label > 0 for _, label in rows] == first) else None


@st.composite
def nearly_series(draw) -> list[Row]:
    """Series or near-series."""
    length, users = draw(st.integers(1, 4)), draw(st.lists(st.integers(0, N_USERS - 1), min_size=1, max_size=5))
    rows = [(user, float(place == 0)) for user in users for place in range(length)]
    for place in draw(st.lists(st.integers(0, len(rows) - 1), max_size=1)):
        rows[place] = draw(st.tuples(st.integers(0, N_USERS - 1), st.sampled_from([0.0, 1.0])))
    return rows


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nearly_series(), st.booleans())
def test_series_are_runs_of_equal_length_by_user(
    write_frames: Callable[..., Path], rows: list[Row], labelled: bool
) -> None:
    expected = length_of(rows, labelled)
    if expected is None and not labelled:
        with pytest.raises(UserError, match=r"test_samples_per_series is missing.* no label"):
            opened(write_frames, rows, labelled)
        return
    test = opened(write_frames, rows, labelled)
    assert test.length == expected
    if expected is not None:
        assert test.note == f"test series of {expected} rows, found in the data"
    else:
        assert test.note.startswith("AUC instead of HR and NDCG: metadata.test_samples_per_series is missing, and ")


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([(0, 1.0), (1, 0.0), (2, 0.0)], "only one test row"),
        ([(0, 1.0), (0, 0.0), (1, 1.0)], "the 3 test rows are not whole series of 2"),
        ([(0, 1.0), (0, 0.0), (1, 1.0), (2, 0.0)], "the test rows are not runs of equal length"),
        ([(0, 0.0), (0, 1.0)], "should begin with their only positive"),
        ([(0, 1.0), (0, 0.0), (1, 1.0), (1, 1.0)], "should begin with their only positive"),
    ],
)
def test_the_note_says_why_rows_are_not_series(write_frames: Callable[..., Path], rows: list[Row], why: str) -> None:
    assert why in opened(write_frames, rows).note


def test_a_declared_length_must_divide_the_rows_and_agree_with_the_labels(write_frames: Callable[..., Path]) -> None:
    rows = [(0, 1.0), (1, 0.0), (1, 0.0), (2, 1.0)]
    for labelled, length, told in (
        (True, 3, "the 4 test rows are not whole series of 3; correct the rows, or the length"),
        (False, 3, "the 4 test rows are not whole series of 3; correct the rows, or the length"),
        (True, 2, "the one that begins in row 3 does not.*; correct the rows, or the length"),
    ):
        with pytest.raises(UserError, match=told):
            opened(write_frames, rows, labelled, test_samples_per_series=length)
    assert opened(write_frames, rows, labelled=False, test_samples_per_series=2).length == 2  # users may differ
    assert opened(write_frames, rows[:2], test_samples_per_series=2).length == 2


def test_series_may_have_any_length(write_frames: Callable[..., Path]) -> None:
    for length in (2, 3, 8, 51):
        rows = [(user, float(place == 0)) for user in range(N_USERS) for place in range(length)]
        for metadata in ({}, {"test_samples_per_series": length}):
            assert opened(write_frames, rows, **metadata).length == length


def test_without_test_rows_the_result_is_none(write_frames: Callable[..., Path]) -> None:
    folder = write_frames(
        {"train": pd.DataFrame({"user": [0], "item": [0], "label": [1.0]})},
        {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"]},
        {"user": 1, "item": 1},
    )
    assert open_test_set(folder, read_feature_spec(folder), CPU) is None
    spec = yaml.safe_load((folder / "feature_spec.yaml").read_text())
    spec["source_spec"]["test"] = spec["source_spec"]["train"]
    spec["metadata"] = {"test_samples_per_series": 1}  # only the positive
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(spec))
    assert open_test_set(folder, read_feature_spec(folder), CPU) is None
