"""The training command, and end-to-end runs from a real log to recommendations."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

import model.export.__main__
import model.recommend.__main__
import model.run.arguments
import model.serve.__main__
import preprocessing.__main__
import train
from model.data.test_set import open_test_set
from model.distributed.process_group import ProcessGroup
from model.evaluation.evaluator import Evaluator, EvaluatorConfig
from model.network.checkpoint import load_run, load_weights
from model.network.neumf import NeuMF
from model.run.run_writer import RunWriter
from model.scoring.scorer import Scorer
from model.training.trainer import Training
from preprocessing.sources.movielens import sample_file
from preprocessing.spec.feature_spec import read_feature_spec
from workflows.common.errors import run_command

ROOT = Path(__file__).parent.parent
CPU = torch.device("cpu")
FLAGS = ["-b", "256", "-f", "4", "--layers", "16", "8", "-l", "0.01", "--device", "cpu"]
# Measured keys of metrics.json, which differ between any two runs.
MEASURED = {"train_throughput", "eval_throughput", "time_to_best_model", "peak_rss_mib"}


def write_log(path: Path) -> Path:
    rng = np.random.default_rng(0)
    columns = {"user": rng.integers(0, 40, 500), "item": rng.integers(0, 50, 500), "time": np.arange(500)}
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    log = write_log(folder / "log.csv")
    columns = "--user user --item item --time time --test-negatives 20 --partitions 2"
    preprocessing.__main__.main(["--input", str(log), *columns.split(), "--output", str(folder / "prepared")])
    return folder / "prepared"


@pytest.fixture(scope="module")
def run(data: Path) -> Path:
    """A finished run of three epochs."""
    folder = data.parent / "run"
    places = ["--data", str(data), "--output", str(folder), "--checkpoint_dir", str(data.parent / "checkpoints")]
    train.main([*places, *FLAGS, "-e", "3", "-s", "1"])
    return folder


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, including hidden ones, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def repeatable(folder: Path) -> dict[str, Any]:
    return {name: value for name, value in metrics_of(folder).items() if name not in MEASURED}


def log_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line.removeprefix("DLLL ")) for line in path.read_text().splitlines()]


def fails(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """The error message of a command that exits with status 2."""
    with pytest.raises(SystemExit) as error:
        run_command(lambda: train.main(flags))
    assert error.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.count("error: ") == 1
    assert "Traceback" not in captured.err
    return captured.err


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
        "peak_rss_mib",
        "seed",
    }
    assert metrics["selected_on"] == "test"
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


def test_topk_may_be_as_long_as_a_series(run: Path, data: Path, tmp_path: Path) -> None:
    places = ["--data", str(data), "--output", str(tmp_path / "test")]
    weights = ["--load_checkpoint_path", str(run / "model.safetensors")]
    train.main([*places, *weights, *FLAGS, "--mode", "test", "-k", "21"])
    assert metrics_of(tmp_path / "test")["hr@21"] == 1.0


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


def test_negatives_on_disk_are_used_instead_of_sampling(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.csv")
    columns = "--user user --item item --time time --test-negatives 20 --partitions 2 --train-negatives 2"
    preprocessing.__main__.main(["--input", str(log), *columns.split(), "--output", str(tmp_path / "data")])
    train.main(["--data", str(tmp_path / "data"), "--output", str(tmp_path / "run"), *FLAGS, "-e", "1"])
    epoch = next(line["data"] for line in log_of(tmp_path / "run" / "log.json") if line.get("step") == [0])
    stats = json.loads((tmp_path / "data" / "stats.json").read_text())
    assert stats["train_rows"] == 3 * stats["train_positives"]
    assert epoch["train_throughput"] * epoch["train_epoch_time"] == pytest.approx(stats["train_rows"])


@pytest.mark.parametrize("flag", ["--checkpoint_dir", "--load_checkpoint_path", "--log_path"])
def test_an_empty_path_means_none(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    # The reference's default of --checkpoint_dir is empty, and its users' scripts pass it on.
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    train.main(["--data", str(data), "--output", str(tmp_path / "run"), *FLAGS, "-e", "1", "-b", "100000", flag, ""])
    assert list((tmp_path / "here").iterdir()) == []


def test_an_existing_output_is_not_touched(run: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(run)
    message = fails(capsys, "--data", str(data), "--output", str(run), *FLAGS)
    assert "--overwrite" in message
    assert contents(run) == before


def test_zero_gpus_is_rejected(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "--data", str(data), "--output", str(tmp_path / "run"), "--device", "cpu", "--gpus", "0")
    assert "--gpus should be 1 or more, got 0" in message


def test_overwrite_replaces_only_runs(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--data", str(data), "--overwrite", *FLAGS, "-e", "1", "-b", "100000"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    assert "thesis" not in fails(capsys, *places, "--output", str(tmp_path / "run"))
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"
    for seed in ("1", "2"):
        train.main([*places, "--output", str(tmp_path / "new"), "-s", seed])
        assert metrics_of(tmp_path / "new")["seed"] == int(seed)


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "log.json", "model.safetensors"])
def test_overwrite_does_not_touch_foreign_files(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    # Common file names do not identify a run.
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / name).write_text('{"model": {"type": "bert"}, "seed": 3}')
    message = fails(capsys, "--data", str(data), "--output", str(theirs), "--overwrite", *FLAGS)
    assert "not written by this command" in message
    assert contents(tmp_path) == {f"theirs/{name}": b'{"model": {"type": "bert"}, "seed": 3}'}


@pytest.mark.parametrize("what", ["data", "checkpoint"])
def test_an_output_containing_an_input_is_not_touched(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    output = tmp_path / "run"
    shutil.copytree(run, output)
    shutil.copytree(data, output / "data")
    before = contents(tmp_path)
    inputs = {
        "data": ["--data", str(output / "data")],
        "checkpoint": ["--data", str(data), "--load_checkpoint_path", str(output / "model.safetensors")],
    }
    message = fails(capsys, *inputs[what], "--output", str(output), "--overwrite", *FLAGS)
    assert "which this command reads" in message
    assert contents(tmp_path) == before


def test_a_diverging_run_leaves_nothing_behind(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails(capsys, "--data", str(data), "--output", str(tmp_path / "run"), *FLAGS, "-l", "1e30")
    assert "--learning_rate" in message
    assert list(tmp_path.iterdir()) == []


def test_a_diverging_run_restores_the_run_it_was_to_replace(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    before = contents(tmp_path)
    places = ["--data", str(data), "--output", str(tmp_path / "run"), "--overwrite"]
    assert "--learning_rate" in fails(capsys, *places, *FLAGS, "-l", "1e30")
    assert contents(tmp_path) == before


def test_an_unwritable_log_restores_the_old_run(run: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "file").touch()
    before = contents(tmp_path)
    places = ["--data", str(data), "--output", str(tmp_path / "run"), "--overwrite"]
    with pytest.raises(OSError, match="file"):
        train.main([*places, *FLAGS, "--log_path", str(tmp_path / "file" / "log.json")])
    assert contents(tmp_path) == before


@pytest.mark.parametrize("log", [[], ["--log_path", "{tmp}/log.json"]], ids=["log within", "log elsewhere"])
def test_an_interrupt_before_the_first_model_restores_the_old_run(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    shutil.copytree(run, tmp_path / "run")
    before = contents(tmp_path / "run")
    monkeypatch.setattr(Training, "fit", interrupted)
    for name in ("run", "new"):
        places = ["--data", str(data), "--output", str(tmp_path / name), *(part.format(tmp=tmp_path) for part in log)]
        with pytest.raises(KeyboardInterrupt):
            train.main([*places, *FLAGS, "--overwrite"])
    assert contents(tmp_path / "run") == before
    assert {path.name for path in tmp_path.iterdir()} == ({"run", "log.json"} if log else {"run"})


def test_an_interrupt_after_the_first_model_keeps_the_new_run(
    run: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep = RunWriter.epoch

    def interrupted(*args: Any) -> None:
        keep(*args)
        raise KeyboardInterrupt

    shutil.copytree(run, tmp_path / "run")
    places = ["--data", str(data), "--output", str(tmp_path / "run"), "--overwrite", *FLAGS]
    with monkeypatch.context() as patched:
        patched.setattr(RunWriter, "epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train.main([*places, "-s", "2"])
    assert {path.name for path in tmp_path.iterdir()} == {"run"}
    kept = {"config.json", "config.yaml", "last", "log.json", "model.safetensors", "tensorboard"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == kept
    assert load_run(tmp_path / "run", CPU).config["train"]["seed"] == 2
    train.main([*places, "-e", "1", "-b", "100000"])  # an unfinished run can be overwritten, too
    assert (tmp_path / "run" / "metrics.json").is_file()


@pytest.mark.parametrize("left", ["nothing", "log.json", "config.yaml"])
def test_the_remains_of_a_killed_run_can_be_overwritten(run: Path, data: Path, tmp_path: Path, left: str) -> None:
    (tmp_path / "run").mkdir()
    if left != "nothing":
        (tmp_path / "run" / left).write_bytes((run / left).read_bytes()[:1000])
    places = ["--data", str(data), "--output", str(tmp_path / "run"), "--overwrite"]
    train.main([*places, *FLAGS, "-e", "1", "-b", "100000"])
    assert (tmp_path / "run" / "metrics.json").is_file()


def single_interactions(path: Path) -> Path:
    pd.DataFrame({"user": range(9), "item": [0, 1, 2] * 3, "time": range(9)}).to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("write", "negatives", "series"),
    [(write_log, "0", 40), (single_interactions, "20", 0), (single_interactions, "0", 0)],
    ids=["no negatives", "single interactions", "neither"],
)
def test_data_without_series_to_rank_trains_and_recommends(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    write: Callable[[Path], Path],
    negatives: str,
    series: int,
) -> None:
    log, data, run = write(tmp_path / "log.csv"), str(tmp_path / "data"), tmp_path / "run"
    preprocessing.__main__.main(["--input", str(log), "--output", data, "--test-negatives", negatives])
    assert json.loads((tmp_path / "data" / "stats.json").read_text())["test_series"] == series
    train.main(["--data", data, "--output", str(run), *FLAGS, "-e", "2", "-s", "1", "-k", "3"])
    assert "nothing was evaluated" in capsys.readouterr().out
    metrics = metrics_of(run)
    unknown = ["hr@3", "ndcg@3", "popularity_hr@3", "popularity_ndcg@3", "validation_loss", "eval_throughput"]
    assert [metrics[name] for name in unknown] == [None] * 6
    assert (metrics["selected_on"], metrics["best_epoch"], metrics["epochs"]) == ("last", 1, 2)
    assert metrics["train_loss"] > 0
    *_, epoch, summary = (line["data"] for line in log_of(run / "log.json") if line["type"] == "LOG")
    assert set(epoch) == {"train_throughput", "train_epoch_time", "train_loss"}
    assert [summary[name] for name in ("best_accuracy", "best_eval_throughput", "time_to_target")] == [None] * 3
    with Image.open(run / "curves.png") as image:
        image.load()
        assert image.width < 1.5 * image.height  # only the loss
    model.recommend.__main__.main(["--run", str(run), "--user", "0", "8", "-k", "2"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "user 0"
    assert lines.index("user 8") == 4
    seen = pd.read_csv(log).groupby("user")["item"].agg(set)
    for user, start in ((0, 2), (8, 6)):
        recommended = {int(line.split()[1]) for line in lines[start : start + 2]}
        assert len(recommended) == 2
        assert not recommended & seen[user]


def test_mode_test_without_series_is_rejected(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(data, tmp_path / "data")
    spec = yaml.safe_load((data / "feature_spec.yaml").read_text())
    del spec["source_spec"]["test"]
    (tmp_path / "data" / "feature_spec.yaml").write_text(yaml.safe_dump(spec))
    places = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "test"), "--mode", "test"]
    message = fails(capsys, *places, "--load_checkpoint_path", str(run / "model.safetensors"), *FLAGS)
    assert "no test series to rank" in message
    assert not (tmp_path / "test").exists()


def test_a_test_run_can_be_overwritten(run: Path, data: Path, tmp_path: Path) -> None:
    places = ["--data", str(data), "--output", str(tmp_path / "test"), "--overwrite"]
    for _ in range(2):
        train.main([*places, "--load_checkpoint_path", str(run / "model.safetensors"), *FLAGS, "--mode", "test"])


@pytest.mark.parametrize("name", ["a[b]", "[red]", "[/x]"])
def test_an_output_may_have_any_name(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    output = tmp_path / name
    train.main(["--data", str(data), "--output", str(output), *FLAGS, "-e", "1", "-b", "100000"])
    assert f"results in {output}\n" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "flags",
    [["--gpus", "8"], ["--device", "cuda"], ["--gpus", "1"], ["--device", "cuda", "--gpus", "2"]],
)
def test_a_missing_gpu_is_rejected(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    message = fails(capsys, "--data", str(data), "--output", str(tmp_path / "run"), *flags)
    assert "--device cpu" in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--data", "{tmp}/nowhere"], "nowhere/feature_spec.yaml does not exist"),
        (["--topk", "22"], "--topk 22"),
        (["--mode", "test"], "--load_checkpoint_path"),
        (["--load_checkpoint_path", "{tmp}/gone.pth"], "gone.pth"),
        (["--layers", "7", "4"], "even"),
        (["-e", "0"], "--epochs"),
        (["-s", "-1"], "--seed"),
        (["--feature_spec_file", "other.yaml"], "other.yaml"),
    ],
)
def test_user_errors_are_reported_before_anything_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str
) -> None:
    given = [flag.format(tmp=tmp_path) for flag in flags]
    message = fails(capsys, "--data", str(data), "--output", str(tmp_path / "run"), "--device", "cpu", *given)
    assert said in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [["--surprise"], ["--epoch", "3"], ["-e", "three"], ["--negatives", "none"], ["x"]])
def test_unknown_flags_are_rejected(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        train.main(flags)
    assert error.value.code == 2
    assert "usage" in capsys.readouterr().err.lower()


@pytest.fixture
def parser_of(monkeypatch: pytest.MonkeyPatch) -> Callable[..., argparse.ArgumentParser]:
    """Capture a command's parser just before it parses."""
    caught: list[argparse.ArgumentParser] = []

    def parse_args(parser: argparse.ArgumentParser, _: object) -> None:
        caught.append(parser)
        parser.exit()

    def catch(parse: Callable[[list[str]], object]) -> argparse.ArgumentParser:
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        with pytest.raises(SystemExit):
            parse([])
        return caught.pop()

    return catch


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings}


