"""What a resumed run may change, and that a refused or failed resume leaves every byte of the run as it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import preprocessing.__main__
import train
from model.training.resume_state import LAST_NAME
from model.training.trainer import Training
from workflows.common.errors import UserError

ROOT = Path(__file__).parents[2]
FLAGS = ["-b", "64", "-f", "4", "--layers", "8", "4", "--device", "cpu"]
KNOWN = {"encoding": "a" * 64, "split": "b" * 64}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(path: Path, change: dict[str, Any]) -> None:
    """Change some keys of a JSON file, or of a YAML file with a header."""
    if path.suffix == ".json":
        path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    else:
        header = path.read_text().splitlines()[0]
        path.write_text(f"{header}\n{yaml.safe_dump({**yaml.safe_load(path.read_text()), **change})}")


def flags_of(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())


@pytest.fixture
def own(run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run of three epochs, whose data has the fingerprint `KNOWN`."""
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    folder = with_fingerprint(Path(flags_of(run)["data"]), tmp_path / "data", KNOWN)
    edit(copy / "config.json", {"fingerprint": KNOWN, "data": str(folder)})
    edit(copy / "config.yaml", {"data": str(folder), "output": str(copy), "checkpoint_dir": None})
    return copy


def with_fingerprint(data: Path, copy: Path, fingerprint: dict[str, str] | None) -> Path:
    shutil.copytree(data, copy)
    edit(copy / "stats.json", {"fingerprint": fingerprint})
    return copy


REFUSED = {
    "-k 5": "--topk 5 (the run has 10)",
    "-b 64": "--batch_size 64 (the run has 256)",
    "-l 0.5": "--learning_rate 0.5 (the run has 0.01)",
    "-s 7": "--seed 7 (the run has 1)",
    "-n 2": "--negative_samples 2 (the run has 4)",
    "--negatives uniform": "--negatives uniform (the run has exact)",
    "--eval full": "--eval full (the run has sampled)",
    "--validation leave-one-out": "--validation leave-one-out (the run has none)",
    "--amp": "--amp true (the run has false)",
    "--precision bf16": "--precision bf16 (the run has '')",
    "--loader memory": "--loader memory (the run has merlin)",
    "--grads_accumulated 2": "--grads_accumulated 2 (the run has 1)",
    "-b1 0.5": "--beta1 0.5 (the run has 0.25)",
    "-b2 0.75": "--beta2 0.75 (the run has 0.5)",
    "--eps 0.1": "--eps 0.1 (the run has 1e-08)",
    "-f 5": "--factors 5 (the run has 4)",
    "--layers 8 4": "--layers 8 4 (the run has 16 8)",
    "--dropout 0.25": "--dropout 0.25 (the run has 0.5)",
    "--arch gmf": "--arch gmf (the run has neumf)",
    "--loss softmax": "--loss softmax (the run has bce)",
    "--weight_decay 1": "--weight_decay 1.0 (the run has 0.0)",
    "--recency 1": "--recency 1.0 (the run has 0.0)",
    "--schedule cosine": "--schedule cosine (the run has constant)",
    "--members softmax": "--members softmax (the run has '')",
    "--alpha 0.25": "--alpha 0.25 (the run has 0.5)",
    "--pretrained /a /b": "--pretrained /a /b (the run has '')",
    "--load_checkpoint_path /x.pth": "--load_checkpoint_path /x.pth (the run has '')",
    "--feature_spec_file other.yaml": "--feature_spec_file other.yaml (the run has feature_spec.yaml)",
    "--user_feature item": "--user_feature item (the run has '')",
    "--item_feature user": "--item_feature user (the run has '')",
}


def test_every_flag_that_alters_the_history_is_refused(own: Path, fails: Callable[..., str]) -> None:
    before = contents(own)
    for flags, told in REFUSED.items():
        message = fails("--resume", str(own), "-e", "4", *flags.split())
        assert told in message
        assert f"python train.py --config {own}/config.yaml --output OTHER --" in message
    message = fails("--resume", str(own), "-k", "5", "-b", "64", "--eval", "full", "-e", "4")
    assert all(REFUSED[flags] in message for flags in ("-k 5", "-b 64", "--eval full"))
    assert "--output OTHER --batch_size 64 --topk 5 --eval full" in message
    assert contents(own) == before
    train.main(["--resume", str(own), "-e", "4", "-k", "10", "-s", "1", "--layers", "16", "8"])  # its own values
    assert json.loads((own / "metrics.json").read_text())["epochs"] == 4


