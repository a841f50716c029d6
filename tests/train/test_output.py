"""Output folders: what is overwritten, kept and restored."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import train
from model.network.checkpoint import load_run
from model.run.run_writer import RunWriter
from model.training.trainer import Training

CPU = torch.device("cpu")
FLAGS = ["-b", "256", "-f", "4", "--layers", "16", "8", "-l", "0.01", "--device", "cpu"]


def metrics_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, including hidden ones, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("flag", ["--checkpoint_dir", "--load_checkpoint_path", "--log_path"])
def test_an_empty_path_means_none(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    # The reference's default of --checkpoint_dir is empty, and its users' scripts pass it on.
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    train.main(["--data", str(data), "--output", str(tmp_path / "run"), *FLAGS, "-e", "1", "-b", "100000", flag, ""])
    assert list((tmp_path / "here").iterdir()) == []


def test_an_existing_output_is_not_touched(run: Path, data: Path, fails: Callable[..., str]) -> None:
    before = contents(run)
    message = fails("--data", str(data), "--output", str(run), *FLAGS)
    assert "--overwrite" in message
    assert contents(run) == before


def test_overwrite_replaces_only_runs(data: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    places = ["--data", str(data), "--overwrite", *FLAGS, "-e", "1", "-b", "100000"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    assert "thesis" not in fails(*places, "--output", str(tmp_path / "run"))
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"
    for seed in ("1", "2"):
        train.main([*places, "--output", str(tmp_path / "new"), "-s", seed])
        assert metrics_of(tmp_path / "new")["seed"] == int(seed)


@pytest.mark.parametrize("name", ["config.json", "metrics.json", "log.json", "model.safetensors"])
def test_overwrite_does_not_touch_foreign_files(
    data: Path, tmp_path: Path, fails: Callable[..., str], name: str
) -> None:
    # Common file names do not identify a run.
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / name).write_text('{"model": {"type": "bert"}, "seed": 3}')
    message = fails("--data", str(data), "--output", str(theirs), "--overwrite", *FLAGS)
    assert "not written by this command" in message
    assert contents(tmp_path) == {f"theirs/{name}": b'{"model": {"type": "bert"}, "seed": 3}'}


@pytest.mark.parametrize("what", ["data", "checkpoint"])
def test_an_output_containing_an_input_is_not_touched(
    run: Path, data: Path, tmp_path: Path, fails: Callable[..., str], what: str
) -> None:
    output = tmp_path / "run"
    shutil.copytree(run, output)
    shutil.copytree(data, output / "data")
    before = contents(tmp_path)
    inputs = {
        "data": ["--data", str(output / "data")],
        "checkpoint": ["--data", str(data), "--load_checkpoint_path", str(output / "model.safetensors")],
    }
    message = fails(*inputs[what], "--output", str(output), "--overwrite", *FLAGS)
    assert "which this command reads" in message
    assert contents(tmp_path) == before


def test_a_diverging_run_leaves_nothing_behind(data: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    message = fails("--data", str(data), "--output", str(tmp_path / "run"), *FLAGS, "-l", "1e30")
    assert "--learning_rate" in message
    assert list(tmp_path.iterdir()) == []


def test_a_diverging_run_restores_the_run_it_was_to_replace(
    run: Path, data: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    before = contents(tmp_path)
    places = ["--data", str(data), "--output", str(tmp_path / "run"), "--overwrite"]
    assert "--learning_rate" in fails(*places, *FLAGS, "-l", "1e30")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("validation", ["none", "leave-one-out"])
def test_a_run_that_diverges_later_keeps_its_best_epoch(
    data: Path, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch, validation: str
) -> None:
    # The rate explodes in the third of four epochs.
    monkeypatch.setattr("model.training.trainer.learning_rate", lambda _, done: 0.01 if done < 0.5 else 1e30)
    places = ["--data", str(data), "--output", str(tmp_path / "run"), "--validation", validation]
    message = fails(*places, *FLAGS, "-e", "4")
    assert "training diverged: the " in message
    assert "epoch 2" in message
    assert "lower --learning_rate" in message
    metrics = metrics_of(tmp_path / "run")
    assert f"epoch {metrics['best_epoch']} was the best before it" in message
    assert metrics["epochs"] == 2
    assert metrics["hr@10"] > 0
    assert load_run(tmp_path / "run", CPU).model.is_finite()
    for line in (tmp_path / "run" / "log.json").read_text().splitlines():
        json.loads(line.removeprefix("DLLL "), parse_constant=pytest.fail)


@pytest.mark.parametrize("mode", ["test", "train"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_checkpoint_of_nan_is_refused(
    run: Path, data: Path, tmp_path: Path, fails: Callable[..., str], mode: str, value: float
) -> None:
    weights = torch.load(data.parent / "checkpoints" / "model.pth")
    weights = {name: tensor.clone() for name, tensor in weights.items()}
    next(iter(weights.values()))[-1] = value
    torch.save(weights, tmp_path / "broken.pth")
    places = ["--data", str(data), "--output", str(tmp_path / "run"), "--mode", mode]
    message = fails(*places, "--load_checkpoint_path", str(tmp_path / "broken.pth"), *FLAGS, "-e", "1")
    assert "broken.pth: mf_user_embed.weight holds NaN" in message
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_whose_scores_overflow_is_refused(
    run: Path, data: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    weights = torch.load(data.parent / "checkpoints" / "model.pth")
    torch.save({name: tensor * 1e30 for name, tensor in weights.items()}, tmp_path / "huge.pth")
    places = ["--data", str(data), "--output", str(tmp_path / "run"), "--mode", "test"]
    message = fails(*places, "--load_checkpoint_path", str(tmp_path / "huge.pth"), *FLAGS)
    assert "huge.pth: its scores are NaN or infinite" in message
    assert not (tmp_path / "run").exists()


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


def test_a_test_run_can_be_overwritten(run: Path, data: Path, tmp_path: Path) -> None:
    places = ["--data", str(data), "--output", str(tmp_path / "test"), "--overwrite"]
    for _ in range(2):
        train.main([*places, "--load_checkpoint_path", str(run / "model.safetensors"), *FLAGS, "--mode", "test"])


@pytest.mark.parametrize("name", ["a[b]", "[red]", "[/x]"])
def test_an_output_may_have_any_name(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    output = tmp_path / name
    train.main(["--data", str(data), "--output", str(output), *FLAGS, "-e", "1", "-b", "100000"])
    assert f"results in {output}\n" in capsys.readouterr().out
