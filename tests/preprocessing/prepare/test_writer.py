from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cudf_stand_in import Frame, journey
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.prepare.writer import Writer, Written
from workflows.device.frames import FrameDevice, frame_device

_CPU = frame_device("cpu")
_TRAIN, _TEST = 0, 1


def _rows(rows: list[tuple[int, int, float, int]]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=["user", "item", "label", "split"])
    return frame.astype({"user": "int32", "item": "int32", "label": "float32", "split": "int8"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
    return tmp_path


def _writer(folder: Path, **options: Any) -> Writer:
    defaults: dict[str, Any] = {"series": 3, "n_users": 12, "n_items": 6, "train_negatives": 0, "user_features": {}}
    return Writer(folder, _CPU, **(defaults | options))


# User 1 has a series with a repeat, user 4 one interaction, user 5 two but no series (has seen all items).
_TRAIN_ROWS = [(1, 2, 1.0, _TRAIN), (1, 0, 1.0, _TRAIN), (4, 3, 1.0, _TRAIN), (5, 2, 1.0, _TRAIN), (5, 1, 1.0, _TRAIN)]
_TEST_ROWS = [(1, 5, 1.0, _TEST), (1, 4, 0.0, _TEST), (1, 4, 0.0, _TEST)]


def test_rows_and_counts_of_a_partition(folder: Path) -> None:
    written = _writer(folder)(_rows(_TRAIN_ROWS + _TEST_ROWS), 7)
    assert (written.index, written.train_file, written.test_file) == (
        7, "train/part-00007.parquet", "test/part-00007.parquet",
    )  # fmt: skip
    for name, expected in (("train", _TRAIN_ROWS), ("test", _TEST_ROWS)):
        table = pq.read_table(folder / name / "part-00007.parquet")
        assert table.schema.names == ["user", "item", "label"]
        assert table.schema.types == [pa.int32(), pa.int32(), pa.float32()]
        assert [tuple(row.values()) for row in table.to_pylist()] == [row[:3] for row in expected]
        assert [path.name for path in (folder / name).iterdir()] == ["part-00007.parquet"]  # no partial files
    counts = (written.train_positives, written.train_rows, written.test_series)
    assert counts == (5, 5, 1)
    assert (written.users_with_one_interaction, written.users_with_all_items) == (1, 1)
    assert written.series_with_repeated_negatives == 1
    assert written.user_counts.tolist() == [3, 1, 2]
    assert written.item_counts.tolist() == [1, 1, 2, 1, 0, 1]


def test_train_negatives_are_rows_but_not_interactions(folder: Path) -> None:
    rows = [(1, 2, 1.0, _TRAIN), (1, 4, 0.0, _TRAIN), (1, 0, 1.0, _TRAIN), (1, 4, 0.0, _TRAIN)]
    series = [(1, 3, 1.0, _TEST), (1, 3, 0.0, _TEST), (1, 4, 0.0, _TEST)]  # uniform negatives may equal the positive
    written = _writer(folder, train_negatives=1)(_rows(rows + series), 0)
    assert (written.train_positives, written.train_rows, written.series_with_repeated_negatives) == (2, 4, 0)
    assert written.user_counts.tolist() == [3]
    assert written.item_counts.tolist() == [1, 0, 1, 1, 0, 0]


def test_no_file_is_written_without_rows(folder: Path) -> None:
    for rows in ([], _TRAIN_ROWS[2:3]):
        written = _writer(folder)(_rows(rows), 0)
        assert written.test_file is None
        assert (written.train_file is None) == (not rows)
    assert not list((folder / "test").iterdir())


def test_user_side_features_are_added_to_each_row(folder: Path) -> None:
    ages = np.array([0.5, 1.5, 2.5, 3.5, 4.5, 5.5], dtype=np.float32)
    _writer(folder, user_features={"age": ages})(_rows(_TRAIN_ROWS + _TEST_ROWS), 0)
    for name, expected in (("train", [1.5, 1.5, 4.5, 5.5, 5.5]), ("test", [1.5] * 3)):
        assert pq.read_table(folder / name / "part-00000.parquet")["age"].to_pylist() == expected


@given(
    counts=st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=6),
    series=st.integers(1, 4),
    negatives=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_a_gpu_counts_what_the_cpu_counts(
    fresh: Callable[[], Path], counts: list[tuple[int, bool]], series: int, negatives: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = []
    for user, (positives, _) in enumerate(counts):
        for _ in range(positives):
            labels = [1.0] + [0.0] * int(rng.integers(0, 2) * negatives)
            rows += [(2 * user, int(rng.integers(0, 6)), label, _TRAIN) for label in labels]
    for user, (_, tested) in enumerate(counts):
        labels = [1.0] + [0.0] * (series - 1)
        rows += [(2 * user, int(rng.integers(0, 6)), label, _TEST) for label in labels] if tested else []
    folders = [fresh(), fresh()]
    for folder in folders:
        for name in ("train", "test"):
            (folder / name).mkdir()
    options = {"series": series, "train_negatives": negatives}
    ages = {"age": np.arange(12, dtype=np.float32) / 4}
    on_cpu = _writer(folders[0], user_features=ages, **options)(_rows(rows), 3)
    with pytest.MonkeyPatch.context() as patched:
        journey(patched, {"writer._from_gpu", "writer.write"})
        on_gpu = replace(_writer(folders[1], user_features=ages, **options), device=FrameDevice(on_cpu=False))(
            Frame.of(_rows(rows)), 3
        )
    for field in fields(Written):
        np.testing.assert_array_equal(getattr(on_gpu, field.name), getattr(on_cpu, field.name), field.name)
    for name in (on_cpu.train_file, on_cpu.test_file):
        if name is not None:
            assert pq.read_table(folders[1] / name).to_pydict() == pq.read_table(folders[0] / name).to_pydict()