def test_what_may_change_is_saved(own: Path) -> None:
    flags = "-e 5 --patience 4 -t 0.99 --valid_batch_size 5000 --step torch --without curves tensorboard progress"
    log = own.parent / "other.json"
    before = flags_of(own)
    train.main(
        ["--resume", str(own), *flags.split(), "--log_path", str(log), "--checkpoint_dir", str(own.parent / "c")]
    )
    changed = {name: value for name, value in flags_of(own).items() if before[name] != value}
    assert changed == {
        "epochs": 5, "patience": 4, "threshold": 0.99, "valid_batch_size": 5000, "step": "torch",
        "without": ["curves", "tensorboard", "progress"], "log_path": str(log), "checkpoint_dir": str(own.parent / "c"),
    }  # fmt: skip


def test_a_threshold_counts_for_past_epochs(own: Path) -> None:
    metrics = json.loads((own / "metrics.json").read_text())
    for threshold, epochs in (("0", 3), ("1", 4)):  # reached by the first epoch; by none, so that training continues
        train.main(["--resume", str(own), "-e", "4", "-t", threshold])
        assert json.loads((own / "metrics.json").read_text())["epochs"] == epochs
    assert metrics["epochs"] == 3


@pytest.mark.parametrize(
    ("fingerprint", "told"),
    [
        (
            {**KNOWN, "encoding": "c" * 64},
            "the data is not what the run was trained on: {where} differs in its encoding",
        ),
        ({**KNOWN, "split": "c" * 64}, "the data is not what the run was trained on: {where} differs in its split"),
        (None, "the data is not known to be what the run was trained on: {where} while {data} has no fingerprint"),
    ],
)
def test_other_data_are_refused(
    own: Path, data: Path, fails: Callable[..., str], fingerprint: dict[str, str] | None, told: str
) -> None:
    before, first = contents(own), own.parent / "data"
    other = with_fingerprint(data, own.parent / "other", fingerprint)
    message = fails("--resume", str(own), "--data", str(other), "-e", "4", "-k", "3")
    assert told.format(where=f"--data {other} (the run has {first})", data=other) in message
    assert "--topk 3 (the run has 10)" in message
    assert f"--topk 3 --data {other}" in message
    shutil.rmtree(first)
    other.rename(first)  # prepared anew in the same place
    assert told.format(where=f"{first}, prepared anew or replaced since,", data=first) in fails("--resume", str(own))
    shutil.rmtree(first)
    assert f"{first} does not exist; if the data has moved, name it with --data" in fails("--resume", str(own))
    assert contents(own) == before


def test_data_that_has_moved_is_taken(own: Path) -> None:
    first = own.parent / "data"
    moved = first.rename(own.parent / "moved")
    train.main(["--resume", str(own), "--data", str(moved), "-e", "4"])
    assert flags_of(own)["data"] == json.loads((own / "config.json").read_text())["data"] == str(moved)
    assert json.loads((own / "config.json").read_text())["fingerprint"] == KNOWN


def test_data_without_a_fingerprint_is_taken_where_it_was(own: Path, fails: Callable[..., str]) -> None:
    edit(own / "config.json", {"fingerprint": None})
    edit(own.parent / "data" / "stats.json", {"fingerprint": None})
    train.main(["--resume", str(own), "-e", "4"])
    moved = (own.parent / "data").rename(own.parent / "moved")
    assert "has no fingerprint" in fails("--resume", str(own), "--data", str(moved))


