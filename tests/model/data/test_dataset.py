"""Opening folders of every layout: ours, NVIDIA's, and faulty ones."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import model.data.dataset
import train
from model.data.dataset import Rows, open_train
from model.data.test_set import open_test_set
from preprocessing.spec.feature_columns import FeatureColumns
from preprocessing.spec.feature_spec import read_feature_spec
from workflows.common.errors import UserError
from workflows.device.frames import FrameDevice
from workflows.merlin import loader_class

CPU = torch.device("cpu")
N_USERS, N_ITEMS, LENGTH = 8, 20, 5
TRAIN_FLAGS = "-e 1 -b 64 -f 2 --layers 4 2 -k 2 -s 1"


def known_rows() -> tuple[np.ndarray, np.ndarray]:
    """Train (user, item, label), unordered, and test series (user, item, label), positive first."""
    rng = np.random.default_rng(0)
    items = [rng.permutation(N_ITEMS) for _ in range(N_USERS)]
    train_rows = [(u, i, int(place < 6)) for u in range(N_USERS) for place, i in enumerate(items[u][:9])]
    test_rows = [(u, i, int(place == 0)) for u in range(N_USERS) for place, i in enumerate(items[u][10 : 10 + LENGTH])]
    return rng.permutation(np.array(train_rows)), np.array(test_rows)


def stream(rows: Rows, size: int = 7) -> list[tuple]:
    blocks = [zip(*(column.tolist() for column in block), strict=True) for block in rows.stream(size, CPU)]
    return [row for block in blocks for row in block]


def write_spec(folder: Path, chunks: dict[str, list[dict[str, Any]]], names: Sequence[str], metadata: Any) -> None:
    user, item, label = names
    content = {
        "channel_spec": {"user_ch": [user], "item_ch": [item], "label_ch": [label]},
        "feature_spec": {
            user: {"dtype": "torch.int64", "cardinality": N_USERS},
            item: {"dtype": "torch.int64", "cardinality": N_ITEMS},
            label: {"dtype": "torch.float32"},
        },
        "metadata": metadata,
        "source_spec": chunks,
    }
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(content))


def torch_folder(folder: Path) -> tuple[str, str, str]:
    """NVIDIA's layout: ids in one file, labels in another."""
    names, chunks = ("user_id", "item_id", "label"), {}
    for mapping, rows in zip(("train", "test"), known_rows(), strict=True):
        torch.save(torch.from_numpy(rows[:, :2].astype(np.int64)), folder / f"{mapping}_data_0.pt")
        torch.save(torch.from_numpy(rows[:, 2:].astype(np.float32)), folder / f"{mapping}_data_1.pt")
        chunks[mapping] = [
            {"type": "torch_tensor", "features": list(features), "files": [f"{mapping}_data_{number}.pt"]}
            for number, features in enumerate((names[:2], names[2:]))
        ]
    write_spec(folder, chunks, names, {"test_samples_per_series": LENGTH})
    return names


def csv_folder(folder: Path) -> tuple[str, str, str]:
    """Chunks with different columns, each split into files differently; no header."""
    names, chunks = ("reader", "book", "bought"), {}
    for mapping, rows in zip(("train", "test"), known_rows(), strict=True):
        half = len(rows) // 3
        for file, part in (("a", rows[:half]), ("b", rows[half:])):
            np.savetxt(folder / f"{mapping}-{file}.txt", part[:, [2, 1]], fmt="%d", delimiter=",")
        np.savetxt(folder / f"{mapping}-users.dat", rows[:, :1], fmt="%d")
        chunks[mapping] = [
            {"type": "csv", "features": ["bought", "book"], "files": [f"{mapping}-a.txt", f"{mapping}-b.txt"]},
            {"type": "csv", "features": ["reader"], "files": [f"{mapping}-users.dat"]},
        ]
    write_spec(folder, chunks, names, {"test_samples_per_series": LENGTH, "made_by": "hand"})
    return names


