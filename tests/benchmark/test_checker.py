"""The checker accepts a valid folder and detects every kind of violation."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from benchmark.checker import check
from preprocessing.__main__ import main as prepare
from workflows.common.errors import UserError

_ROOT = Path(__file__).parents[2]
_N_ITEMS, _LENGTH = 60, 21
_COLUMNS = ("u", "i", "t")
_ALONE, _KEEN = 1, 2  # one interaction; every item


def _log() -> pd.DataFrame:
    """Duplicate pairs, ties in time, and users at both extremes."""
    rng = np.random.default_rng(3)
    users = np.concatenate([rng.integers(10, 40, 700), [_ALONE], np.full(_N_ITEMS, _KEEN), np.full(50, 50)])
    items = np.concatenate([rng.integers(0, _N_ITEMS, 701), np.arange(_N_ITEMS), np.arange(50)])
    return pd.DataFrame({"u": users, "i": items * 3, "t": rng.integers(0, 40, len(users))})


@pytest.fixture(scope="session", params=["integers", "text"])
def good(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(log, prepared folder)."""
    folder = tmp_path_factory.mktemp("good")
    log = _log()
    if request.param == "text":  # so that "u10" sorts before "u2"
        log = log.assign(u="u" + log["u"].astype(str), i="é" + log["i"].astype(str))
    log.to_csv(folder / "log.csv", index=False)
    columns = ["--user", "u", "--item", "i", "--time", "t"]
    settings = ["--test-negatives", str(_LENGTH - 1), "--train-negatives", "1", "--partitions", "3"]
    prepare(["--input", str(folder / "log.csv"), "--output", str(folder / "out"), *columns, *settings])
    return folder / "log.csv", folder / "out"


def test_a_valid_folder_has_no_violations(good: tuple[Path, Path]) -> None:
    report = check(*good, _COLUMNS)
    assert report.violations == {}
    log = _log()
    pairs = log[["u", "i"]].drop_duplicates()
    assert report.counts["distinct_pairs"] == len(pairs)
    assert report.counts["held_out"] == pairs["u"].nunique() - 2
    assert report.counts["test_rows"] == _LENGTH * report.counts["held_out"]


Edit = Callable[[pd.DataFrame], pd.DataFrame]


def _first_user(rows: pd.DataFrame, enough: int = 4) -> np.ndarray:
    """Row positions of the positives of the first user with enough positives."""
    positives = rows[rows["label"] == 1]
    counts = positives.groupby("user").size()
    return np.flatnonzero((rows["user"] == counts[counts >= enough].index[0]) & (rows["label"] == 1))


def _set(rows: pd.DataFrame, place: int, column: str, value: object) -> pd.DataFrame:
    rows = rows.copy()
    rows.loc[place, column] = value
    return rows


def _swap(rows: pd.DataFrame, a: int, b: int) -> pd.DataFrame:
    places = np.arange(len(rows))
    places[[a, b]] = places[[b, a]]
    return rows.iloc[places]


def _swap_train_rows(rows: pd.DataFrame) -> pd.DataFrame:
    places = _first_user(rows)
    return _swap(rows, places[0], places[2])


def _move_a_row_to_the_end(rows: pd.DataFrame) -> pd.DataFrame:
    place = _first_user(rows)[0]
    return pd.concat([rows.drop(index=place), rows.loc[[place]]])


def _negative_becomes_positive(rows: pd.DataFrame) -> pd.DataFrame:
    places = _first_user(rows)
    return _set(rows, places[0] + 1, "item", rows["item"][places[1]])


def _foreign_item(rows: pd.DataFrame) -> pd.DataFrame:
    place = _first_user(rows)[0]
    return _set(rows, place, "item", rows["item"][place + 1])  # a negative of the user


# name → (mapping whose first file is edited, the edit, violations expected among those found)
_EDITS: dict[str, tuple[str, Edit, list[str]]] = {
    "lost row": (
        "train",
        lambda rows: rows.drop(index=_first_user(rows)[0]),
        ["number of train positives", "pair of the log is lost"],
    ),
    "train order": ("train", _swap_train_rows, ["train pair out of the order of time and item"]),
    "repeated row": (
        "train",
        lambda rows: pd.concat([rows.iloc[:1], rows]),
        ["train pair occurs twice", "number of train positives"],
    ),
    "invented pair": ("train", _foreign_item, ["pair is not in the log", "pair of the log is lost"]),
    "train negative": ("train", _negative_becomes_positive, ["train negative is a train positive"]),
    "users fall": ("train", lambda rows: rows.iloc[::-1], ["train users do not ascend within a file"]),
    "user apart": ("train", _move_a_row_to_the_end, ["train rows of a user lie apart"]),
    "user beyond": ("train", lambda rows: _set(rows, 0, "user", 1000), ["train id beyond its cardinality"]),
    "item below": ("test", lambda rows: _set(rows, 0, "item", -1), ["test id beyond its cardinality"]),
    "positive second": ("test", lambda rows: _swap(rows, 0, 1), ["series without its positive first"]),
    "two positives": ("test", lambda rows: _set(rows, 1, "label", 1.0), ["series without its positive first"]),
    "cut series": ("test", lambda rows: rows.iloc[:-1], ["test rows beyond the last whole series"]),
    "no series": ("test", lambda rows: rows.iloc[_LENGTH:], ["user without a series", "pair of the log is lost"]),
    "two series": ("test", lambda rows: pd.concat([rows.iloc[:_LENGTH], rows]), ["user with a series too many"]),
    "series of a user with one interaction": (
        "test",
        lambda rows: rows.assign(user=rows["user"].where(rows.index >= _LENGTH, 0)),  # _ALONE is the lowest id
        ["user with a series too many", "user without a series"],
    ),
    "mixed series": (
        "test",
        lambda rows: _swap(rows, 1, _LENGTH + 1),
        ["series of several users", "test users do not ascend within a file"],
    ),
    "repeated negative": (
        "test",
        lambda rows: _set(rows, 1, "item", rows["item"][2]),
        ["negatives of a series repeat"],
    ),
}


