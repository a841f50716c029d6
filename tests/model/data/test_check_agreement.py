"""`python -m preprocessing --check` reports an error for exactly those folders that training refuses."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.data.dataset import open_train
from model.data.side_features import resolve_side_features
from model.data.test_set import TestSet, open_test_set
from preprocessing.check.check import check_folder
from preprocessing.spec.feature_spec import read_feature_spec
from workflows.common.errors import UserError

CPU = torch.device("cpu")
CHANNELS = {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"]}
_NUMBERS = itertools.count()


def opened(folder: Path) -> TestSet:
    """What `train.py --eval full` does with the data before training."""
    spec = read_feature_spec(folder)
    test = open_test_set(folder, spec, CPU, positives_alone=True)
    assert test is not None
    train = open_train(folder, spec, CPU)
    resolve_side_features(train, test.rows, CPU)
    for rows in (train, test.rows):
        list(rows.stream(1 << 20, CPU))
    return test


def agreed(folder: Path) -> TestSet | None:
    """The test set, or None if both refuse the folder for a common reason."""
    findings = [f for f in check_folder(folder, "feature_spec.yaml") if "also positives in train" not in f.what]
    errors = [finding.what for finding in findings if finding.severity == "error"]
    if errors:
        with pytest.raises(UserError) as refused:
            opened(folder)
        # The item of the example may differ.
        assert any(what.split(", but item")[0] in str(refused.value) for what in errors)
        return None
    test = opened(folder)
    where = "metadata.test_samples_per_series"
    assert [finding.what for finding in findings if finding.where == where] == ([test.note] if test.note else [])
    return test


@st.composite
def folders(draw: st.DrawFn) -> tuple[dict[str, pd.DataFrame], dict[str, list[str]], dict[str, int]]:
    """Frames, channels and metadata: series or near-series, and a side feature of the item, the user or the row."""
    length, users = draw(st.integers(1, 4)), draw(st.lists(st.integers(0, 3), min_size=1, max_size=4))
    rows = [[user, float(place == 0)] for user in users for place in range(length)]
    if draw(st.booleans()):
        place = draw(st.integers(0, len(rows) - 1))
        rows[place] = [draw(st.integers(0, 3)), draw(st.sampled_from([0.0, 1e-60, 0.5, 1.0]))]
    rows = rows[: len(rows) - draw(st.integers(0, 1))] or rows
    test = pd.DataFrame(rows, columns=["user", "label"])
    train = pd.DataFrame({"user": [0, 0, 1, 2, 3], "label": 1.0})
    owner = draw(st.sampled_from(["item", "user", "row"]))
    for frame in (train, test):
        frame["item"] = draw(st.lists(st.integers(0, 4), min_size=len(frame), max_size=len(frame)))
        values = draw(st.lists(st.integers(0, 2), min_size=len(frame), max_size=len(frame)))
        frame["x"] = (pd.Series(values) if owner == "row" else frame[owner]) + 0.5
    if draw(st.booleans()):
        test["x"] += draw(st.sampled_from([0.0, 1e-12, 1.0]))  # the second is lost in 32 bits
    absent = draw(st.sets(st.sampled_from(["label", "x"])))
    declared = draw(st.none() | st.just(length) | st.integers(1, 4))
    channel = draw(st.sampled_from(["item_numbers", "user_numbers", "numeric_inputs"]))
    metadata = {} if declared is None else {"test_samples_per_series": declared}
    return {"train": train, "test": test.drop(columns=list(absent))}, {**CHANNELS, channel: ["x"]}, metadata


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(folders())
def test_the_check_and_training_agree(write_frames: Callable[..., Path], folder: Any) -> None:
    frames, channels, metadata = folder
    sizes = {"user": 4, "item": 5}
    written = write_frames(frames, channels, sizes, name=f"folder{next(_NUMBERS)}", **metadata)
    test = agreed(written)
    if test is not None and metadata:
        assert test.length == metadata["test_samples_per_series"]


def columns() -> dict[str, Any]:
    return {
        "user": pa.array([0, 0, 1, 1], pa.int64()),
        "item": pa.array([0, 1, 0, 2], pa.int64()),
        "label": pa.array([1.0, 0.0, 1.0, 0.0]),
        "x": pa.array([0.5, 1.0, 0.5, 1.0]),
    }


@pytest.mark.parametrize("mapping", ["train", "test"])
@pytest.mark.parametrize(
    ("name", "values", "valid"),
    [
        ("user", pa.array([0.0, 0.0, 1.0, 1.0]), True),
        ("user", pa.array([False, False, True, True]), True),
        ("user", pa.array([0, 0, 1, 2]), False),
        ("item", pa.array([0, 1, 0, -1]), False),
        ("item", pa.array([0, 1, 0, 1.5]), False),
        ("item", pa.array([0, 1, 0, None], pa.int64()), False),
        ("item", pa.array([0, 1, 0, 2**31], pa.int64()), False),
        ("label", pa.array([True, False, True, False]), True),
        ("label", pa.array([1, 0, 1, 0]).dictionary_encode(), True),
        ("label", pa.array(["1", "0", "1", "0"]), False),
        ("label", pa.array([1.0, 0.0, 2.0, 0.0]), False),
        ("label", pa.array([1.0, float("nan"), 1.0, 0.0]), False),
        ("x", pa.array(["0.5", "1", "0.5", "1"]), False),
        ("x", pa.array([0.5, 1.0, 1e39, 1.0]), False),
        ("x", pa.array([0.5, 1.0, float("-inf"), 1.0]), False),
    ],
)
def test_the_check_and_training_accept_the_same_values(
    tmp_path: Path, mapping: str, name: str, values: Any, valid: bool
) -> None:
    sources = {}
    for each in ("train", "test"):
        table = pa.table(columns() | ({name: values} if each == mapping else {}))
        pq.write_table(table, tmp_path / f"{each}.parquet")
        sources[each] = [{"type": "parquet", "features": table.column_names, "files": [f"{each}.parquet"]}]
    features: dict[str, Any] = {"user": {"cardinality": 2}, "item": {"cardinality": 3}, "label": {}, "x": {}}
    channels = {**CHANNELS, "row_user_numbers": ["x"]}
    spec = {
        "channel_spec": channels,
        "feature_spec": features,
        "metadata": {"test_samples_per_series": 2},
        "source_spec": sources,
    }
    (tmp_path / "feature_spec.yaml").write_text(yaml.safe_dump(spec))
    findings = check_folder(tmp_path, "feature_spec.yaml")
    errors = [f for f in findings if f.severity == "error" and "also positives in train" not in f.what]
    assert bool(errors) != valid
    if valid:
        assert opened(tmp_path).length == 2
    else:
        with pytest.raises(UserError, match=name):
            opened(tmp_path)
