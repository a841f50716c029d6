from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from preprocessing.spec.feature_spec import read_feature_spec
from preprocessing.spec.reader import read_mapping
from preprocessing.transcode import transcode as module
from preprocessing.transcode.transcode import is_transcoded_folder, transcode
from workflows.cluster import ThreadCluster, thread_cluster
from workflows.common.errors import UserError
from workflows.device.frames import frame_device
from workflows.merlin import merlin_client

torch = pytest.importorskip("torch")

# The reference's example of a richer data set: gender and age split over two files, ids and label in one.
_SPEC: dict[str, Any] = {
    "channel_spec": {
        "numeric_inputs": ["user_age"],
        "categorical_user_inputs": ["user_gender", "user_id"],
        "categorical_item_inputs": ["item_id"],
        "label_ch": ["label"],
    },
    "feature_spec": {
        "user_gender": {"dtype": "torch.int8", "cardinality": "auto"},
        "user_age": None,
        "user_id": {"dtype": "torch.int32", "cardinality": "auto"},
        "item_id": {"dtype": "torch.int32", "cardinality": "auto"},
        "label": {"dtype": "torch.float32"},
    },
    "metadata": {},
    "source_spec": {
        "train": [
            {"type": "csv", "features": ["user_gender", "user_age"], "files": ["0_0.csv", "0_1.csv"]},
            {"type": "csv", "features": ["user_id", "item_id", "label"], "files": ["1.csv"]},
        ],
        "test": [
            {
                "type": "csv",
                "features": ["user_gender", "user_age", "user_id", "item_id", "label"],
                "files": ["test.csv"],
            }
        ],
    },
}
_FILES = {
    "0_0.csv": "1,20\n0,30\n",
    "0_1.csv": "1,40\n1,20\n",
    "1.csv": "4,5,1\n3,6,0\n2,7,1\n4,0,1\n",
    "test.csv": "1,20,4,9,1\n0,30,3,5,0\n",
}

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def cluster() -> Iterator[ThreadCluster]:
    with thread_cluster() as threads, merlin_client(threads):
        yield threads


@pytest.fixture
def run(fresh: Callable[[], Path], cluster: ThreadCluster) -> Run:
    """Transcode a folder; returns the new one."""

    def transcoded(source: Path, emit: Any = "parquet", spec_name: str = "feature_spec.yaml") -> Path:
        output = fresh()
        transcode(source, spec_name, output, "feature_spec.yaml", emit, frame_device("cpu"), cluster)
        return output

    return transcoded


@pytest.fixture
def example(fresh: Callable[[], Path]) -> Callable[..., Path]:
    """A folder with the example, with some files and spec entries replaced."""

    def folder(files: dict[str, str] | None = None, **features: Any) -> Path:
        path = fresh()
        for name, content in (_FILES | (files or {})).items():
            (path / name).write_text(content)
        spec = {**_SPEC, "feature_spec": _SPEC["feature_spec"] | features}
        (path / "feature_spec.yaml").write_text(yaml.safe_dump(spec))
        return path

    return folder


def _rows(folder: Path, mapping: str = "train") -> pd.DataFrame:
    spec = read_feature_spec(folder)
    return read_mapping(folder, spec, mapping, spec.features(mapping)).to_pandas()


