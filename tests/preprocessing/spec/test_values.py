from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocessing.spec.feature_spec import Chunk, Feature, FeatureSpec
from preprocessing.spec.values import Block, Kind, Wrong, iter_values, kinds_of


def _block(folder: Path, kind: Kind, column: pa.Array, cardinality: int | None = None) -> Block:
    pq.write_table(pa.table({"x": column}), folder / "a.parquet")
    spec = FeatureSpec(
        channel_spec={},
        feature_spec={"x": Feature()},
        source_spec={"train": [Chunk(type="parquet", features=["x"], files=["a.parquet"])]},
    )
    bounds = {} if cardinality is None else {"x": cardinality}
    (block,) = iter_values(folder, spec, "train", {"x": kind}, 100, bounds)
    return block


@pytest.mark.parametrize(
    "column",
    [
        pa.array([3, 0, 1], pa.int8()),
        pa.array([3, 0, 1], pa.uint64()),
        pa.array([3.0, 0.0, 1.0], pa.float32()),
        pa.array([3, 0, 1]).dictionary_encode(),
    ],
)
def test_ids_of_any_numeric_type(tmp_path: Path, column: pa.Array) -> None:
    block = _block(tmp_path, "id", column, 4)
    assert block.wrong == []
    assert block.columns["x"].dtype == np.int64
    assert block.columns["x"].tolist() == [3, 0, 1]


@pytest.mark.parametrize(
    ("kind", "column", "expected"),
    [
        ("id", pa.array([0, -1, 4, 3]), [("an id 0 .. 3", 2, 1, "-1")]),
        ("id", pa.array([0, 2**64 - 1], pa.uint64()), [("an id 0 .. 3", 1, 1, str(2**64 - 1))]),
        ("id", pa.array([0, None, None]), [("a value", 2, 1, "nothing")]),
        ("id", pa.array([0.5, math.nan, math.inf, 3.0]), [
            ("a value", 1, 1, "nan"), ("a whole number", 1, 0, "0.5"), ("an id 0 .. 3", 1, 2, "inf"),
        ]),
        ("id", pa.array(["a", "b"]), [("a whole number, not string", 2, 0, "a")]),
        ("id", pa.nulls(2), [("a value", 2, 0, "nothing")]),
        ("label", pa.array([0.0, 1.0, 5.0, -0.5, None]), [
            ("a value", 1, 4, "nothing"), ("a label 0 .. 1", 2, 2, "5.0"),
        ]),
        ("number", pa.array([1.0, -math.inf, math.nan]), [
            ("a value", 1, 2, "nan"), ("a finite 32-bit number", 1, 1, "-inf"),
        ]),
        ("number", pa.array(["1", "2"]), [("a number, not string", 2, 0, "1")]),
        ("text", pa.array(["a", None]), [("a value", 1, 1, "nothing")]),
    ],
)  # fmt: skip
def test_unusable_values_are_reported(
    tmp_path: Path, kind: Kind, column: pa.Array, expected: list[tuple[Any, ...]]
) -> None:
    block = _block(tmp_path, kind, column, 4)
    assert block.wrong == [Wrong("x", *wrong) for wrong in expected]
    if kind == "id":  # the replacements are still valid indices
        assert ((block.columns["x"] >= 0) & (block.columns["x"] < 4)).all()


def test_without_a_cardinality_ids_are_bounded_by_their_type(tmp_path: Path) -> None:
    assert _block(tmp_path, "id", pa.array([2**31 - 2])).wrong == []
    assert [w.rows for w in _block(tmp_path, "id", pa.array([2**31 - 1, 2**40])).wrong] == [2]


def test_row_numbers_continue_across_blocks(tmp_path: Path) -> None:
    for index, ids in enumerate(([0, 1, 2], [3, -7])):
        pq.write_table(pa.table({"x": ids}), tmp_path / f"{index}.parquet")
    chunk = Chunk(type="parquet", features=["x"], files=["0.parquet", "1.parquet"])
    spec = FeatureSpec(channel_spec={}, feature_spec={"x": Feature()}, source_spec={"train": [chunk]})
    blocks = list(iter_values(tmp_path, spec, "train", {"x": "id"}, 2))
    assert [(block.start, block.rows) for block in blocks] == [(0, 2), (2, 2), (4, 1)]
    assert [wrong.first for block in blocks for wrong in block.wrong] == [4]


def test_kinds_come_from_channels_cardinalities_and_data(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("0,M,1,20,1,x\n1,F,2,30,0,y\n")
    spec = FeatureSpec(
        channel_spec={
            "categorical_user_inputs": ["user", "gender"],
            "item_ch": ["item"],
            "numeric_inputs": ["age"],
            "label_ch": ["label"],
        },
        feature_spec={name: Feature() for name in ("user", "gender", "item", "age", "label", "unused")},
        source_spec={
            "train": [Chunk(type="csv", features=["user", "gender", "item", "age", "label", "unused"], files=["a.csv"])]
        },
    )
    kinds = {"user": "id", "gender": "text", "item": "id", "age": "number", "label": "label"}
    assert kinds_of(tmp_path, spec) == kinds
