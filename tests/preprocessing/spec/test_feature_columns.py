"""Feature roles and cardinalities, and casting of columns."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from preprocessing.spec.feature_columns import FeatureColumns, SideFeature
from preprocessing.spec.feature_spec import FeatureSpec
from workflows.common.errors import UserError

# The example channels from the reference's documentation.
EXAMPLE: dict[str, Any] = {
    "channel_spec": {
        "numeric_inputs": ["user_age"],
        "categorical_user_inputs": ["user_gender", "user_id"],
        "categorical_item_inputs": ["item_id"],
        "label_ch": ["label"],
    },
    "feature_spec": {
        "user_gender": {"cardinality": 2},
        "user_age": {},
        "user_id": {"cardinality": 9},
        "item_id": {"cardinality": 7},
        "label": {},
    },
    "metadata": {},
    "source_spec": {"train": [{"type": "csv", "features": ["label"], "files": ["train.csv"]}]},
}


def spec(cardinalities: dict[str, Any] | None = None, **channels: list[str]) -> FeatureSpec:
    features = {**EXAMPLE["feature_spec"]}
    for name, size in (cardinalities or {}).items():
        features[name] = {"cardinality": size}
    return FeatureSpec.model_validate(
        {**EXAMPLE, "feature_spec": features, "channel_spec": {**EXAMPLE["channel_spec"], **channels}}
    )


def test_the_example_gets_the_documented_roles() -> None:
    gender, age = SideFeature("user_gender", 2), SideFeature("user_age")
    columns = FeatureColumns.from_spec(spec())
    assert columns == FeatureColumns("user_id", "item_id", "label", 9, 7, (gender,), (), (age,))
    assert columns.side == (gender, age)
    assert columns.streamed == ("user_id", "item_id", "label", "user_gender")
    sizes = {name: columns.cardinality(name) for name in EXAMPLE["feature_spec"]}
    assert sizes == {"user_gender": 2, "user_age": None, "user_id": 9, "item_id": 7, "label": None}


def test_ids_can_be_named() -> None:
    columns = FeatureColumns.from_spec(spec(), "user_gender", "item_id")
    assert (columns.user, columns.n_users) == ("user_gender", 2)
    assert columns.row_side == (SideFeature("user_id", 9),)
    with pytest.raises(UserError, match="--user_feature nobody"):
        FeatureColumns.from_spec(spec(), "nobody")


@pytest.mark.parametrize("auto", [["user_gender"], ["item_id"], ["user_id", "item_id", "user_age"]])
def test_cardinality_auto_requires_transcoding(auto: list[str]) -> None:
    with pytest.raises(UserError, match=r"python -m preprocessing --input FOLDER --output DIR") as error:
        FeatureColumns.from_spec(spec(dict.fromkeys(auto, "auto")))
    assert all(name in str(error.value) for name in auto)


def test_a_categorical_feature_needs_a_cardinality() -> None:
    with pytest.raises(UserError, match=r"user_gender\.cardinality"):
        FeatureColumns.from_spec(spec({"user_gender": None}))


def test_a_cardinality_makes_a_feature_categorical_in_any_channel() -> None:
    assert FeatureColumns.from_spec(spec({"user_age": 80})).either_side == (SideFeature("user_age", 80),)


def test_columns_are_cast_to_32_bits() -> None:
    columns = FeatureColumns.from_spec(spec())
    table = pa.table({"label": [1, 0], "user_age": [0.1, 2**25 + 1], "user_id": [3.0, 8.0]})
    cast = columns.cast(table, "here")
    assert cast.schema == pa.schema([("label", pa.float32()), ("user_age", pa.float32()), ("user_id", pa.int32())])
    assert cast.column("user_id").to_pylist() == [3, 8]
    assert cast.column("user_age").to_pylist() == [pytest.approx(0.1), 2**25]  # rounded, as float32 must


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("user_age", [1.0, None], "'user_age' has 1 empty"),
        ("user_gender", [1, None], "'user_gender' has 1 empty"),
        ("user_gender", ["f", "m"], "'user_gender' should hold whole numbers"),
        ("user_gender", [0.5, 1.0], "'user_gender' should hold whole numbers"),
        ("user_age", ["young", "old"], "'user_age' should hold numbers"),
    ],
)
def test_missing_and_mistyped_values_are_refused(name: str, values: list[Any], said: str) -> None:
    with pytest.raises(UserError, match=f"there: feature {said}"):
        FeatureColumns.from_spec(spec()).cast(pa.table({name: values}), "there")
