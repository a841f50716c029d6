"""Folders of the reference's users, in every layout, and its documentation's example."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

import model.recommend.__main__
import preprocessing.__main__
import train

FLAGS = ["-b", "256", "-f", "4", "--layers", "16", "8", "-l", "0.01", "--device", "cpu"]
Command = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.usefixtures("forked")


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def log_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("DLLL ")) for line in path.read_text().splitlines()]


# Layouts of foreign folders: file types and columns of each mapping, and how test series are declared.
SIZES = {"reader": 12, "book": 15}


def foreign_rows(length: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Unordered train rows that include negatives, and series of `length`, positive first."""
    rng = np.random.default_rng(0)
    books = [rng.permutation(SIZES["book"]) for _ in range(SIZES["reader"])]
    train_rows = [(u, b, int(place < 4)) for u, own in enumerate(books) for place, b in enumerate(own[:8])]
    test_rows = [(u, b, int(place == 0)) for u, own in enumerate(books) for place, b in enumerate(own[8 : 8 + length])]
    names = ["reader", "book", "bought"]
    return pd.DataFrame(rng.permutation(train_rows), columns=names), pd.DataFrame(test_rows, columns=names)


def write_chunk(kind: str, frame: pd.DataFrame, path: Path) -> None:
    if kind == "csv":
        frame.to_csv(path, header=False, index=False)
    elif kind == "parquet":
        frame.to_parquet(path, index=False)
    else:
        torch.save(torch.tensor(frame.to_numpy()), path)


@pytest.mark.parametrize(("kind", "length"), [("csv", 3), ("torch_tensor", 7), ("parquet", 2)])
def test_a_foreign_folder_trains_as_it_is(tmp_path: Path, command: Command, kind: str, length: int) -> None:
    # Column-wise chunks, several files per chunk, custom names, train with negatives, series of any length.
    sources: dict[str, list[dict[str, Any]]] = {}
    for mapping, frame in zip(("train", "test"), foreign_rows(length), strict=True):
        pairs = frame[["book", "bought"]]
        files = {f"{mapping}.a": pairs[:20], f"{mapping}.b": pairs[20:], f"{mapping}.u": frame[["reader"]]}
        for name, part in files.items():
            write_chunk(kind, part, tmp_path / name)
        sources[mapping] = [
            {"type": kind, "features": ["book", "bought"], "files": [f"{mapping}.a", f"{mapping}.b"]},
            {"type": kind, "features": ["reader"], "files": [f"{mapping}.u"]},
        ]
    spec = {
        "channel_spec": {"user_ch": ["reader"], "item_ch": ["book"], "label_ch": ["bought"]},
        "feature_spec": {"bought": None, **{name: {"cardinality": size} for name, size in SIZES.items()}},
        "metadata": None if length == 7 else {"test_samples_per_series": length},
        "source_spec": sources,
    }
    (tmp_path / "their.yaml").write_text(yaml.safe_dump(spec))
    places = ["--data", str(tmp_path), "--feature_spec_file", "their.yaml", "--output", str(tmp_path / "run")]
    done = command("train.py", *places, *FLAGS, "-e", "1", "-k", "1", "-n", "3")
    assert ("test series of 7 rows, found in the data" in done.stdout) == (length == 7)
    metrics = metrics_of(tmp_path / "run")
    assert metrics["selected_on"] == "test"
    assert 0 <= metrics["ndcg@1"] <= metrics["hr@1"] <= 1
    epoch = next(line["data"] for line in log_of(tmp_path / "run" / "log.json") if line.get("step") == [0])
    samples = 12 * 8 + 3 * 12 * 4  # all rows, plus 3 sampled negatives for each of 4 positives per user
    assert epoch["train_throughput"] * epoch["train_epoch_time"] == pytest.approx(samples)


EXAMPLE_SIZES = {"user_gender": 2, "user_id": 20, "item_id": 30}