@pytest.mark.parametrize("name", _EDITS)
def test_an_edited_file_is_detected(good: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    mapping, edit, expected = _EDITS[name]
    log, folder = good[0], tmp_path / "out"
    shutil.copytree(good[1], folder)
    path = min((folder / mapping).iterdir())
    edit(pd.read_parquet(path)).to_parquet(path, index=False)
    found = check(log, folder, _COLUMNS).violations
    assert set(expected) <= set(found)
    assert all(text for text in found.values())


def _test_and_train(folder: Path) -> tuple[Path, pd.DataFrame, pd.DataFrame]:
    """The first test file, its rows, and all train positives."""
    path = min((folder / "test").iterdir())
    train = pd.concat([pd.read_parquet(part) for part in sorted((folder / "train").iterdir())])
    return path, pd.read_parquet(path), train[train["label"] == 1]


def test_a_wrong_held_out_interaction_is_detected(good: tuple[Path, Path], tmp_path: Path) -> None:
    # The second to last is held out and the last trained on: only the order of times reveals it.
    shutil.copytree(good[1], tmp_path / "out")
    path, test, _ = _test_and_train(tmp_path / "out")
    for part in sorted((tmp_path / "out" / "train").iterdir()):
        train = pd.read_parquet(part)
        mine = np.flatnonzero((train["user"] == test["user"][0]) & (train["label"] == 1))
        if len(mine):
            held_out, last_trained = test["item"][0], train["item"][mine[-1]]
            _set(train, mine[-1], "item", held_out).to_parquet(part, index=False)
            _set(test, 0, "item", last_trained).to_parquet(path, index=False)
    found = check(good[0], tmp_path / "out", _COLUMNS).violations
    assert "held-out item is not the last" in found
    assert "pair of the log is lost" not in found


def test_a_held_out_pair_left_in_train_is_detected(good: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(good[1], tmp_path / "out")
    path, test, train = _test_and_train(tmp_path / "out")
    known = train[train["user"] == test["user"][0]]["item"].iloc[0]
    _set(test, 0, "item", known).to_parquet(path, index=False)
    found = check(good[0], tmp_path / "out", _COLUMNS).violations
    assert {"held-out pair is in train", "held-out item is not the last"} <= set(found)


@pytest.mark.parametrize("known", ["train", "held out"])
def test_a_seen_item_among_the_negatives_is_detected(good: tuple[Path, Path], tmp_path: Path, known: str) -> None:
    shutil.copytree(good[1], tmp_path / "out")
    path, test, train = _test_and_train(tmp_path / "out")
    trained = train[train["user"] == test["user"][0]]["item"].iloc[0]
    _set(test, 1, "item", trained if known == "train" else test["item"][0]).to_parquet(path, index=False)
    assert "negative is a positive of the user" in check(good[0], tmp_path / "out", _COLUMNS).violations


@pytest.mark.parametrize("column", ["user", "item"])
def test_wrong_ids_are_detected(good: tuple[Path, Path], tmp_path: Path, column: str) -> None:
    folder = tmp_path / "out"
    shutil.copytree(good[1], folder)
    path = folder / "categories" / f"{column}.parquet"
    ids = pd.read_parquet(path)
    ids.assign(original=_swap(ids, 0, 1)["original"].to_numpy()).to_parquet(path, index=False)
    what = f"{column} id is not the place of its original among all"
    assert set(check(good[0], folder, _COLUMNS).violations) == {what}
    ids.iloc[1:].to_parquet(path, index=False)
    assert set(check(good[0], folder, _COLUMNS).violations) == {f"number of {column} ids"}


def _edit_spec(folder: Path, edit: Callable[[dict], None]) -> None:
    spec = yaml.safe_load((folder / "feature_spec.yaml").read_text())
    edit(spec)
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(spec))


def test_a_wrong_cardinality_is_detected(good: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(good[1], tmp_path / "out")
    _edit_spec(tmp_path / "out", lambda spec: spec["feature_spec"]["item"].update(cardinality=_N_ITEMS + 1))
    assert set(check(good[0], tmp_path / "out", _COLUMNS).violations) == {"item cardinality"}


def test_a_file_outside_the_folder_is_rejected(good: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(good[1], tmp_path / "out")
    _edit_spec(tmp_path / "out", lambda spec: spec["source_spec"]["train"][0].update(files=["../else.parquet"]))
    with pytest.raises(UserError, match="outside"):
        check(good[0], tmp_path / "out", _COLUMNS)


def test_as_a_process_it_prints_json_and_sets_the_exit_status(good: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(good[1], tmp_path / "out")
    command = [sys.executable, "-m", "benchmark.checker", str(good[0]), str(tmp_path / "out"), "--columns", *_COLUMNS]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["violations"] == {}
    _edit_spec(tmp_path / "out", lambda spec: spec["feature_spec"]["user"].update(cardinality=7))
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert list(json.loads(done.stdout)["violations"]) == ["user cardinality"]
    assert "breaks 1 rules" in done.stderr