def parquet_folder(
    folder: Path, kinds: Sequence[str] = ("int64", "int64", "float64"), text: bool = False, **metadata: Any
) -> tuple[str, str, str]:
    """Unordered rows unless `time_ordered`; with `text`, also an unused text column."""
    names, chunks = ("u", "i", "y"), {}
    for mapping, rows in zip(("train", "test"), known_rows(), strict=True):
        if metadata.get("time_ordered") and mapping == "train":
            rows = rows[np.argsort(rows[:, 0], kind="stable")]
        columns = {name: rows[:, place].astype(kinds[place]) for place, name in enumerate(names)}
        table = pa.table({**({"note": ["text"] * len(rows)} if text else {}), **columns})
        pq.write_table(table, folder / f"{mapping}.parquet")
        chunks[mapping] = [{"type": "parquet", "features": list(names), "files": [f"{mapping}.parquet"]}]
    write_spec(folder, chunks, names, {"test_samples_per_series": LENGTH, **metadata})
    return names


LAYOUTS = {"torch_tensor": torch_folder, "csv": csv_folder, "parquet": parquet_folder}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_foreign_layouts_stream_their_rows(tmp_path: Path, layout: str) -> None:
    names = LAYOUTS[layout](tmp_path)
    train_known, test_known = known_rows()
    spec = read_feature_spec(tmp_path)
    rows = open_train(tmp_path, spec, CPU)
    assert rows.names == tuple(names)
    assert rows.n_rows == len(train_known)
    # Rows are grouped by user, and each user's rows keep their order.
    expected = train_known[np.argsort(train_known[:, 0], kind="stable")]
    assert stream(rows) == [tuple(row) for row in expected.tolist()]
    test = open_test_set(tmp_path, spec, CPU)
    assert test is not None
    assert (test.length, test.note) == (LENGTH, "")
    assert stream(test.rows) == [tuple(row) for row in test_known[:, :2].tolist()]
    for block in rows.stream(5, CPU):
        assert [column.dtype for column in block] == [torch.int32, torch.int32, torch.float32]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loader", ["merlin", "memory"])
def test_foreign_layouts_train(tmp_path: Path, layout: str, loader: str) -> None:
    LAYOUTS[layout](tmp_path)
    run = tmp_path / "run"
    train.main(["--data", str(tmp_path), "--output", str(run), "--loader", loader, *TRAIN_FLAGS.split()])
    assert json.loads((run / "metrics.json").read_text())["epochs"] == 1


def test_unused_columns_are_not_read(tmp_path: Path) -> None:
    parquet_folder(tmp_path, text=True, time_ordered=True)
    spec, (_, test_known) = read_feature_spec(tmp_path), known_rows()
    assert len(stream(open_train(tmp_path, spec, CPU))) == N_USERS * 9
    assert stream(open_test_set(tmp_path, spec, CPU).rows) == [tuple(row) for row in test_known[:, :2].tolist()]


def test_a_pandas_index_is_read_as_a_column(tmp_path: Path) -> None:
    parquet_folder(tmp_path, time_ordered=True)
    known = stream(open_train(tmp_path, read_feature_spec(tmp_path), CPU))
    pd.read_parquet(tmp_path / "train.parquet").set_index("u").to_parquet(tmp_path / "train.parquet")
    assert stream(open_train(tmp_path, read_feature_spec(tmp_path), CPU)) == known


def test_parts_may_differ_in_column_types_and_order(train_rows: Callable[..., Rows], tmp_path: Path) -> None:
    rows = train_rows([[(0, 1, 1.0)], [(1, 2, 1.0)]], 2, 5)
    other = pa.table({"label": pa.array([0.0]), "item": pa.array([3]), "user": pa.array([1])})
    pq.write_table(other, tmp_path / "prepared" / "train" / "part-00001.parquet")
    assert stream(rows, 1) == [(0, 1, 1.0), (1, 3, 0.0)]


