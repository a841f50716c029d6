"""Flags: the lists of all commands, the reference's defaults, and values that are rejected."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

import model.export.__main__
import model.recommend.__main__
import model.run.arguments
import model.serve.__main__
import preprocessing.__main__
import train
from workflows.common.errors import UserError

FLAGS = ["-b", "256", "-f", "4", "--layers", "16", "8", "-l", "0.01", "--device", "cpu"]


def test_zero_gpus_is_rejected(data: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    message = fails("--data", str(data), "--output", str(tmp_path / "run"), "--device", "cpu", "--gpus", "0")
    assert "--gpus should be 1 or more, got 0" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "flags",
    [["--gpus", "8"], ["--device", "cuda"], ["--gpus", "1"], ["--device", "cuda", "--gpus", "2"]],
)
def test_a_missing_gpu_is_rejected(data: Path, tmp_path: Path, fails: Callable[..., str], flags: list[str]) -> None:
    message = fails("--data", str(data), "--output", str(tmp_path / "run"), *flags)
    assert "--device cpu" in message
    assert not (tmp_path / "run").exists()


def test_the_launcher_leaves_the_gpus_to_its_processes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise AssertionError("a context on a GPU")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", refuse)
    started = []
    monkeypatch.setattr(train, "launch", lambda processes, command: started.append(processes) or 0)
    train.main(["--data", str(data), "--gpus", "2"])
    assert started == [2]
    with pytest.raises(UserError, match="--gpus 3 needs 3 GPU"):
        train.main(["--data", str(data), "--gpus", "3"])
    assert started == [2]


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
    data: Path, tmp_path: Path, fails: Callable[..., str], flags: list[str], said: str
) -> None:
    given = [flag.format(tmp=tmp_path) for flag in flags]
    message = fails("--data", str(data), "--output", str(tmp_path / "run"), "--device", "cpu", *given)
    assert said in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [["--negatives", "static"], ["-n", "0"]])
def test_training_on_positives_only_is_rejected(
    data: Path, tmp_path: Path, fails: Callable[..., str], flags: list[str]
) -> None:
    message = fails("--data", str(data), "--output", str(tmp_path / "run"), *FLAGS, *flags)
    assert "all train rows have the label 1" in message
    assert "--train-negatives" in message
    assert list(tmp_path.iterdir()) == []


def test_mode_test_without_series_is_rejected(run: Path, data: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    shutil.copytree(data, tmp_path / "data")
    spec = yaml.safe_load((data / "feature_spec.yaml").read_text())
    del spec["source_spec"]["test"]
    (tmp_path / "data" / "feature_spec.yaml").write_text(yaml.safe_dump(spec))
    places = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "test"), "--mode", "test"]
    message = fails(*places, "--load_checkpoint_path", str(run / "model.safetensors"), *FLAGS)
    assert "no test series to rank" in message
    assert not (tmp_path / "test").exists()


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

    def parse_args(parser: argparse.ArgumentParser, *_: object) -> None:
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
    --checkpoint_dir --load_checkpoint_path --new_rows --log_path --mode
    -f --factors --layers --dropout -e --epochs -b --batch_size -n --negative_samples --negatives -l --learning_rate
    -b1 --beta1 -b2 --beta2 --eps --grads_accumulated -s --seed --amp --precision --compile --cuda-graphs --step
    --patience -k --topk -t --threshold --eval --validation --valid_batch_size
    --device --gpus --arch --pretrained --alpha --loss --weight_decay --recency --schedule --members
--loader
"""


PREPARE_FLAGS = """
    -h --help --sample --input --synthetic --check --raw --features --workflow --extend --user --item --time --rating
    --columns --order --text-ids --time-format --delimiter --quoting --encoding --comment
    --min-rating --strict --output --overwrite --test-negatives --valid_negative --train-negatives --negatives
    --popularity-exponent --time-aware -s --seed --feature_spec_in --feature_spec_out --emit --device --partitions
    --scheduler --workers --memory-limit
"""


RECOMMEND_FLAGS = """
    -h --help --run --user --users-file --all -k --candidates --exclude-seen --no-exclude-seen --unknown-users
    --unknown-items --titles --output --overwrite --data --device
"""


EXPORT_FLAGS = "-h --help --run --format --output --overwrite --data"


SERVE_FLAGS = "-h --help --run --data --titles --host --port --allowed-hosts --unknown-users --device"


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
        "step": "auto",
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
        "new_rows": "random",
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
