"""A fitted workflow on disk: the one that comes back gives the same rows, and nothing else is accepted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workflows.errors import UserError
from workflows.merlin import frame_dataset
from workflows.operators import EncodeIds, LeaveOneOut
from workflows.state import leave_one_out_workflow, load_workflow, read_categories, save_workflow


def make_log(kind: str = "int64") -> pd.DataFrame:
    rng = np.random.default_rng(1)
    log = pd.DataFrame({name: rng.integers(0, high, 200) * 3 for name, high in (("who", 20), ("what", 30))})
    log = log.astype(kind)
    return log.assign(when=rng.integers(0, 50, 200))


def fitted(log: pd.DataFrame):
    encoder = EncodeIds()
    split = LeaveOneOut(encoder, "who", "what", "when", test_negatives=5, train_negatives=2, seed=9)
    workflow = leave_one_out_workflow(encoder, split)
    workflow.fit(frame_dataset(lambda _: log, 1, meta=log.iloc[:0], cpu=True))
    return workflow, encoder, split


def rows(workflow, log: pd.DataFrame) -> pd.DataFrame:
    dataset = frame_dataset(lambda _: log, 1, meta=log.iloc[:0], cpu=True)
    return workflow.transform(dataset).to_ddf().compute(scheduler="synchronous").reset_index(drop=True)


@pytest.mark.parametrize("kind", ["int32", "int64", "str"])
def test_a_workflow_that_was_saved_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    log = make_log(kind)
    workflow, encoder, split = fitted(log)
    save_workflow(tmp_path, encoder, split)
    restored, its_encoder, its_split = load_workflow(tmp_path)
    pd.testing.assert_frame_equal(rows(restored, log), rows(workflow, log))
    for name in ("who", "what"):
        assert its_encoder.categories[name].tolist() == sorted(set(log[name]))
    for name in ("user", "item", "time", "test_negatives", "train_negatives", "seed"):
        assert getattr(its_split, name) == getattr(split, name)


def test_what_is_saved_is_json_and_parquet_with_the_documented_columns(tmp_path: Path) -> None:
    log = make_log()
    _, encoder, split = fitted(log)
    save_workflow(tmp_path, encoder, split)
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert files == ["categories/what.parquet", "categories/who.parquet", "workflow/workflow.json"]
    table = pq.read_table(tmp_path / "categories" / "who.parquet")
    assert table.column("id").to_pylist() == list(range(20))
    assert table.column("original").to_pylist() == sorted(set(log["who"]))


def test_unknown_originals_are_unknown_after_loading_too(tmp_path: Path) -> None:
    _, encoder, split = fitted(make_log())
    save_workflow(tmp_path, encoder, split)
    _, restored, _ = load_workflow(tmp_path)
    ids = pd.DataFrame({"who": [0, 1, 57], "what": [87, -1, 3]})
    selector = type("Columns", (), {"names": ["who", "what"]})
    assert restored.transform(selector, ids).to_numpy().tolist() == [[0, 29], [-1, -1], [19, 1]]


def saved(folder: Path) -> tuple[Path, dict]:
    _, encoder, split = fitted(make_log())
    save_workflow(folder, encoder, split)
    path = folder / "workflow" / "workflow.json"
    return path, json.loads(path.read_text())


def test_a_folder_without_a_workflow_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"workflow\.json.*prepare the folder again"):
        load_workflow(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(format=2),
        lambda content: content.pop("format"),
        lambda content: content.pop("operators"),
        lambda content: content["operators"].pop(),
        lambda content: content["operators"].reverse(),
        lambda content: content["operators"][1].pop("seed"),
        lambda content: content["operators"][0].update(operator="os.system"),
        lambda content: content["operators"][0].update(columns=None),
    ],
)
def test_another_content_is_a_users_mistake(tmp_path: Path, change) -> None:
    path, content = saved(tmp_path)
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="prepare the folder again"):
        load_workflow(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"text"', b"\xff\xfe\x00"])
def test_broken_json_is_a_users_mistake(tmp_path: Path, text: str | bytes) -> None:
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
def test_a_broken_table_of_ids_is_a_users_mistake(tmp_path: Path, table: dict | None) -> None:
    saved(tmp_path)
    path = tmp_path / "categories" / "who.parquet"
    if table is None:
        path.write_bytes(b"not parquet")
    else:
        pq.write_table(pa.table(table), path)
    with pytest.raises(UserError, match=r"(?s)who\.parquet.*prepare the folder again"):
        load_workflow(tmp_path)


def test_a_missing_table_of_ids_is_a_users_mistake(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "categories" / "what.parquet").unlink()
    with pytest.raises(UserError, match=r"what\.parquet"):
        load_workflow(tmp_path)


def test_a_column_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    outside = tmp_path / "secret.parquet"
    pq.write_table(pa.table({"id": np.arange(1, dtype=np.int32), "original": ["secret"]}), outside)
    folder = tmp_path / "prepared"
    folder.mkdir()
    saved(folder)
    for name in ("../../secret", str(outside.with_suffix(""))):
        with pytest.raises(UserError):
            read_categories(folder, name)
