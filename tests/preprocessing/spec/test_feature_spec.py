from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.spec.feature_spec import Chunk, Feature, FeatureSpec, Metadata, chunk_files, read_feature_spec
from workflows.common.errors import UserError

# As written by NVIDIA's transcoding, with the empty entry that their documentation allows.
_NVIDIA = """
channel_spec:
  item_ch: [item_id]
  label_ch: [label]
  user_ch: [user_id]
feature_spec:
  item_id: {dtype: torch.int64, cardinality: 50}
  label: {dtype: torch.float32, cardinality: null}
  user_id: {dtype: torch.int64, cardinality: 20}
  unused:
metadata: {test_samples_per_series: 101}
source_spec:
  test:
  - {type: torch_tensor, features: [user_id, item_id], files: [test_data_0.pt]}
  - {type: torch_tensor, features: [label], files: [test_data_1.pt]}
  train:
  - {type: torch_tensor, features: [user_id, item_id], files: [train_data_0.pt]}
  - {type: torch_tensor, features: [label], files: [train_data_1.pt]}
"""

# The reference's example of a richer data set, before transcoding.
_RICH = """
channel_spec:
  numeric_inputs: [user_age]
  categorical_user_inputs: [user_gender, user_id]
  categorical_item_inputs: [item_id]
  label_ch: [label]
feature_spec:
  user_gender: {dtype: torch.int8, cardinality: 3}
  user_age: {}
  user_id: {dtype: torch.int32, cardinality: auto}
  item_id: {dtype: torch.int32, cardinality: auto}
  label: {}
metadata: {}
source_spec:
  train:
  - {type: csv, features: [user_gender, user_age], files: [train_0_0.csv, train_0_1.csv]}
  - {type: csv, features: [user_id, item_id, label], files: [train_1.csv]}
  test:
  - {type: csv, features: [user_id, item_id, label, user_gender, user_age], files: [test.csv]}
"""


def _read(folder: Path, text: str) -> FeatureSpec:
    (folder / "feature_spec.yaml").write_text(text, encoding="utf-8")
    return read_feature_spec(folder)


def _refused(folder: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        _read(folder, text)
    assert str(folder / "feature_spec.yaml") in str(caught.value)
    return str(caught.value)


def _edited(**sections: object) -> str:
    return yaml.safe_dump({**yaml.safe_load(_NVIDIA), **sections})


@pytest.mark.parametrize("text", [_NVIDIA, _RICH])
def test_a_spec_round_trips(tmp_path: Path, text: str) -> None:
    spec = _read(tmp_path, text)
    spec.write(tmp_path, "again.yaml")
    assert read_feature_spec(tmp_path, "again.yaml") == spec


_NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=8)


@given(
    names=st.lists(_NAMES, min_size=1, max_size=5, unique=True),
    cardinalities=st.lists(st.none() | st.just("auto") | st.integers(1, 2**31 - 1), min_size=5, max_size=5),
    series=st.none() | st.integers(1, 1000),
    kind=st.sampled_from(["parquet", "csv", "torch_tensor"]),
)
def test_any_valid_spec_round_trips(
    fresh: Callable[[], Path],
    names: list[str],
    cardinalities: list[int | str | None],
    series: int | None,
    kind: Literal["parquet", "csv", "torch_tensor"],
) -> None:
    spec = FeatureSpec(
        channel_spec={"all": names, names[0]: [], "label_ch": names[:1]},
        feature_spec={n: Feature(dtype="int32", cardinality=c) for n, c in zip(names, cardinalities, strict=False)},
        metadata=Metadata(test_samples_per_series=series),
        source_spec={"train": [Chunk(type=kind, features=[name], files=["a/b.x", "c.x"]) for name in names]},
    )
    folder = fresh()
    spec.write(folder)
    assert read_feature_spec(folder).model_dump() == spec.model_dump()


def test_nvidias_spec_is_read_correctly(tmp_path: Path) -> None:
    spec = _read(tmp_path, _NVIDIA)
    assert [spec.channel(name) for name in ("user_ch", "item_ch", "label_ch")] == ["user_id", "item_id", "label"]
    assert (spec.cardinality("user_id"), spec.cardinality("item_id")) == (20, 50)
    assert spec.metadata.test_samples_per_series == 101
    assert spec.metadata.train_negatives is None
    assert spec.feature_spec["unused"] == Feature()
    assert [chunk.features for chunk in spec.chunks("train")] == [["user_id", "item_id"], ["label"]]
    with pytest.raises(UserError, match=r"feature_spec\.label\.cardinality"):
        spec.cardinality("label")


