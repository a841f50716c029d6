"""What a run writes, and that its metrics are those of its model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import preprocessing.__main__
import train
from model.data.test_set import open_test_set
from model.distributed.process_group import ProcessGroup
from model.evaluation.evaluator import Evaluator, EvaluatorConfig
from model.network.checkpoint import load_run, load_weights
from model.network.neumf import NeuMF
from model.scoring.scorer import Scorer
from preprocessing.spec.feature_spec import read_feature_spec

CPU = torch.device("cpu")
FLAGS = ["-b", "256", "-f", "4", "--layers", "16", "8", "-l", "0.01", "--device", "cpu"]
# Measured keys of metrics.json, which differ between any two runs.
MEASURED = {"train_throughput", "eval_throughput", "time_to_best_model", "peak_rss_mib"}


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def repeatable(folder: Path) -> dict[str, Any]:
    return {name: value for name, value in metrics_of(folder).items() if name not in MEASURED}


def log_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("DLLL ")) for line in path.read_text().splitlines()]


def test_a_run_writes_its_files(run: Path) -> None:
    assert {path.name for path in run.iterdir()} == {
        "README.md",
        "config.json",
        "config.yaml",
        "curves.png",
        "last",
        "log.json",
        "metrics.json",
        "model.safetensors",
        "tensorboard",
    }
    assert [path.name for path in (run / "last").iterdir()] == ["state.safetensors"]
    with Image.open(run / "curves.png") as image:
        assert image.format == "PNG"
        image.load()
        assert min(image.size) > 200
    config = json.loads((run / "config.json").read_text())
    assert config["features"] == {"user": "user", "item": "item"}
    assert config["train"]["epochs"] == 3
    assert config["model"]["layers"] == [16, 8]
    assert config["epoch"] == metrics_of(run)["best_epoch"]


def test_metrics_have_the_documented_keys(run: Path) -> None:
    metrics = metrics_of(run)
    assert set(metrics) == {
        "hr@10",
        "ndcg@10",
        "recall@10",
        "mrr",
        "coverage@10",
        "popularity_hr@10",
        "popularity_ndcg@10",
        "auc",
        "popularity_auc",
        "train_loss",
        "validation_loss",
        "best_epoch",
        "epochs",
        "train_throughput",
        "eval_throughput",
        "time_to_best_model",
        "selected_on",
        "series_left_out",
        "precision",
        "peak_rss_mib",
        "seed",
    }
    assert (metrics["selected_on"], metrics["series_left_out"]) == ("test", 0)
    assert (metrics["seed"], metrics["epochs"]) == (1, 3)
    assert 0 <= metrics["ndcg@10"] <= metrics["hr@10"] <= 1
    assert metrics["train_throughput"] > 0
    assert metrics["peak_rss_mib"] > 50


def test_metrics_match_the_saved_model(run: Path, data: Path) -> None:
    loaded = load_run(run, CPU).model
    opened = open_test_set(data, read_feature_spec(data), CPU)
    assert opened is not None
    evaluator = Evaluator(opened, EvaluatorConfig(10, 1 << 20), ProcessGroup(CPU))
    scores = evaluator.evaluate(lambda: Scorer(loaded))
    metrics = metrics_of(run)
    assert opened.length == 21
    assert (scores.hit_rate, scores.ndcg) == (metrics["hr@10"], metrics["ndcg@10"])
    assert scores.loss == pytest.approx(metrics["validation_loss"])
    reference = NeuMF(loaded.config)
    load_weights(data.parent / "checkpoints" / "model.pth", reference)
    for name, value in loaded.state_dict().items():
        assert torch.equal(reference.state_dict()[name], value)


def test_the_best_epoch_has_the_best_metric_in_the_log(run: Path) -> None:
    log, metrics = log_of(run / "log.json"), metrics_of(run)
    steps = [line["step"] for line in log if line["type"] == "LOG"]
    assert steps == ["PARAMETER", [0], [1], [2], []]
    parameters, *epochs, summary = (line["data"] for line in log if line["type"] == "LOG")
    assert parameters["seed"] == 1
    assert {"batch_size", "epochs", "factors", "layers", "learning_rate", "data"} <= set(parameters)
    hits = [epoch["hr@10"] for epoch in epochs]
    assert metrics["best_epoch"] == hits.index(max(hits))
    assert metrics["hr@10"] == max(hits)
    assert set(epochs[0]) == {
        "train_throughput",
        "eval_throughput",
        "train_epoch_time",
        "validation_epoch_time",
        "hr@10",
        "ndcg@10",
        "recall@10",
        "mrr",
        "coverage@10",
        "train_loss",
        "validation_loss",
    }
    assert set(summary) == {
        "best_train_throughput",
        "best_eval_throughput",
        "mean_train_throughput",
        "mean_eval_throughput",
        "best_accuracy",
        "best_epoch",
        "time_to_target",
        "time_to_best_model",
    }
    assert summary["best_epoch"] == metrics["best_epoch"]
    assert summary["best_accuracy"] == metrics["hr@10"] == metrics["recall@10"]
    assert summary["time_to_target"] is None
    train_samples = epochs[0]["train_throughput"] * epochs[0]["train_epoch_time"]
    assert train_samples == pytest.approx(5 * train_positives(run), rel=1e-6)


def train_positives(run: Path) -> int:
    data = Path(json.loads((run / "config.json").read_text())["data"])
    return json.loads((data / "stats.json").read_text())["train_positives"]


@pytest.mark.parametrize("file", ["run/model.safetensors", "checkpoints/model.pth"])
def test_mode_test_reproduces_the_metrics(run: Path, data: Path, tmp_path: Path, file: str) -> None:
    places = [
        "--data",
        str(data),
        "--output",
        str(tmp_path / "test"),
        "--load_checkpoint_path",
        str(data.parent / file),
    ]
    train.main([*places, *FLAGS, "--mode", "test"])
    found, trained = metrics_of(tmp_path / "test"), metrics_of(run)
    for name in ("hr@10", "ndcg@10", "popularity_hr@10", "popularity_ndcg@10", "validation_loss"):
        assert found[name] == trained[name]
    assert not (tmp_path / "test" / "model.safetensors").exists()


@pytest.mark.parametrize("k", [21, 22])
def test_topk_is_less_than_the_length_of_a_series(
    data: Path, tmp_path: Path, fails: Callable[..., str], k: int
) -> None:
    message = fails("--data", str(data), "--output", str(tmp_path / "run"), *FLAGS, "-k", str(k))
    assert f"--topk {k}: no series has more than 21 distinct items, so every model would hit" in message
    assert "lower it to 20 or less" in message
    assert list(tmp_path.iterdir()) == []


def test_the_seed_determines_everything(run: Path, data: Path, tmp_path: Path) -> None:
    weights = [(run / "model.safetensors").read_bytes()]
    for seed in ("1", "2"):
        torch.manual_seed(99)  # other draws from the global generator must not matter
        train.main(["--data", str(data), "--output", str(tmp_path / seed), *FLAGS, "-e", "3", "-s", seed])
        weights.append((tmp_path / seed / "model.safetensors").read_bytes())
    assert repeatable(tmp_path / "1") == repeatable(run)
    assert weights[1] == weights[0]
    assert weights[2] != weights[0]
    assert repeatable(tmp_path / "2")["train_loss"] != repeatable(run)["train_loss"]


def test_without_a_seed_each_run_draws_its_own(data: Path, tmp_path: Path) -> None:
    seeds = []
    for name in "ab":
        train.main(["--data", str(data), "--output", str(tmp_path / name), *FLAGS, "-e", "1", "-b", "100000"])
        seeds.append(metrics_of(tmp_path / name)["seed"])
        log = log_of(tmp_path / name / "log.json")
        assert next(line["data"]["seed"] for line in log if line.get("step") == "PARAMETER") == seeds[-1]
    assert seeds[0] != seeds[1]


def test_settings_change_the_names_of_metrics(data: Path, tmp_path: Path) -> None:
    places = ["--data", str(data), "--output", str(tmp_path / "run"), "--log_path", str(tmp_path / "elsewhere.json")]
    more = "-k 3 -t 0.01 -e 5 --loader memory --negatives uniform --amp --grads_accumulated 2 -s 1 --layers 8"
    train.main([*places, *FLAGS, *more.split()])
    metrics = metrics_of(tmp_path / "run")
    assert {"hr@3", "ndcg@3", "popularity_hr@3", "popularity_ndcg@3"} <= set(metrics)
    assert not any(name.endswith("@10") for name in metrics)
    assert metrics["epochs"] == 1  # the threshold is reached in the first epoch
    assert not (tmp_path / "run" / "log.json").exists()
    summary = log_of(tmp_path / "elsewhere.json")[-1]
    assert summary["step"] == []
    assert summary["data"]["time_to_target"] >= summary["data"]["time_to_best_model"]


def test_negatives_on_disk_are_used_instead_of_sampling(raw_log: Path, tmp_path: Path) -> None:
    columns = "--user user --item item --time time --test-negatives 20 --partitions 2 --train-negatives 2"
    preprocessing.__main__.main(["--input", str(raw_log), *columns.split(), "--output", str(tmp_path / "data")])
    train.main(["--data", str(tmp_path / "data"), "--output", str(tmp_path / "run"), *FLAGS, "-e", "1"])
    epoch = next(line["data"] for line in log_of(tmp_path / "run" / "log.json") if line.get("step") == [0])
    stats = json.loads((tmp_path / "data" / "stats.json").read_text())
    assert stats["train_rows"] == 3 * stats["train_positives"]
    assert epoch["train_throughput"] * epoch["train_epoch_time"] == pytest.approx(stats["train_rows"])