def _refused(run: Run, folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        run(folder)
    return str(caught.value)


def test_the_references_example_is_transcoded(run: Run, example: Callable[..., Path]) -> None:
    folder = run(example())
    train, test = _rows(folder), _rows(folder, "test")
    assert train.user_id.tolist() == [4, 3, 2, 4]
    assert train.item_id.tolist() == [5, 6, 7, 0]
    assert train.label.tolist() == [1, 0, 1, 1]
    assert train.user_gender.tolist() == [1, 0, 1, 1]
    ages = np.array([20, 30, 40, 20])
    np.testing.assert_allclose(train.user_age, (ages - ages.mean()) / ages.std(ddof=1), rtol=1e-6)
    np.testing.assert_allclose(test.user_age, (np.array([20, 30]) - ages.mean()) / ages.std(ddof=1), rtol=1e-6)
    assert test.item_id.tolist() == [9, 5]
    spec = read_feature_spec(folder)
    assert spec.channel_spec == _SPEC["channel_spec"]
    assert [spec.cardinality(name) for name in ("user_gender", "user_id", "item_id")] == [2, 5, 10]  # 9 is in test
    assert {name: feature.dtype for name, feature in spec.feature_spec.items()} == {
        "user_gender": "int32", "user_age": "float32", "user_id": "int32", "item_id": "int32", "label": "float32",
    }  # fmt: skip
    assert train.dtypes.astype(str).to_dict() == {name: spec.feature_spec[name].dtype for name in train}
    assert {chunk.type for mapping in ("train", "test") for chunk in spec.chunks(mapping)} == {"parquet"}


def test_statistics_and_moments_are_saved(run: Run, example: Callable[..., Path]) -> None:
    source = example()
    folder = run(source)
    stats = json.loads((folder / "stats.json").read_text())
    assert stats["transcoded_from"] == source.name
    assert stats["rows"] == {"train": 4, "test": 2}
    assert stats["cardinalities"]["item_id"] == {"cardinality": 10, "found": 10}
    moments = json.loads((folder / "workflow" / "normalize.json").read_text())["features"]["user_age"]
    assert moments == pytest.approx({"mean": 27.5, "std": np.std([20, 30, 40, 20], ddof=1)})
    assert is_transcoded_folder(folder)
    assert not is_transcoded_folder(source)
    assert sorted(path.name for path in folder.iterdir()) == [
        "feature_spec.yaml", "stats.json", "test", "train", "workflow",
    ]  # fmt: skip


def test_declared_cardinalities_are_kept(run: Run, example: Callable[..., Path]) -> None:
    spec = read_feature_spec(run(example(item_id={"cardinality": 50}, user_gender={"cardinality": 2})))
    assert [spec.cardinality(name) for name in ("item_id", "user_gender", "user_id")] == [50, 2, 5]


def test_all_cardinalities_that_are_too_small_are_reported(run: Run, example: Callable[..., Path]) -> None:
    message = _refused(run, example(item_id={"cardinality": 9}, user_gender={"cardinality": 1}))
    assert "item_id: declared 9, found 10" in message
    assert "user_gender: declared 1, found 2" in message


def test_text_is_encoded_by_the_sorted_values_of_all_mappings(run: Run, example: Callable[..., Path]) -> None:
    files = {"0_0.csv": "M,20\nF,30\n", "0_1.csv": "M,40\nM,20\n", "test.csv": "D,20,4,9,1\nF,30,3,5,0\n"}
    folder = run(example(files))
    assert _rows(folder).user_gender.tolist() == [2, 1, 2, 2]
    assert _rows(folder, "test").user_gender.tolist() == [0, 1]
    assert read_feature_spec(folder).cardinality("user_gender") == 3
    table = pq.read_table(folder / "categories" / "user_gender.parquet")
    assert table.to_pydict() == {"id": [0, 1, 2], "original": ["D", "F", "M"]}


def test_text_with_more_values_than_declared_is_refused(run: Run, example: Callable[..., Path]) -> None:
    files = {"0_0.csv": "M,20\nF,30\n", "0_1.csv": "M,40\nM,20\n", "test.csv": "D,20,4,9,1\nF,30,3,5,0\n"}
    assert "user_gender: declared 2, found 3" in _refused(run, example(files, user_gender={"cardinality": 2}))


@pytest.mark.parametrize("constant", ["0.1", "1e9", "-3"])
def test_a_constant_number_becomes_0(run: Run, example: Callable[..., Path], constant: str) -> None:
    files = {"0_0.csv": f"1,{constant}\n0,{constant}\n", "0_1.csv": f"1,{constant}\n1,{constant}\n"}
    folder = run(example(files))
    assert _rows(folder).user_age.tolist() == [0.0] * 4
    assert _rows(folder, "test").user_age.tolist() == [0.0] * 2  # 20 and 30: train has no variation to scale by
    moments = json.loads((folder / "workflow" / "normalize.json").read_text())["features"]["user_age"]
    assert moments == {"mean": float(constant), "std": 0.0}


def test_numbers_far_from_0_keep_their_precision(run: Run, example: Callable[..., Path]) -> None:
    # The stock operator's mean of squares - square of mean yields a negative variance here.
    numbers = 1.7e9 + np.array([0.0, 1.0, 2.0, 0.0])
    rows = [f"1,{number:.1f}\n" for number in numbers]
    folder = run(example({"0_0.csv": "".join(rows[:2]), "0_1.csv": "".join(rows[2:])}))
    np.testing.assert_allclose(_rows(folder).user_age, (numbers - numbers.mean()) / numbers.std(ddof=1), rtol=1e-6)


def test_a_single_train_row_is_enough(run: Run, example: Callable[..., Path]) -> None:
    folder = run(example({"0_0.csv": "1,20\n", "0_1.csv": "", "1.csv": "4,5,1\n"}))
    assert _rows(folder).user_age.tolist() == [0.0]


def test_chunks_of_different_lengths_are_refused(run: Run, example: Callable[..., Path]) -> None:
    assert "0_0.csv …: 3 rows, 1.csv …: 4 rows" in _refused(run, example({"0_1.csv": "1,40\n"}))


def test_a_mapping_without_rows_is_refused(run: Run, example: Callable[..., Path]) -> None:
    assert "source_spec.test" in _refused(run, example({"test.csv": ""}))


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("1.csv", "4,5,1\n3,-6,0\n2,7,1\n4,0,1\n", "1.csv, row 2: feature 'item_id' holds -6, expected an id 0"),
        ("1.csv", f"4,5,1\n3,6,0\n{2**31 - 1},7,1\n4,0,1\n", "1.csv, row 3: feature 'user_id' holds 2147483647"),
        ("1.csv", "4,5,1\n3,6,0\n2,7,1\n4,x,1\n", "1.csv, line 4: column 'item_id'"),
        ("1.csv", "4,5,1\n3,,0\n2,7,1\n4,0,1\n", "1.csv, row 2: feature 'item_id' holds nothing, expected a value"),
        ("1.csv", "4,5,1\n3,6,3\n2,7,5\n4,0,1\n", "feature 'label' holds 3.0, expected a label 0 .. 1; so do 1 of"),
        ("0_1.csv", "1,nan\n1,40\n", "0_1.csv, row 1: feature 'user_age' holds nothing, expected a value"),
        ("test.csv", "1,20,4,9,1\n0,30,3,5\n", "test.csv, line 2: expected 5 columns"),
        ("test.csv", "1,20,4,9,1\n-2,30,3,5,0\n", "test.csv, row 2: feature 'user_gender' holds -2"),
    ],
)
def test_a_wrong_value_is_reported_with_file_and_row(
    run: Run, example: Callable[..., Path], file: str, content: str, told: str
) -> None:
    assert told in _refused(run, example({file: content}))