def test_a_written_spec_is_plain_yaml_with_nvidias_keys(tmp_path: Path) -> None:
    _read(tmp_path, _NVIDIA).write(tmp_path, "again.yaml")
    content = yaml.safe_load((tmp_path / "again.yaml").read_text(encoding="utf-8"))
    original = yaml.safe_load(_NVIDIA)
    for section in ("channel_spec", "source_spec", "metadata"):
        assert content[section] == original[section]
    assert content["feature_spec"]["user_id"] == {"dtype": "torch.int64", "cardinality": 20}
    assert set(content["feature_spec"]) == set(original["feature_spec"])


def test_extra_attributes_of_features_and_metadata_are_kept(tmp_path: Path) -> None:
    spec = _read(tmp_path, _edited(metadata={"made_by": "them", "test_samples_per_series": 3}))
    spec.write(tmp_path, "again.yaml")
    assert yaml.safe_load((tmp_path / "again.yaml").read_text())["metadata"]["made_by"] == "them"


def test_a_channel_without_exactly_one_feature_is_named(tmp_path: Path) -> None:
    spec = _read(tmp_path, _RICH)
    with pytest.raises(UserError, match=r"channel_spec\.user_ch .*no such channel"):
        spec.channel("user_ch")
    with pytest.raises(UserError, match=r"channel_spec\.categorical_user_inputs"):
        spec.channel("categorical_user_inputs")


def test_a_missing_mapping_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no 'valid'.*train"):
        _read(tmp_path, _NVIDIA).chunks("valid")


def test_all_errors_are_reported_at_once_with_their_paths(tmp_path: Path) -> None:
    content = yaml.safe_load(_NVIDIA)
    content["feature_spec"]["user_id"]["cardinality"] = 0
    content["feature_spec"]["item_id"]["cardinality"] = "many"
    content["metadata"]["test_samples_per_series"] = 0
    content["source_spec"]["train"][1]["type"] = "hdf5"
    content["source_spec"]["test"][0]["files"] = []
    content["source_spec"]["test"][1]["globs"] = ["*.pt"]
    content["surprise"] = 1
    del content["channel_spec"]
    message = _refused(tmp_path, yaml.safe_dump(content))
    for place in (
        "channel_spec:",
        "feature_spec.user_id.cardinality",
        "feature_spec.item_id.cardinality",
        "metadata.test_samples_per_series",
        "source_spec.train.1.type",
        "source_spec.test.0.files",
        "source_spec.test.1.globs",
        "surprise",
    ):
        assert place in message


def test_all_unknown_and_repeated_names_are_reported_at_once_with_their_paths(tmp_path: Path) -> None:
    content = yaml.safe_load(_NVIDIA)
    content["channel_spec"]["user_ch"] = ["who"]
    content["source_spec"]["train"][0]["features"] = ["user_id", "what"]
    content["source_spec"]["test"][1]["features"] = ["label", "item_id"]
    message = _refused(tmp_path, yaml.safe_dump(content))
    assert "channel_spec.user_ch: feature 'who'" in message
    assert "source_spec.train.0.features: feature 'what'" in message
    assert "source_spec.test.1.features: feature 'item_id' appears twice" in message


def test_wrong_names_and_wrong_values_are_reported_at_once(tmp_path: Path) -> None:
    content = yaml.safe_load(_NVIDIA)
    content["channel_spec"]["user_ch"] = ["who"]
    content["feature_spec"]["item_id"]["cardinality"] = 0
    message = _refused(tmp_path, yaml.safe_dump(content))
    assert "feature_spec.item_id.cardinality" in message
    assert "'who'" in message


def test_every_wrong_path_of_a_chunk_is_listed(tmp_path: Path) -> None:
    chunk = {"type": "csv", "features": ["label"], "files": ["/etc/passwd", "../up.csv"]}
    message = _refused(tmp_path, _edited(source_spec={"train": [chunk]}))
    assert "/etc/passwd" in message
    assert "../up.csv" in message


