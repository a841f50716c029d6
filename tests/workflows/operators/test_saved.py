"""A fitted workflow on disk: the reloaded one gives the same rows, and invalid files are rejected."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workflows.common.errors import UserError
from workflows.merlin import frame_dataset
from workflows.operators.encode import EncodeIds
from workflows.operators.item_statistics import ItemStatistics
from workflows.operators.leave_one_out import LeaveOneOut
from workflows.operators.saved import leave_one_out_workflow, load_workflow, read_categories, save_workflow
from workflows.sampling.config import KINDS, Sampling


def make_log(kind: str = "int64") -> pd.DataFrame:
    rng = np.random.default_rng(1)
    log = pd.DataFrame({name: rng.integers(0, high, 200) * 3 for name, high in (("who", 20), ("what", 30))})
    log = log.astype(kind)
    return log.assign(when=rng.integers(0, 50, 200))


def fitted(log: pd.DataFrame, sampling: Sampling = Sampling(seed=9)):  # noqa: B008 - it is frozen
    encoder = EncodeIds(keep=["when"])
    statistics = ItemStatistics(encoder, "what", "when") if sampling.needs_statistics else None
    split = LeaveOneOut(
        encoder, "who", "what", "when", test_negatives=5, train_negatives=2, sampling=sampling, statistics=statistics
    )
    workflow = leave_one_out_workflow(encoder, split)
    workflow.fit(frame_dataset(lambda _: log, 1, meta=log.iloc[:0], cpu=True))
    return workflow, encoder, split


def rows(workflow, log: pd.DataFrame) -> pd.DataFrame:
    dataset = frame_dataset(lambda _: log, 1, meta=log.iloc[:0], cpu=True)
    return workflow.transform(dataset).to_ddf().compute(scheduler="synchronous").reset_index(drop=True)


@pytest.mark.parametrize("kind", ["int32", "int64", "str"])
def test_a_reloaded_workflow_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    log = make_log(kind)
    workflow, encoder, split = fitted(log)
    save_workflow(tmp_path, encoder.categories, split)
    restored, its_encoder, its_split = load_workflow(tmp_path)
    pd.testing.assert_frame_equal(rows(restored, log), rows(workflow, log))
    for name in ("who", "what"):
        assert its_encoder.categories[name].tolist() == sorted(set(log[name]))
    for name in ("user", "item", "time", "test_negatives", "train_negatives", "sampling"):
        assert getattr(its_split, name) == getattr(split, name)


@pytest.mark.parametrize("time_aware", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_negatives_is_restored(tmp_path: Path, kind: str, time_aware: bool) -> None:
    log, later = make_log(), make_log().iloc[::3]  # fewer rows: the fitted statistics count, not those of the input
    sampling = Sampling(kind=kind, exponent=0.3, time_aware=time_aware, seed=4)
    workflow, encoder, split = fitted(log, sampling)
    save_workflow(tmp_path, encoder.categories, split)
    assert (tmp_path / "workflow" / "items.parquet").exists() == sampling.needs_statistics
    restored, _, its_split = load_workflow(tmp_path)
    assert its_split.sampling == sampling
    for some in (log, later):
        pd.testing.assert_frame_equal(rows(restored, some), rows(workflow, some))


def test_missing_or_broken_statistics_are_a_user_error(tmp_path: Path) -> None:
    _, encoder, split = fitted(make_log(), Sampling(kind="popularity"))
    save_workflow(tmp_path, encoder.categories, split)
    path = tmp_path / "workflow" / "items.parquet"
    n_items = pq.read_metadata(path).num_rows
    for wrong in (
        b"not parquet",
        {"count": [1] * n_items},
        {"count": [1] * (n_items - 1), "since": [1] * (n_items - 1)},
        {"count": [None] * n_items, "since": [1] * n_items},
        {"count": [-1] * n_items, "since": [1] * n_items},
        {"count": ["1"] * n_items, "since": [1] * n_items},
    ):
        path.write_bytes(wrong) if isinstance(wrong, bytes) else pq.write_table(pa.table(wrong), path)
        with pytest.raises(UserError, match="prepare the folder again"):
            load_workflow(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match="prepare the folder again"):
        load_workflow(tmp_path)


def test_the_saved_files_are_json_and_parquet_with_the_documented_columns(tmp_path: Path) -> None:
    log = make_log()
    _, encoder, split = fitted(log)
    save_workflow(tmp_path, encoder.categories, split)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["categories/what.parquet", "categories/who.parquet", "workflow/workflow.json"]
    table = pq.read_table(tmp_path / "categories" / "who.parquet")
    assert table.column("id").to_pylist() == list(range(20))
    assert table.column("original").to_pylist() == sorted(set(log["who"]))


def test_unknown_ids_are_still_unknown_after_loading(tmp_path: Path) -> None:
    _, encoder, split = fitted(make_log())
    save_workflow(tmp_path, encoder.categories, split)
    _, restored, _ = load_workflow(tmp_path)
    ids = pd.DataFrame({"who": [0, 1, 57], "what": [87, -1, 3]})
    selector = type("FeatureColumns", (), {"names": ["who", "what"]})
    assert restored.transform(selector, ids).to_numpy().tolist() == [[0, 29], [-1, -1], [19, 1]]


def saved(folder: Path) -> tuple[Path, dict]:
    _, encoder, split = fitted(make_log())
    save_workflow(folder, encoder.categories, split)
    path = folder / "workflow" / "workflow.json"
    return path, json.loads(path.read_text())


def test_a_folder_without_a_workflow_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"workflow\.json.*prepare the folder again"):
        load_workflow(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(format=1),
        lambda content: content.pop("format"),
        lambda content: content.pop("encoded"),
        lambda content: content.update(encoded=3),
        lambda content: content.update(encoded=[["who"]]),
        lambda content: content.pop("leave_one_out"),
        lambda content: content["leave_one_out"].pop("time"),
        lambda content: content.pop("sampling"),
        lambda content: content["sampling"].update(kind="os.system"),
        lambda content: content["sampling"].update(more=1),
    ],
)
def test_invalid_content_is_a_user_error(tmp_path: Path, change) -> None:
    path, content = saved(tmp_path)
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="prepare the folder again"):
        load_workflow(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"text"', b"\xff\xfe\x00"])
def test_broken_json_is_a_user_error(tmp_path: Path, text: str | bytes) -> None:
    path, _ = saved(tmp_path)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match="prepare the folder again"):
        load_workflow(tmp_path)


@pytest.mark.parametrize(
    "table",
    [
        {"id": [0, 2], "original": [5, 6]},
        {"id": [1, 0], "original": [5, 6]},
        {"id": [0, None], "original": [5, 6]},
        {"id": ["0", "1"], "original": [5, 6]},
        {"id": [0, 1]},
        {"original": [5, 6]},
        None,
    ],
)
def test_a_broken_id_table_is_a_user_error(tmp_path: Path, table: dict | None) -> None:
    saved(tmp_path)
    path = tmp_path / "categories" / "who.parquet"
    if table is None:
        path.write_bytes(b"not parquet")
    else:
        pq.write_table(pa.table(table), path)
    with pytest.raises(UserError, match=r"(?s)who\.parquet.*prepare the folder again"):
        load_workflow(tmp_path)


def test_a_missing_id_table_is_a_user_error(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "categories" / "what.parquet").unlink()
    with pytest.raises(UserError, match=r"what\.parquet"):
        load_workflow(tmp_path)


def test_a_column_name_cannot_escape_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "secret.parquet"
    pq.write_table(pa.table({"id": np.arange(1, dtype=np.int32), "original": ["secret"]}), outside)
    folder = tmp_path / "prepared"
    folder.mkdir()
    saved(folder)
    for name in ("../../secret", str(outside.with_suffix(""))):
        with pytest.raises(UserError):
            read_categories(folder, name)
