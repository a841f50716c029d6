"""A run knows its data: folders prepared anew, later logs in the same encoding, users without a train interaction."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

import model.export.__main__
import model.recommend.__main__
import model.serve.__main__
import preprocessing.__main__
import train
from model.recommend.recommender import Recommender
from model.serve.service import Asked, Service
from workflows.common.errors import UserError

FLAGS = "-e 1 -b 64 -f 4 --layers 8 4 -k 3 --device cpu -s 1 --without curves tensorboard progress"
Rows = list[tuple[str, str, int]]


def prepared(folder: Path, rows: Rows, *flags: str) -> Path:
    log = folder.with_suffix(".csv")
    log.write_text("user,item,time\n" + "".join(f"{user},{item},{time}\n" for user, item, time in rows))
    columns = ["--user", "user", "--item", "item", "--time", "time", "--test-negatives", "5", "--output"]
    preprocessing.__main__.main(["--input", str(log), *columns, str(folder), *flags])
    return folder


def trained(data: Path, name: str, *flags: str) -> Path:
    run = data.parent / name
    train.main(["--data", str(data), "--output", str(run), *FLAGS.split(), *flags])
    return run


def log_of(user: str, item: str, step: int = 7) -> Rows:
    """12 users and 15 items, whose interactions depend on `step`."""
    return [(f"{user}{number % 12:02}", f"{item}{number * step % 15:02}", number) for number in range(90)]


@pytest.mark.parametrize("members", [[], ["--arch", "gmf", "--members", "softmax", "--validation", "leave-one-out"]])
def test_a_folder_prepared_anew_from_another_log_is_refused(
    tmp_path: Path, fails: Callable[..., str], members: list[str]
) -> None:
    data = prepared(tmp_path / "data", log_of("u", "shoe"))
    run = trained(data, "run", *members)
    prepared(data, log_of("x", "hat"), "--overwrite")  # as many users and items
    told = r"was prepared anew from another log since .* was trained.*the encoding differs"
    for command, flags in (
        (model.recommend.__main__.main, ["--user", "x01"]),
        (model.recommend.__main__.main, ["--user", "u01", "--data", str(data)]),
        (model.serve.__main__.main, []),
        (model.export.__main__.main, ["--format", "embeddings"]),
    ):
        with pytest.raises(UserError, match=told):
            command(["--run", str(run), *flags])
    assert not (run / "embeddings").exists()
    tested = ["--config", str(run / "config.yaml"), "--output", str(tmp_path / "tested"), "--mode", "test"]
    for checkpoint in ("model.safetensors", "model.pth"):
        if checkpoint == "model.pth":
            model.export.__main__.main(["--run", str(run), "--format", "nvidia"])
        message = fails(*tested, "--load_checkpoint_path", str(run / checkpoint))
        assert "the encoding differs" in message
    shutil.copy(run / "model.pth", tmp_path / "model.pth")  # knows nothing of its data
    train.main([*tested, "--load_checkpoint_path", str(tmp_path / "model.pth")])
    assert "the data is not what the run was trained on" in fails("--resume", str(run))


def test_a_later_log_in_the_same_encoding_is_taken_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = prepared(tmp_path / "data", log_of("u", "i"))
    run = trained(data, "run")
    later = prepared(tmp_path / "later", log_of("u", "i", 4), "--workflow", str(data))
    capsys.readouterr()
    note = f"note: the interactions in {later} are not those that {run} was trained on (the split differs)\n"
    for command, flags in (
        (model.recommend.__main__.main, ["--user", "u01"]),
        (model.export.__main__.main, ["--format", "embeddings"]),
    ):
        command(["--run", str(run), *flags])
        assert capsys.readouterr().err == ""
        command(["--run", str(run), *flags, "--data", str(later), *(["--overwrite"] if "--format" in flags else [])])
        assert capsys.readouterr().err == note
    tested = ["--config", str(run / "config.yaml"), "--output", str(tmp_path / "tested"), "--mode", "test"]
    train.main([*tested, "--load_checkpoint_path", str(run / "model.safetensors"), "--data", str(later)])
    assert note in capsys.readouterr().out


def test_users_without_a_train_interaction_are_not_the_models(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = prepared(tmp_path / "first", log_of("u", "i"))
    new = [(user, f"i{number:02}", number) for user in ("u03", "u07", "new1", "new2") for number in range(4)]
    data = prepared(tmp_path / "data", [*new, ("once", "i01", 9)], "--workflow", str(first), "--extend")
    run = trained(data, "run")
    with pytest.raises(UserError, match="user 'u05' is not among the 5 users this run was trained on"):
        model.recommend.__main__.main(["--run", str(run), "--user", "u03", "u05"])
    capsys.readouterr()
    command = ["--run", str(run), "--all", "-k", "2", "--output", str(tmp_path / "all.csv")]
    model.recommend.__main__.main(command)
    assert "for 5 users, without 10 that the run was not trained on" in capsys.readouterr().out
    found = pd.read_csv(tmp_path / "all.csv")
    assert set(found["user"]) == {"u03", "u07", "new1", "new2", "once"}
    assert set(found["basis"]) == {"model"}
    model.recommend.__main__.main(["--run", str(run), "--user", "u05", "--unknown-users", "popular"])
    model.recommend.__main__.main(["--run", str(run), "--all"])
    out = capsys.readouterr().out
    assert out.startswith("user u05: unknown, showing popular items")
    assert out.endswith("left out 10 users that the run was not trained on\n")

    service = Service(Recommender.load(run, device="cpu", in_memory=True), {})
    health = service.health()
    assert (health.n_users, set(health.examples) <= set(found["user"])) == (5, True)
    assert [answer.basis for answer in service([Asked("u05", 2, 3), Asked("new1", 2, 3)])] == ["popularity", "model"]
    # The run needs the folder's rows for histories only: the users are its own.
    config = json.loads((run / "config.json").read_text())
    assert config["trained_users"] not in ("all", "")
    moved = prepared(tmp_path / "moved", log_of("u", "i"), "--workflow", str(data))
    with pytest.raises(UserError, match="user 'u05' is not among the 5 users"):
        model.recommend.__main__.main(["--run", str(run), "--user", "u05", "--data", str(moved)])