@pytest.mark.parametrize("name", ["a b", "a*b?", "ü#1%20", "a[b]", "a::b"])
def test_a_folder_may_have_any_name(train_rows: Callable[..., Rows], name: str) -> None:
    assert stream(train_rows([[(0, 1, 1.0)], [(1, 2, 1.0)]], 2, 5, name=name)) == [(0, 1, 1.0), (1, 2, 1.0)]


KINDS = [
    ("int32", "int64", "float64"),
    ("int64", "int64", "bool"),
    ("int16", "uint8", "uint8"),
    ("uint32", "uint64", "float64"),
    ("float64", "float32", "float32"),
]


@pytest.mark.parametrize("negatives", ["exact", "static"])
@pytest.mark.parametrize("kinds", KINDS, ids="-".join)
def test_ordered_parquet_of_any_numeric_type_trains(tmp_path: Path, kinds: tuple[str, ...], negatives: str) -> None:
    parquet_folder(tmp_path, kinds, time_ordered=True)
    run = tmp_path / "run"
    flags = ["--data", str(tmp_path), "--output", str(run), "--negatives", negatives, *TRAIN_FLAGS.split()]
    train.main(flags)
    assert (run / "metrics.json").is_file()


def test_every_layout_gives_the_same_model(tmp_path: Path) -> None:
    # The same rows under other names, in other types and files give a bit-identical result.
    weights = []
    for layout, write in LAYOUTS.items():
        folder = tmp_path / layout
        folder.mkdir()
        write(folder)
        train.main(["--data", str(folder), "--output", str(folder / "run"), *TRAIN_FLAGS.split()])
        weights.append((folder / "run" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] == weights[2]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mapping", ["train", "test"])
@pytest.mark.parametrize("kind", ["user", "item"])
def test_ids_outside_their_cardinality_are_refused(tmp_path: Path, layout: str, mapping: str, kind: str) -> None:
    user, item, _ = LAYOUTS[layout](tmp_path)
    path = tmp_path / "feature_spec.yaml"
    spec = yaml.safe_load(path.read_text())
    name, least = (user, N_USERS) if kind == "user" else (item, N_ITEMS)
    spec["feature_spec"][name]["cardinality"] = least - 1
    path.write_text(yaml.safe_dump(spec))
    spec = read_feature_spec(tmp_path)
    rows = open_train(tmp_path, spec, CPU) if mapping == "train" else open_test_set(tmp_path, spec, CPU).rows
    known = known_rows()[mapping == "test"][:, 0 if kind == "user" else 1]
    if known.max() < least - 1:
        pytest.skip("the largest id is not among these rows")
    with pytest.raises(UserError, match=f"'{name}' holds {least - 1}, expected an id 0 .. {least - 2};"):
        stream(rows)


def test_negative_ids_are_refused(train_rows: Callable[..., Rows]) -> None:
    with pytest.raises(UserError, match="'item' holds -1, expected an id 0"):
        stream(train_rows([[(0, 3, 1.0), (1, -1, 1.0)]], 2, 5))


def test_partitions_can_be_read_in_another_order(train_rows: Callable[..., Rows]) -> None:
    parts = [[(user, item, 1.0) for item in range(user + 1)] for user in range(4)]
    rows = train_rows(parts, 4, 5)
    assert rows.n_partitions == 4
    blocks = list(rows.stream(100, CPU, [2, 0, 3, 1]))
    assert torch.cat([block[0] for block in blocks]).tolist() == [2, 2, 2, 0, 3, 3, 3, 3, 1, 1]


def test_blocks_have_the_requested_size(train_rows: Callable[..., Rows]) -> None:
    rows = train_rows([[(0, item, 1.0) for item in range(size)] for size in (3, 1, 9, 2, 1)], 1, 9)
    for size, sizes in ((1, [1] * 16), (5, [5, 5, 5, 1]), (16, [16]), (99, [16])):
        assert [len(block[0]) for block in rows.stream(size, CPU)] == sizes


def broken(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "feature_spec.yaml"
    spec = yaml.safe_load(path.read_text())
    change(spec)
    path.write_text(yaml.safe_dump(spec))


def open_both(folder: Path) -> None:
    spec = read_feature_spec(folder)
    stream(open_train(folder, spec, CPU))
    test = open_test_set(folder, spec, CPU)
    assert test is not None
    stream(test.rows)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_faults_in_a_spec_are_reported(tmp_path: Path, layout: str) -> None:
    user, _, label = LAYOUTS[layout](tmp_path)
    original = (tmp_path / "feature_spec.yaml").read_text()
    faults: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
        (lambda spec: spec["metadata"].update(test_samples_per_series=LENGTH + 2), "not whole series of 7; correct"),
        (lambda spec: spec["channel_spec"].pop("label_ch"), "label_ch"),
        (lambda spec: spec["channel_spec"]["user_ch"].append(label), "exactly one feature"),
        (lambda spec: spec["feature_spec"][user].pop("cardinality"), f"{user}.cardinality"),
        (lambda spec: spec["feature_spec"][user].update(cardinality="auto"), "'auto'"),
        (lambda spec: spec["source_spec"]["train"][0]["files"].append("gone"), "gone does not exist"),
    ]
    for change, said in faults:
        (tmp_path / "feature_spec.yaml").write_text(original)
        broken(tmp_path, change)
        with pytest.raises(UserError, match=said):
            open_both(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_series_to_rank_there_is_no_test_set(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path)
    original = (tmp_path / "feature_spec.yaml").read_text()
    changes: list[Callable[[dict[str, Any]], Any]] = [
        lambda spec: spec["source_spec"].pop("test"),
        lambda spec: spec["source_spec"].update(test=[]),
        lambda spec: spec["metadata"].update(test_samples_per_series=1),  # the positive alone
    ]
    for change in changes:
        (tmp_path / "feature_spec.yaml").write_text(original)
        broken(tmp_path, change)
        assert open_test_set(tmp_path, read_feature_spec(tmp_path), CPU) is None


@pytest.mark.parametrize("ordered", [False, True])
def test_faults_in_parquet_files_are_reported(tmp_path: Path, ordered: bool) -> None:
    parquet_folder(tmp_path, time_ordered=ordered)
    file = tmp_path / "train.parquet"
    table = pq.read_table(file)

    pq.write_table(table.drop_columns("y"), file)
    with pytest.raises(UserError, match="y"):
        open_both(tmp_path)
    pq.write_table(table.slice(0, 0), file)
    with pytest.raises(UserError, match="no rows"):
        open_both(tmp_path)
    file.write_bytes(b"PAR1 but nothing else")
    with pytest.raises(UserError, match=r"train\.parquet"):
        open_both(tmp_path)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("fault", ["text", "null", "fraction", "large"])
def test_ids_that_are_not_integers_are_refused(tmp_path: Path, ordered: bool, fault: str) -> None:
    parquet_folder(tmp_path, time_ordered=ordered)
    file = tmp_path / "train.parquet"
    table = pq.read_table(file)
    users = table.column("u").to_pylist()
    last = {"null": None, "fraction": 1.5, "large": 2**31}
    column = list(map("user {}".format, users)) if fault == "text" else [*users[:-1], last[fault]]
    pq.write_table(table.set_column(0, "u", pa.array(column)), file)
    with pytest.raises(UserError, match="'u' has 1 empty" if fault == "null" else r"'u' should hold .* below 2\^31"):
        open_both(tmp_path)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("label", "said"), [(5.0, "5"), (-0.5, "-0.5"), (float("nan"), "nan"), (float("inf"), "inf")])
def test_labels_that_are_not_probabilities_are_refused(tmp_path: Path, layout: str, label: float, said: str) -> None:
    name = LAYOUTS[layout](tmp_path)[2]
    if layout == "torch_tensor":
        labels = torch.load(tmp_path / "train_data_1.pt", weights_only=True)
        labels[3] = label
        torch.save(labels, tmp_path / "train_data_1.pt")
    elif layout == "csv":
        file = tmp_path / "train-b.txt"
        lines = file.read_text().splitlines()
        file.write_text("\n".join([*lines[:-1], f"{label},1"]) + "\n")
    else:
        table = pq.read_table(tmp_path / "train.parquet")
        column = pa.array([*table.column("y").to_pylist()[:-1], label])
        pq.write_table(table.set_column(2, "y", column), tmp_path / "train.parquet")
    with pytest.raises(UserError, match=f"'{name}' (holds {said}, expected a label 0 .. 1;|has 1 empty values)"):
        open_both(tmp_path)


def test_chunks_of_unequal_length_are_refused(tmp_path: Path) -> None:
    torch_folder(tmp_path)
    torch.save(torch.ones(3, 1), tmp_path / "train_data_1.pt")
    with pytest.raises(UserError, match="differ in length"):
        open_both(tmp_path)


@pytest.mark.parametrize("content", [torch.ones(72, 3, dtype=torch.int64), {"a": torch.ones(2)}, [1, 2]])
def test_torch_files_with_other_content_are_refused(tmp_path: Path, content: object) -> None:
    torch_folder(tmp_path)
    torch.save(content, tmp_path / "train_data_0.pt")
    with pytest.raises(UserError, match=r"train_data_0\.pt"):
        open_both(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.bool, torch.uint8, torch.float64])