# Adding a flag is a deliberate decision: new flags must be listed here.
TRAIN_FLAGS = """
    -h --help --data --feature_spec_file --user_feature --item_feature --output --overwrite --config --resume --without
    --checkpoint_dir --load_checkpoint_path --log_path --mode
    -f --factors --layers --dropout -e --epochs -b --batch_size -n --negative_samples --negatives -l --learning_rate
    -b1 --beta1 -b2 --beta2 --eps --grads_accumulated -s --seed --amp --precision --compile --cuda-graphs
    --patience -k --topk -t --threshold --eval --validation --valid_batch_size
    --device --gpus --arch --pretrained --alpha --loss --weight_decay --recency --schedule --members
--loader
"""
PREPARE_FLAGS = """
    -h --help --sample --input --synthetic --check --raw --features --workflow --extend --user --item --time --rating
    --columns --min-rating --strict --output --overwrite --test-negatives --valid_negative --train-negatives --negatives
    --popularity-exponent --time-aware -s --seed --feature_spec_in --feature_spec_out --emit --device --partitions
    --scheduler --workers --memory-limit
"""
RECOMMEND_FLAGS = """
    -h --help --run --user --users-file --all -k --candidates --exclude-seen --no-exclude-seen --unknown-users --titles
    --output --overwrite --data --device
"""
EXPORT_FLAGS = "-h --help --run --format --output --overwrite --data"
SERVE_FLAGS = "-h --help --run --data --titles --host --port --unknown-users --device"