def test_a_failed_resume_changes_nothing(own: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(own)
    assert "--epochs 2: " in fails("--resume", str(own), "-e", "2")
    assert "leave out --config, --output and --overwrite" in fails("--resume", str(own), "--overwrite")
    assert "omit --mode test" in fails("--resume", str(own), "--mode", "test")

    def diverges(*_: object) -> None:
        raise UserError("the training loss is nan")

    with monkeypatch.context() as patched:
        patched.setattr(Training, "_epoch", diverges)
        assert "loss is nan" in fails("--resume", str(own), "-e", "5")
    assert contents(own) == before
    (own / LAST_NAME).write_bytes(before[LAST_NAME][:1000])
    broken = contents(own)
    assert "no state of a run that could be resumed" in fails("--resume", str(own), "-e", "5")
    assert contents(own) == broken
    (own / LAST_NAME).write_bytes(before[LAST_NAME])
    train.main(["--resume", str(own), "-e", "4"])


def test_several_ranks_refuse_with_one_message(own: Path, forked: None) -> None:
    before = contents(own)
    command = [sys.executable, "train.py", "--resume", str(own), "--device", "cpu", "--gpus", "2"]
    for more, told in ((["-k", "5", "-b", "64"], "--batch_size 64 (the run has 256); --topk 5"), ([], "got 2; resume")):
        done = subprocess.run([*command, *more], cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("error")) == (2, 1)
        assert told in done.stderr
    assert contents(own) == before


def test_epochs_are_fixed_where_they_shape_training(own: Path, fails: Callable[..., str]) -> None:
    edit(own / "config.yaml", {"schedule": "cosine"})
    assert "--epochs 5 (the run has 3, which --schedule cosine is spread over)" in fails(
        "--resume", str(own), "-e", "5"
    )
    train.main(["--resume", str(own), "-e", "3"])
    # An ensemble, and one that was interrupted before it had a config.json.
    members = {"members": ["softmax"], "arch": "gmf", "validation": "leave-one-out", "schedule": "constant"}
    edit(own / "config.yaml", members)
    assert "--epochs 5 (the run has 3, which every member is trained for)" in fails("--resume", str(own), "-e", "5")
    (own / "stages").mkdir()
    (own / "config.json").rename(own / "stages" / "data.json")
    edit(own.parent / "data" / "stats.json", {"fingerprint": {**KNOWN, "split": "c"}})
    before = contents(own)
    assert "differs in its split" in fails("--resume", str(own))
    assert contents(own) == before


def written(path: Path, rows: list[tuple[str, str, int]]) -> Path:
    path.write_text("user,item,time\n" + "".join(f"{user},{item},{time}\n" for user, item, time in rows))
    return path


def test_a_later_log_in_the_same_encoding_is_other_data(tmp_path: Path, fails: Callable[..., str]) -> None:
    """Yesterday's and today's log: as many users and items, other interactions."""
    first = [(f"u{n % 12}", f"i{n * 7 % 15}", n) for n in range(90)]
    log = written(tmp_path / "a.csv", first)
    columns = "--user user --item item --time time --test-negatives 5 --output"
    preprocessing.__main__.main(["--input", str(log), *columns.split(), str(tmp_path / "a")])
    flags = [
        "-e",
        "1",
        "-b",
        "64",
        "-f",
        "4",
        "--layers",
        "8",
        "4",
        "-k",
        "3",
        "--device",
        "cpu",
        "-s",
        "1",
        "--without",
        "curves",
        "tensorboard",
        "progress",
    ]
    run = tmp_path / "run"
    train.main(["--data", str(tmp_path / "a"), "--output", str(run), *flags])
    later = written(tmp_path / "b.csv", [(user, f"i{time * 4 % 15}", time) for user, _, time in first])
    preprocessing.__main__.main(
        ["--workflow", str(tmp_path / "a"), "--input", str(later), *columns.split(), str(tmp_path / "b")]
    )
    before = contents(run)
    message = fails("--resume", str(run), "--data", str(tmp_path / "b"), "-e", "2")
    assert "the data is not what the run was trained on" in message
    assert "differs in its split" in message
    assert contents(run) == before
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    train.main(["--resume", str(run), "--data", str(tmp_path / "c"), "-e", "2"])
    assert json.loads((run / "metrics.json").read_text())["epochs"] == 2


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("kept", [None, 40])
def test_a_run_that_has_lost_its_best_model_is_refused(
    own: Path, fails: Callable[..., str], name: str, kept: int | None
) -> None:
    (own / name).unlink() if kept is None else os.truncate(own / name, kept)
    before = contents(own)
    assert name in fails("--resume", str(own), "-e", "4")
    assert contents(own) == before