def test_labels_may_have_any_tensor_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    torch_folder(tmp_path)
    expected = stream(open_train(tmp_path, read_feature_spec(tmp_path), CPU))
    path = tmp_path / "train_data_1.pt"
    torch.save(torch.load(path, weights_only=True).to(dtype), path)
    assert stream(open_train(tmp_path, read_feature_spec(tmp_path), CPU)) == expected


def test_an_empty_csv_file_adds_no_rows(tmp_path: Path) -> None:
    csv_folder(tmp_path)
    expected = stream(open_train(tmp_path, read_feature_spec(tmp_path), CPU))
    (tmp_path / "nothing.txt").touch()
    broken(tmp_path, lambda spec: spec["source_spec"]["train"][0]["files"].insert(1, "nothing.txt"))
    assert stream(open_train(tmp_path, read_feature_spec(tmp_path), CPU)) == expected


def test_columns_are_read_from_a_spec(tmp_path: Path) -> None:
    csv_folder(tmp_path)
    columns = FeatureColumns.from_spec(read_feature_spec(tmp_path))
    assert columns == FeatureColumns("reader", "book", "bought", N_USERS, N_ITEMS)


def test_the_loader_and_its_threads_work_on_the_gpu_of_their_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The real Loader on pandas, told that its dataset lives on GPU 3: which GPU it is given, and who chooses one.
    chosen: dict[str, set[int]] = {"consumer": set(), "producer": set()}
    here = threading.get_ident()

    @dataclass(frozen=True)
    class OnGpu(FrameDevice):
        def use(self) -> None:
            chosen["consumer" if threading.get_ident() == here else "producer"].add(self.index)

    given: list[Any] = []
    stock = loader_class()

    class Recording(stock):  # type: ignore[misc, valid-type]
        def __init__(self, dataset: Any, *args: Any, device: Any = None, **rest: Any) -> None:
            given.append(device)
            super().__init__(dataset, *args, device=device, **rest)

    monkeypatch.setattr(model.data.dataset, "loader_class", lambda: Recording)
    monkeypatch.setattr(model.data.dataset, "frames_beside", lambda _: OnGpu(on_cpu=True, index=3))
    parquet_folder(tmp_path)
    rows = open_train(tmp_path, read_feature_spec(tmp_path), CPU)
    assert sum(len(block[0]) for block in rows.stream(50, CPU)) == rows.n_rows
    assert given == [3]
    assert chosen == {"consumer": {3}, "producer": {3}}
