"""Partitions as dataframes on a GPU, on the stand-in for cuDF."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cudf_stand_in import Frame, journey

from model.data.partitions import FilePartitions, TablePartitions
from preprocessing.spec.feature_columns import FeatureColumns
from preprocessing.spec.feature_spec import Chunk, Feature, FeatureSpec
from workflows.common.errors import UserError
from workflows.device.frames import FrameDevice

NAMES = ("user", "item", "label")
FEATURES = {name: Feature(dtype="int32", cardinality=9) for name in NAMES[:2]} | {"label": Feature(dtype="float32")}
COLUMNS = FeatureColumns.from_spec(
    FeatureSpec(
        channel_spec={f"{name}_ch": [name] for name in NAMES},
        feature_spec=FEATURES,
        source_spec={"train": [Chunk(type="parquet", features=list(NAMES), files=["part.parquet"])]},
    )
)
GPU = FrameDevice(on_cpu=False)


def table(kinds: tuple[str, str, str] = ("int32", "int32", "float32")) -> pa.Table:
    columns = {"user": np.arange(9), "item": np.arange(9)[::-1], "label": np.ones(9)}
    return pa.table({name: columns[name].astype(kind) for name, kind in zip(NAMES, kinds, strict=True)})


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that cuDF has decoded; nothing may be copied to the host."""
    journey(monkeypatch, ())
    files: list[str] = []
    stock = GPU.frames.read_parquet

    def read_parquet(path: str, **options: Any) -> Any:
        files.append(Path(path).name)
        return stock(path, **options)

    monkeypatch.setattr(GPU.frames, "read_parquet", read_parquet)
    return files


def opened(rows: pa.Table, folder: Path) -> FilePartitions:
    pq.write_table(rows, folder / "part.parquet", row_group_size=2)
    return FilePartitions.open(COLUMNS, [folder / "part.parquet"], NAMES)


def test_a_part_is_decoded_on_the_gpu(tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.data.partitions._PART_ROWS", 4)
    parts = opened(table(), tmp_path)
    assert parts.n_parts > 1
    for index in range(parts.n_parts):
        found = parts.frame(index, NAMES[::-1], GPU)
        assert isinstance(found, Frame)
        assert list(found.columns) == list(NAMES[::-1])
        assert pa.Table.from_pandas(found.on_host(), preserve_index=False).equals(parts.load(index, NAMES[::-1]))
    assert decoded == ["part.parquet"] * parts.n_parts


@pytest.mark.parametrize("kinds", [("int64", "int32", "float32"), ("int32", "int32", "float64")])
def test_other_types_are_cast_on_the_host(kinds: tuple[str, str, str], tmp_path: Path, decoded: list[str]) -> None:
    found = opened(table(kinds), tmp_path).frame(0, NAMES, GPU)
    assert pa.Table.from_pandas(found.on_host(), preserve_index=False).equals(table())
    assert not decoded


def test_gaps_are_refused_as_on_the_cpu(tmp_path: Path, decoded: list[str]) -> None:
    gaps = table().set_column(1, "item", pa.array([None, *range(8)], pa.int32()))
    with pytest.raises(UserError, match="'item' has 1 empty values"):
        opened(gaps, tmp_path).frame(0, NAMES, GPU)
    assert decoded


def test_rows_in_memory_are_moved(decoded: list[str]) -> None:
    found = TablePartitions.from_table(COLUMNS, table()).frame(0, NAMES, GPU)
    assert isinstance(found, Frame)
    assert not decoded