def test_every_flag_is_listed(parser_of: Callable[..., argparse.ArgumentParser]) -> None:
    assert flags_of(parser_of(model.run.arguments.parse_args)) == set(TRAIN_FLAGS.split())
    assert flags_of(parser_of(preprocessing.__main__.parse_args)) == set(PREPARE_FLAGS.split())
    assert flags_of(parser_of(model.recommend.__main__.parse_args)) == set(RECOMMEND_FLAGS.split())
    assert flags_of(parser_of(model.export.__main__.parse_args)) == set(EXPORT_FLAGS.split())
    assert flags_of(parser_of(model.serve.__main__.parse_args)) == set(SERVE_FLAGS.split())


def test_defaults_match_the_reference() -> None:
    args = vars(model.run.arguments.parse_args([]))
    reference = {
        "data": Path("/data/cache/ml-20m"),
        "feature_spec_file": "feature_spec.yaml",
        "user_feature": None,
        "item_feature": None,
        "epochs": 30,
        "batch_size": 2**20,
        "valid_batch_size": 2**20,
        "factors": 64,
        "layers": [256, 256, 128, 64],
        "negative_samples": 4,
        "learning_rate": 0.0045,
        "topk": 10,
        "seed": None,
        "threshold": 1.0,
        "beta1": 0.25,
        "beta2": 0.5,
        "eps": 1e-8,
        "dropout": 0.5,
        "mode": "train",
        "grads_accumulated": 1,
        "amp": False,
        "checkpoint_dir": None,
        "load_checkpoint_path": None,
        "log_path": None,
    }
    ours = {
        "output": Path("runs/ml-20m"),
        "overwrite": False,
        "config": None,
        "resume": None,
        "without": [],
        "negatives": "exact",
        "precision": None,
        "compile": False,
        "cuda_graphs": False,
        "patience": None,
        "eval": "sampled",
        "validation": "none",
        "device": "auto",
        "gpus": None,
        "loader": "merlin",
        "arch": "neumf",
        "pretrained": [],
        "alpha": 0.5,
        "loss": "bce",
        "weight_decay": 0.0,
        "recency": 0.0,
        "schedule": "constant",
        "members": [],
    }
    assert args == {**reference, **ours}