@pytest.mark.parametrize("file", ["/etc/passwd", "../up.csv", "a/../../up.csv", "..", "", ".", "a\0b"])
def test_paths_that_escape_the_folder_are_refused(tmp_path: Path, file: str) -> None:
    chunk = {"type": "csv", "features": ["label"], "files": ["fine.csv", file]}
    message = _refused(tmp_path, _edited(source_spec={"train": [chunk]}))
    assert "source_spec.train.0.files" in message


def test_links_to_the_outside_and_missing_files_are_listed_together(tmp_path: Path) -> None:
    outside = tmp_path / "outside.csv"
    outside.write_text("1\n")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "link.csv").symlink_to(outside)
    (folder / "dir").symlink_to(tmp_path)
    (folder / "real.csv").write_text("1\n")
    (folder / "inner.csv").symlink_to("real.csv")
    chunk = Chunk(type="csv", features=["label"], files=["link.csv", "dir/outside.csv", "gone.csv", "inner.csv"])
    with pytest.raises(UserError) as caught:
        chunk_files(folder, chunk)
    for name in ("link.csv points outside", "dir/outside.csv points outside", "gone.csv does not exist"):
        assert name in str(caught.value)
    assert "inner.csv" not in str(caught.value)
    fine = Chunk(type="csv", features=["label"], files=["inner.csv", "real.csv"])
    assert chunk_files(folder, fine) == [folder.resolve() / "real.csv"] * 2


def test_the_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.csv").write_text("1\n")
    (tmp_path / "link").symlink_to("real")
    chunk = Chunk(type="csv", features=["label"], files=["a.csv"])
    assert chunk_files(tmp_path / "link", chunk) == [(tmp_path / "real" / "a.csv").resolve()]


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").symlink_to("b.csv")
    (tmp_path / "b.csv").symlink_to("a.csv")
    with pytest.raises(UserError, match=r"a\.csv"):
        chunk_files(tmp_path, Chunk(type="csv", features=["label"], files=["a.csv"]))


def test_a_spec_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    (tmp_path / "feature_spec.yaml").symlink_to("feature_spec.yaml")
    for name in ("feature_spec.yaml", "x" * 4_000):
        with pytest.raises(UserError, match=f"{name[:9]}.* cannot be opened|does not exist") as raised:
            read_feature_spec(tmp_path, name)
        assert len(str(raised.value)) < 1_000


def test_a_missing_spec_is_an_error_that_says_how_to_create_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"feature_spec\.yaml does not exist.*python -m preprocessing"):
        read_feature_spec(tmp_path)


def test_a_huge_spec_is_refused_without_reading_it(tmp_path: Path) -> None:
    with (tmp_path / "feature_spec.yaml").open("wb") as file:
        os.truncate(file.fileno(), 1 << 34)  # sparse: reading it would exhaust memory
    with pytest.raises(UserError, match="more than 1,048,576 bytes"):
        read_feature_spec(tmp_path)


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir"])
def test_python_tags_are_refused_and_not_run(tmp_path: Path, tag: str) -> None:
    target = tmp_path / "made"
    assert "not readable YAML" in _refused(tmp_path, f"feature_spec: {tag} ['{target}']")
    assert not target.exists()
    assert "not readable YAML" in _refused(tmp_path, "feature_spec: !!python/object:pathlib.Path {}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        "just text",
        "[1, 2]",
        "a: \x01",
        "&a [*a]",
        "? [a]\n: b",
        "[" * 600,
        "a: 2001-99-99",
        "a: !!int x",
        "a: !!bool x",
        "a: !!timestamp x",
        "a: " + "1" * 5000,
    ],
)
def test_invalid_specs_are_refused(tmp_path: Path, text: str) -> None:
    _refused(tmp_path, text)


@pytest.mark.parametrize(
    ("first", "next_level"),
    [("[x]", "[{}]"), ("{k: x}", "{{a: [{}]}}"), ("{k: x}", "{{<<: [{}]}}")],
    ids=["lists", "mappings", "merges"],
)
def test_exponential_aliases_are_refused_before_expansion(tmp_path: Path, first: str, next_level: str) -> None:
    # Each level references the previous one nine times: 9**20 values in the end.
    levels = [f"l{n}: &l{n} " + next_level.format(", ".join([f"*l{n - 1}"] * 9)) for n in range(1, 21)]
    text = "\n".join([f"l0: &l0 {first}", *levels])
    assert len(_refused(tmp_path, text)) < 5000


