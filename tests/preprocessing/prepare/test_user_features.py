"""Side features of users in a prepared folder are encoded, normalised, and matched to the right user."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from preprocessing.prepare.user_features import UserFeatures
from workflows.common.errors import UserError
from workflows.device.frames import frame_device

_TABLE = pa.table({"id": [30, 10, 20], "kind": ["b", "a", "b"], "age": [60, 20, 40]})


def _features(users: list[int], folder: Path, table: pa.Table = _TABLE) -> UserFeatures:
    scratch = folder / "scratch"
    scratch.mkdir()
    return UserFeatures(table, pa.array(users, pa.int32()), frame_device("cpu"), folder, scratch)


def test_values_are_in_encoded_user_order(tmp_path: Path) -> None:
    side = _features([10, 20, 30], tmp_path)
    assert side.columns["kind"].tolist() == [0, 1, 1]
    ages = np.array([20.0, 40.0, 60.0])
    np.testing.assert_allclose(side.columns["age"], (ages - 40.0) / ages.std(ddof=1), rtol=1e-6)
    assert side.channels == {"categorical_user_inputs": ["kind"], "numeric_user_inputs": ["age"]}
    assert (side.features["kind"].cardinality, side.features["age"].cardinality) == (2, None)
    assert (tmp_path / "categories" / "kind.parquet").is_file()
    assert (tmp_path / "workflow" / "normalize.json").is_file()


def test_a_user_without_features_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="lacks kind, age for some users"):
        _features([10, 40], tmp_path)