def test_short_flags_match_the_long_flags_of_the_reference() -> None:
    short = "-e 1 -b 2 -f 3 -n 4 -l 0.5 -k 6 -s 7 -t 0.8 -b1 0.9 -b2 0.1"
    long = (
        "--epochs 1 --batch_size 2 --factors 3 --negative_samples 4 --learning_rate 0.5 --topk 6 --seed 7 "
        "--threshold 0.8 --beta1 0.9 --beta2 0.1"
    )
    parsed = model.run.arguments.parse_args(short.split())
    assert parsed == model.run.arguments.parse_args(long.split())
    assert (parsed.epochs, parsed.batch_size, parsed.beta1, parsed.beta2) == (1, 2, 0.9, 0.1)


@pytest.mark.parametrize(("data", "output"), [("/a/b", "runs/b"), ("/a/b/", "runs/b"), ("/", "runs/run")])
def test_the_output_is_named_after_the_data(data: str, output: str) -> None:
    assert model.run.arguments.parse_args(["--data", data]).output == Path(output)


def test_help_lists_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    for parse, flags in (
        (model.run.arguments.parse_args, TRAIN_FLAGS),
        (preprocessing.__main__.parse_args, PREPARE_FLAGS),
        (model.recommend.__main__.parse_args, RECOMMEND_FLAGS),
        (model.export.__main__.parse_args, EXPORT_FLAGS),
        (model.serve.__main__.parse_args, SERVE_FLAGS),
    ):
        with pytest.raises(SystemExit) as done:
            parse(["--help"])
        assert done.value.code == 0
        text = capsys.readouterr().out
        assert all(flag in text for flag in flags.split())