def test_a_list_that_two_chunks_share_may_be_an_alias(tmp_path: Path) -> None:
    content = yaml.safe_load(_NVIDIA)
    content["source_spec"]["test"][0]["features"] = content["source_spec"]["train"][0]["features"]
    text = yaml.safe_dump(content)
    assert "*id001" in text
    assert [chunk.features for chunk in _read(tmp_path, text).chunks("test")] == [["user_id", "item_id"], ["label"]]


def test_bytes_that_are_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "feature_spec.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match="not UTF-8 text"):
        read_feature_spec(tmp_path)


def test_missing_channels_and_mappings_are_reported(tmp_path: Path) -> None:
    message = _refused(tmp_path, _edited(channel_spec={"user_ch": [], "item_ch": ["item_id", "label"]}, source_spec={}))
    for place in (
        "channel_spec.user_ch: expected exactly one feature, got none",
        "channel_spec.item_ch: expected exactly one feature, got ['item_id', 'label']",
        "channel_spec.label_ch: expected exactly one feature, got none",
        "source_spec.train: expected at least one chunk",
    ):
        assert place in message


def test_a_feature_may_appear_only_once_per_channel_and_mapping(tmp_path: Path) -> None:
    content = yaml.safe_load(_NVIDIA)
    content["channel_spec"]["others"] = ["user_id", "item_id", "user_id"]
    content["source_spec"]["train"][0]["features"] = ["item_id", "item_id"]
    message = _refused(tmp_path, yaml.safe_dump(content))
    assert "channel_spec.others: feature 'user_id' appears twice" in message
    assert "source_spec.train.0.features: feature 'item_id' appears twice in this mapping" in message
    assert message.count("twice") == 2


@pytest.mark.parametrize("value", [0, -1, 2**31, True, 3.0, "3", "many", [3]])
def test_a_cardinality_must_be_a_positive_integer_or_auto(tmp_path: Path, value: object) -> None:
    content = yaml.safe_load(_NVIDIA)
    content["feature_spec"]["item_id"]["cardinality"] = value
    message = _refused(tmp_path, yaml.safe_dump(content))
    assert (
        f"feature_spec.item_id.cardinality: expected a whole number 1 .. 2147483647, auto or nothing, got {value!r}"
        in message
    )


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("test_samples_per_series", True),
        ("test_samples_per_series", "101"),
        ("train_negatives", 1.0),
        ("time_ordered", "yes"),
        ("time_ordered", 1),
    ],
)
def test_metadata_values_are_not_coerced(tmp_path: Path, key: str, value: object) -> None:
    message = _refused(tmp_path, _edited(metadata={key: value}))
    assert f"metadata.{key}" in message
    assert f"got {value!r}" in message


def test_other_mappings_than_train_may_have_any_name(tmp_path: Path) -> None:
    sources = yaml.safe_load(_NVIDIA)["source_spec"]
    spec = _read(tmp_path, _edited(source_spec={"train": sources["train"], "holdout": sources["test"]}))
    assert spec.features("holdout") == ["user_id", "item_id", "label"]


def test_categorical_features_are_identified(tmp_path: Path) -> None:
    assert _read(tmp_path, _NVIDIA).categorical() == ("item_id", "user_id")
    content = yaml.safe_load(_RICH)
    content["feature_spec"]["label"] = {"cardinality": 2}  # still a label despite its cardinality
    del content["feature_spec"]["user_gender"]["cardinality"]  # categorical by its channel
    content["feature_spec"]["user_age"] = {"cardinality": "auto"}  # categorical by its cardinality
    spec = _read(tmp_path, yaml.safe_dump(content))
    assert set(spec.categorical()) == {"user_gender", "user_age", "user_id", "item_id"}


def test_found_cardinalities_replace_auto_and_missing_ones(tmp_path: Path) -> None:
    spec = _read(tmp_path, _RICH).with_cardinalities({"user_gender": 2, "user_id": 7, "item_id": 8})
    assert [spec.cardinality(name) for name in ("user_gender", "user_id", "item_id")] == [3, 7, 8]
    assert spec.feature_spec["user_id"].dtype == "torch.int32"