def test_sparse_ids_trigger_a_warning(
    run: Run, example: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(example({"1.csv": "4,5,1\n3,6,0\n2,1000000,1\n4,0,1\n"}))
    assert "warning: feature 'item_id' uses 5 of 1,000,001 ids" in capsys.readouterr().out
    assert read_feature_spec(folder).cardinality("item_id") == 1_000_001
    run(example({"1.csv": "4,5,1\n3,6,0\n2,999999,1\n4,0,1\n"}))
    assert "warning" not in capsys.readouterr().out


def test_features_without_a_channel_are_dropped(run: Run, example: Callable[..., Path]) -> None:
    source = example()
    content = yaml.safe_load((source / "feature_spec.yaml").read_text())
    del content["channel_spec"]["numeric_inputs"]
    (source / "feature_spec.yaml").write_text(yaml.safe_dump(content))
    folder = run(source)
    assert "user_age" not in read_feature_spec(folder).feature_spec
    assert json.loads((folder / "stats.json").read_text())["left_out"] == ["user_age"]
    assert not (folder / "workflow").exists()


def test_time_ordered_rows_keep_their_order_and_users_are_not_split(
    run: Run, fresh: Callable[[], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 5)
    users = [7, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 2, 2, 5, 5]
    test_users = [user for user in (7, 0, 3, 2) for _ in range(3)]
    source = fresh()
    for mapping, ids in (("train", users), ("test", test_users)):
        labels = np.ones(len(ids)) if mapping == "train" else np.arange(len(ids)) % 3 == 0
        rows = zip(ids, range(len(ids)), labels.astype(int), strict=True)
        (source / f"{mapping}.csv").write_text("".join(f"{u},{i},{label}\n" for u, i, label in rows))
    names = ["u", "i", "l"]
    content = {
        "channel_spec": {"user_ch": ["u"], "item_ch": ["i"], "label_ch": ["l"]},
        "feature_spec": {"u": {}, "i": {}, "l": {}},
        "metadata": {"time_ordered": True, "test_samples_per_series": 3, "ours": "kept"},
        "source_spec": {n: [{"type": "csv", "features": names, "files": [f"{n}.csv"]}] for n in ("train", "test")},
    }
    (source / "feature_spec.yaml").write_text(yaml.safe_dump(content))
    folder = run(source)
    spec = read_feature_spec(folder)
    assert spec.metadata.model_dump(exclude_unset=True) == content["metadata"]
    parts = {n: [pd.read_parquet(folder / file) for file in spec.chunks(n)[0].files] for n in ("train", "test")}
    assert [part.u.tolist() for part in parts["train"]] == [[7, 7], [0] * 9 + [3, 2, 2], [5, 5]]
    assert pd.concat(parts["train"]).i.tolist() == list(range(16))
    assert [len(part) for part in parts["test"]] == [3, 3, 3, 3]
    assert pd.concat(parts["test"]).i.tolist() == list(range(12))

    for length, told in ((5, "the 12 test rows are not whole series of 5"), (4, "begins in row 1 does not")):
        content["metadata"]["test_samples_per_series"] = length
        (source / "feature_spec.yaml").write_text(yaml.safe_dump(content))
        assert told in _refused(run, source)


@st.composite
def _layouts(draw: st.DrawFn) -> tuple[pd.DataFrame, list[tuple[str, list[str], list[int]]]]:
    """A table, and its chunks as (type, features in any order, row offsets of file cuts)."""
    rows = draw(st.integers(2, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    table = pd.DataFrame(
        {
            "user": rng.integers(0, 50, rows),
            "item": rng.integers(0, 50, rows),
            "city": rng.choice(["Ålborg", "Paris", "a b", 'say "hi"', "x,y"], rows),
            "age": rng.integers(0, 400, rows) / 4,
            "price": rng.integers(0, 400, rows) / 4,
            "label": rng.integers(0, 2, rows).astype(float),
        }
    )
    names = draw(st.permutations(list(table)))
    ends = sorted(draw(st.sets(st.integers(1, len(names) - 1))))
    chunks = []
    for start, stop in zip([0, *ends], [*ends, len(names)], strict=True):
        cuts = sorted(draw(st.lists(st.integers(0, rows), max_size=3)))
        kinds = ["parquet", "csv"] + ["torch_tensor"] * ("city" not in names[start:stop])
        chunks.append((draw(st.sampled_from(kinds)), names[start:stop], cuts))
    return table, chunks


def _write(folder: Path, table: pd.DataFrame, chunks: Any, channels: dict[str, list[str]]) -> None:
    described = []
    for number, (kind, names, cuts) in enumerate(chunks):
        files = []
        for index, rows in enumerate(np.split(np.arange(len(table)), cuts)):
            part, path = table.iloc[rows][names], folder / f"{number}-{index}"
            files.append(path.name)
            if kind == "csv":
                part.to_csv(path, header=False, index=False)
            elif kind == "parquet":
                part.to_parquet(path, index=False)
            else:
                torch.save(torch.tensor(np.ascontiguousarray(part.to_numpy(np.float64))), path)
        described.append({"type": kind, "features": names, "files": files})
    content = {
        "channel_spec": channels,
        "feature_spec": dict.fromkeys(table),
        "source_spec": {"train": described},
    }
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(content))


@settings(max_examples=15, deadline=None)
@given(layout=_layouts(), emit=st.sampled_from(["parquet", "torch_tensor"]))
def test_however_the_rows_are_laid_out_the_result_is_the_same(
    fresh: Callable[[], Path], cluster: ThreadCluster, layout: Any, emit: Any
) -> None:
    table, chunks = layout
    source, output = fresh(), fresh()
    channels = {
        "user_ch": ["user"],
        "item_ch": ["item"],
        "label_ch": ["label"],
        "categorical_item": ["city"],
        "numeric": ["age", "price"],
    }
    _write(source, table, chunks, channels)
    transcode(source, "feature_spec.yaml", output, "feature_spec.yaml", emit, frame_device("cpu"), cluster)
    found = _rows(output)
    for name in ("user", "item", "label"):
        assert found[name].tolist() == table[name].tolist()
    assert found.city.tolist() == np.unique(table.city.to_numpy(str), return_inverse=True)[1].tolist()
    for name in ("age", "price"):
        spread = table[name].std() or 1.0
        np.testing.assert_allclose(found[name], (table[name] - table[name].mean()) / spread, rtol=1e-5, atol=1e-6)
    spec = read_feature_spec(output)
    assert [spec.cardinality(n) for n in ("user", "item")] == [table[n].max() + 1 for n in ("user", "item")]


def test_tensors_have_the_format_nvidias_scripts_load(run: Run, example: Callable[..., Path]) -> None:
    folder = run(example(user_gender={"cardinality": 2}), "torch_tensor")
    spec = read_feature_spec(folder)
    assert [spec.channel(name) for name in ("user_ch", "item_ch", "label_ch")] == ["user_id", "item_id", "label"]
    described = [(chunk.type, chunk.features, chunk.files) for chunk in spec.chunks("train")]
    assert described == [
        ("torch_tensor", ["user_id", "item_id"], ["train_data_0.pt"]),
        ("torch_tensor", ["label"], ["train_data_1.pt"]),
        ("torch_tensor", ["user_gender"], ["train_data_2.pt"]),
        ("torch_tensor", ["user_age"], ["train_data_3.pt"]),
    ]
    tensors = [torch.load(folder / f"train_data_{index}.pt", weights_only=True) for index in range(4)]
    assert [tensor.dtype for tensor in tensors] == [torch.int64, torch.float32, torch.int64, torch.float32]
    assert tensors[0].tolist() == [[4, 5], [3, 6], [2, 7], [4, 0]]
    assert tensors[1].tolist() == [[1], [0], [1], [1]]
    assert tensors[2].tolist() == [[1], [0], [1], [1]]
    assert tensors[3].shape == (4, 1)
    assert torch.load(folder / "test_data_0.pt", weights_only=True).tolist() == [[4, 9], [3, 5]]
    assert spec.feature_spec["user_id"].dtype == "torch.int64"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_tensors_are_filled_in_order_from_several_parts(
    run: Run, example: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 3)
    folder = run(example(user_gender={"cardinality": 2}), "torch_tensor")
    assert torch.load(folder / "train_data_0.pt", weights_only=True).tolist() == [[4, 5], [3, 6], [2, 7], [4, 0]]
    assert torch.load(folder / "train_data_1.pt", weights_only=True).tolist() == [[1], [0], [1], [1]]


def test_a_prepared_log_round_trips_through_tensors(
    run: Run, prepare_log: Callable[..., Path], write_lines: Any
) -> None:
    rng = np.random.default_rng(5)
    rows = [f"u{rng.integers(20)},i{rng.integers(30)},{time}" for time in range(300)]
    log = write_lines("log.csv", ["user,item,time", *rows])
    columns = ("--user", "user", "--item", "item", "--time", "time", "--test-negatives", "5")
    prepared = prepare_log(log, *columns)
    tensors = run(prepared, "torch_tensor")
    assert sorted(path.name for path in tensors.glob("*.pt")) == [
        "test_data_0.pt", "test_data_1.pt", "train_data_0.pt", "train_data_1.pt",
    ]  # fmt: skip
    again = run(tensors)
    assert read_feature_spec(again).metadata == read_feature_spec(prepared).metadata
    for mapping in ("train", "test"):
        names = ["user", "item", "label"]
        pd.testing.assert_frame_equal(_rows(again, mapping)[names], _rows(prepared, mapping)[names])
    for name in ("user", "item"):
        path = Path("categories") / f"{name}.parquet"
        assert pq.read_table(again / path).to_pydict() == pq.read_table(prepared / path).to_pydict()


@pytest.mark.parametrize("name", ["../a.yaml", "a/b.yaml", "", ".", "..", "stats.json", "train", "train_data_0.pt"])
def test_the_output_spec_name_must_be_an_unused_file_name(
    fresh: Callable[[], Path], cluster: ThreadCluster, example: Callable[..., Path], name: str
) -> None:
    with pytest.raises(UserError, match="--feature_spec_out"):
        transcode(example(), "feature_spec.yaml", fresh(), name, "parquet", frame_device("cpu"), cluster)


@pytest.mark.parametrize("name", ["../up", "a/b", "..", "categories", ".spill"])
def test_a_mapping_that_cannot_be_a_folder_is_refused(run: Run, example: Callable[..., Path], name: str) -> None:
    source = example()
    content = yaml.safe_load((source / "feature_spec.yaml").read_text())
    content["source_spec"][name] = content["source_spec"].pop("test")
    (source / "feature_spec.yaml").write_text(yaml.safe_dump(content))
    assert repr(name) in _refused(run, source)


def test_a_text_feature_whose_name_cannot_be_a_file_name_is_refused(run: Run, example: Callable[..., Path]) -> None:
    source = example({"0_0.csv": "M,20\nF,30\n", "0_1.csv": "M,40\nM,20\n", "test.csv": "M,20,4,9,1\nF,30,3,5,0\n"})
    path = source / "feature_spec.yaml"
    path.write_text(path.read_text().replace("user_gender", "../gender"))
    assert "'../gender' cannot be the name of a file" in _refused(run, source)