def example_folder(folder: Path, ages_of_users: bool, **metadata: int) -> Path:
    """The example in the reference's documentation: CSV, train in two chunks, one with two files."""
    rng = np.random.default_rng(0)
    folder.mkdir()

    def table(rows: int, per_user: int) -> pd.DataFrame:
        users = np.repeat(np.arange(rows // per_user) % 20, per_user)
        owner = users if ages_of_users else rng.integers(0, 1000, rows)
        columns = {"user_gender": owner % 2, "user_age": np.round(owner % 50 / 25 - 1, 2), "user_id": users}
        columns["item_id"] = rng.integers(0, 30, rows)
        columns["label"] = (np.arange(rows) % per_user == 0) if per_user == 5 else rng.integers(0, 2, rows)
        return pd.DataFrame(columns).astype({"label": int})

    train_rows, test_rows = table(240, 12), table(100, 5)
    files = {"train_0_0.csv": train_rows.iloc[:100, :2], "train_0_1.csv": train_rows.iloc[100:, :2]}
    for name, part in {**files, "train_1.csv": train_rows.iloc[:, 2:], "test.csv": test_rows}.items():
        write_chunk("csv", part, folder / name)
    spec = {
        "channel_spec": {
            "numeric_inputs": ["user_age"],
            "categorical_user_inputs": ["user_gender", "user_id"],
            "categorical_item_inputs": ["item_id"],
            "label_ch": ["label"],
        },
        "feature_spec": {
            **{name: {"dtype": "torch.int64", "cardinality": size} for name, size in EXAMPLE_SIZES.items()},
            "user_age": {"dtype": "torch.float32"},
            "label": {"dtype": "torch.float32"},
        },
        "metadata": metadata,
        "source_spec": {
            "train": [
                {"type": "csv", "features": ["user_gender", "user_age"], "files": list(files)},
                {"type": "csv", "features": ["user_id", "item_id", "label"], "files": ["train_1.csv"]},
            ],
            "test": [{"type": "csv", "features": list(test_rows), "files": ["test.csv"]}],
        },
    }
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(spec))
    return folder


@pytest.mark.parametrize("ages_of_users", [True, False], ids=["of users", "of rows"])
def test_the_example_of_the_reference_trains_tests_and_recommends(
    tmp_path: Path, command: Command, ages_of_users: bool
) -> None:
    data, run = example_folder(tmp_path / "data", ages_of_users), tmp_path / "run"
    places = f"--data {data} --output {run} --checkpoint_dir {tmp_path / 'checkpoints'}"
    trained = command("train.py", *places.split(), *FLAGS, *["-e", "2", "-k", "3", "-s", "1"])
    assert "test series of 5 rows, found in the data" in trained.stdout
    config = json.loads((run / "config.json").read_text())
    assert config["features"] == {"user": "user_id", "item": "item_id"}
    gender, age = {"name": "user_gender", "cardinality": 2}, {"name": "user_age", "cardinality": None}
    assert (config["model"]["row_side"], config["model"]["item_side"]) == ([gender, age], [])
    for weights in (run / "model.safetensors", tmp_path / "checkpoints" / "model.pth"):
        places = f"--data {data} --output {tmp_path / weights.suffix} --load_checkpoint_path {weights} --mode test"
        train.main([*places.split(), *FLAGS, "-k", "3"])
        found = metrics_of(tmp_path / weights.suffix)
        for name in ("hr@3", "ndcg@3", "validation_loss"):
            assert found[name] == metrics_of(run)[name]
    shown = command(*f"-m model.recommend --run {run} --user 7 -k 4".split())
    assert len(shown.stdout.splitlines()) == 6


def test_the_example_of_the_reference_with_auto_and_text_trains_after_transcoding(tmp_path: Path) -> None:
    source, data = example_folder(tmp_path / "source", True), str(tmp_path / "data")
    spec = yaml.safe_load((source / "feature_spec.yaml").read_text())
    for name in EXAMPLE_SIZES:
        spec["feature_spec"][name]["cardinality"] = "auto"
    (source / "feature_spec.yaml").write_text(yaml.safe_dump(spec))
    for path in (source / "train_0_0.csv", source / "train_0_1.csv", source / "test.csv"):
        lines = [line.split(",", 1) for line in path.read_text().splitlines()]
        path.write_text("".join(f"{'fm'[int(gender)]},{rest}\n" for gender, rest in lines))
    preprocessing.__main__.main(["--input", str(source), "--output", data])
    train.main(["--data", data, "--output", str(tmp_path / "run"), *FLAGS, "-e", "1", "-k", "3"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())["model"]
    assert (config["n_users"], config["n_items"]) == (20, 30)
    assert [side["cardinality"] for side in config["row_side"]] == [2, None]


def test_an_id_feature_can_be_named_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    data, run = example_folder(tmp_path / "data", True, test_samples_per_series=5), tmp_path / "run"
    places = ["--data", str(data), "--output", str(run), *FLAGS, "-e", "1", "-k", "3"]
    train.main([*places, "--user_feature", "user_gender"])
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["n_users"] == 2
    assert config["features"]["user"] == "user_gender"
    model.recommend.__main__.main(["--run", str(run), "--user", "1", "-k", "2"])
    assert "user 1\n" in capsys.readouterr().out
    message = fails(*places, "--overwrite", "--item_feature", "nothing")
    assert "--item_feature nothing: not in feature_spec" in message


def test_the_error_for_auto_suggests_transcoding(tmp_path: Path, fails: Callable[..., str]) -> None:
    data = example_folder(tmp_path / "data", True)
    text = (data / "feature_spec.yaml").read_text()
    (data / "feature_spec.yaml").write_text(text.replace("cardinality: 20", "cardinality: auto"))
    message = fails("--data", str(data), "--output", str(tmp_path / "run"), *FLAGS)
    assert "user_id" in message
    assert "python -m preprocessing --input FOLDER --output DIR" in message


def unequal_test_rows(data: Path) -> Path:
    """Drop the last test row, so that the rows no longer form series."""
    lines = (data / "test.csv").read_text().splitlines()
    (data / "test.csv").write_text("\n".join(lines[:-1]) + "\n")
    return data


def test_rows_without_series_are_evaluated_by_auc(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = unequal_test_rows(example_folder(tmp_path / "data", True)), tmp_path / "run"
    train.main(["--data", str(data), "--output", str(run), *FLAGS, "-e", "3", "-s", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("AUC instead of HR and NDCG: metadata.test_samples_per_series is missing, and the 99 ")
    metrics = metrics_of(run)
    unknown = ["hr@10", "ndcg@10", "popularity_hr@10", "popularity_ndcg@10"]
    assert [metrics[name] for name in unknown] == [None] * 4
    assert metrics["selected_on"] == "test"
    assert metrics["validation_loss"] > 0
    shown = f"AUC {metrics['auc']:.4f} (popularity {metrics['popularity_auc']:.4f}), validation loss "
    assert any(line.startswith(shown) for line in lines)
    *epochs, summary = [line["data"] for line in log_of(run / "log.json") if line["type"] == "LOG"][1:]
    assert not any("hr@10" in epoch for epoch in epochs)
    areas = [epoch["auc"] for epoch in epochs]
    assert (metrics["auc"], metrics["best_epoch"]) == (max(areas), areas.index(max(areas)))
    assert summary["best_accuracy"] == metrics["auc"]
    with Image.open(run / "curves.png") as image:
        image.load()
        assert image.width > 1.5 * image.height  # loss and AUC
    places = ["--data", str(data), "--output", str(tmp_path / "test"), "--mode", "test"]
    train.main([*places, *FLAGS, "--load_checkpoint_path", str(run / "model.safetensors")])
    assert metrics_of(tmp_path / "test")["auc"] == metrics["auc"]