def command(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # On a busy machine, threads of such a small network spend more time synchronising than computing.
    environment = {**os.environ, "PYTHONWARNINGS": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stdout + done.stderr
    return done


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
def test_a_foreign_folder_trains_as_it_is(tmp_path: Path, kind: str, length: int) -> None:
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
    done = command("train.py", *places, *FLAGS, "-e", "1", "-k", "2", "-n", "3")
    assert ("test series of 7 rows, found in the data" in done.stdout) == (length == 7)
    metrics = metrics_of(tmp_path / "run")
    assert metrics["selected_on"] == "test"
    assert 0 <= metrics["ndcg@2"] <= metrics["hr@2"] <= 1
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
def test_the_example_of_the_reference_trains_tests_and_recommends(tmp_path: Path, ages_of_users: bool) -> None:
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


def test_an_id_feature_can_be_named_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = example_folder(tmp_path / "data", True, test_samples_per_series=5), tmp_path / "run"
    places = ["--data", str(data), "--output", str(run), *FLAGS, "-e", "1", "-k", "3"]
    train.main([*places, "--user_feature", "user_gender"])
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["n_users"] == 2
    assert config["features"]["user"] == "user_gender"
    model.recommend.__main__.main(["--run", str(run), "--user", "1", "-k", "2"])
    assert "user 1\n" in capsys.readouterr().out
    message = fails(capsys, *places, "--overwrite", "--item_feature", "nothing")
    assert "--item_feature nothing: not in feature_spec" in message


def test_the_error_for_auto_suggests_transcoding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = example_folder(tmp_path / "data", True)
    text = (data / "feature_spec.yaml").read_text()
    (data / "feature_spec.yaml").write_text(text.replace("cardinality: 20", "cardinality: auto"))
    message = fails(capsys, "--data", str(data), "--output", str(tmp_path / "run"), *FLAGS)
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


@pytest.mark.parametrize("flags", [["--negatives", "static"], ["-n", "0"]])
def test_training_on_positives_only_is_rejected(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    message = fails(capsys, "--data", str(data), "--output", str(tmp_path / "run"), *FLAGS, *flags)
    assert "all train rows have the label 1" in message
    assert "--train-negatives" in message
    assert list(tmp_path.iterdir()) == []


def test_from_a_real_log_to_recommendations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = str(tmp_path / "data"), str(tmp_path / "run")
    training = f"--data {data} --output {run} -e 1 -n 2 -b 8192 -f 8 --layers 16 8 -l 0.01 -s 1"
    steps = [
        command("-m", "preprocessing", "--sample", "ml-100k", "--output", data),
        command(str(ROOT / "train.py"), *training.split(), cwd=tmp_path),  # from another working directory
        command(*f"-m model.recommend --run {run} --user 196 -k 10 --titles {data}/titles.parquet".split()),
    ]
    assert [step.stderr for step in steps] == ["", "", ""]
    metrics = metrics_of(tmp_path / "run")
    assert metrics["hr@10"] > 0.2  # twice the chance level among 101 items

    raw = pd.read_parquet(sample_file("MovieLens100k_data.parquet.brotli"))
    items = pd.read_parquet(sample_file("MovieLens100k_items.parquet.brotli"))
    rated = set(raw.loc[raw["user_id"] == 196, "movie_id"])
    assert len(rated) == 39
    lines = steps[2].stdout.splitlines()
    assert lines[0] == "user 196"
    rows = [line.split(maxsplit=3) for line in lines[2:]]
    assert [row[0] for row in rows] == [str(rank) for rank in range(1, 11)]
    recommended = [int(row[1]) for row in rows]
    assert len(set(recommended)) == 10
    assert set(recommended) <= set(raw["movie_id"])
    assert not set(recommended) & rated
    scores = [float(row[2]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    titles = dict(zip(items["movie_id"], items["movie_title"], strict=True))
    assert [row[3] for row in rows] == [" ".join(titles[item].split()) for item in recommended]

    with pytest.raises(SystemExit) as done:
        run_command(lambda: model.recommend.__main__.main(["--run", run, "--user", "99999"]))
    assert done.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: user '99999' is not among the 943 users")
