"""Reusing another folder's encoding, unchanged or extended."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import preprocessing.__main__
from preprocessing.__main__ import main
from preprocessing.prepare.encoding import Encoding, check_kinds
from preprocessing.sources.detect import open_log
from preprocessing.sources.log import Log, ReadOptions
from workflows.common.errors import UserError
from workflows.operators.saved import load_workflow

Prepare = Callable[..., Path]
Files = Callable[[Path, str], list[pd.DataFrame]]


def _log(folder: Path, users: range, items: range, text: str, seed: int = 0) -> Path:
    """A log in which each of these ids occurs; `text` names the columns with text ids."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(
        {"user": rng.choice(users, 400), "item": rng.choice(items, 400), "time": rng.integers(0, 99, 400)}
    )
    all_ids = pd.DataFrame({"user": np.resize(users, 60), "item": np.resize(items, 60), "time": 100})
    rows = pd.concat([rows, all_ids])
    for name in ("user", "item"):
        if name in text:
            rows[name] = [f"{name} {number}" for number in rows[name]]
    path = folder / f"log-{seed}.csv"
    rows.to_csv(path, index=False)
    return path


def _ids(folder: Path, column: str) -> list[Any]:
    return pq.read_table(folder / "categories" / f"{column}.parquet")["original"].to_pylist()


def _stats(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "stats.json").read_text())


def _positives(folder: Path, mapping_files: Files) -> set[tuple[Any, Any]]:
    rows = pd.concat([*mapping_files(folder, "train"), *mapping_files(folder, "test")]).query("label == 1")
    users, items = _ids(folder, "user"), _ids(folder, "item")
    return {(users[user], items[item]) for user, item in zip(rows["user"], rows["item"], strict=True)}


KINDS = pytest.mark.parametrize("text", ["", "user", "item", "user item"])


@KINDS
def test_unknown_ids_are_dropped_and_counted(
    tmp_path: Path, prepare_log: Prepare, mapping_files: Files, text: str
) -> None:
    first = prepare_log(_log(tmp_path, range(0, 40), range(0, 30), text))
    log = _log(tmp_path, range(10, 50), range(5, 35), text, seed=1)
    folder = prepare_log(log, "--workflow", str(first), "--test-negatives", "3")
    for name in ("user", "item"):
        assert _ids(folder, name) == _ids(first, name)  # encoded as in the first folder
    rows = pd.read_csv(log)
    known = rows[rows["user"].isin(_ids(first, "user")) & rows["item"].isin(_ids(first, "item"))]
    assert _positives(folder, mapping_files) == set(zip(known["user"], known["item"], strict=True))
    stats = _stats(folder)
    assert 0 < stats["dropped_unknown"] == len(rows) - len(known)
    assert (stats["new_users"], stats["new_items"]) == (0, 0)
    assert (stats["users"], stats["items"]) == (known["user"].nunique(), known["item"].nunique())
    # Negatives are drawn from the whole encoding, including items of the first log that are not in the second.
    drawn = {item for part in mapping_files(folder, "test") for item in part.query("label == 0")["item"]}
    assert drawn - {_ids(folder, "item").index(item) for item in known["item"]}
    workflow, _, _ = load_workflow(folder)
    assert workflow is not None


@KINDS
def test_ids_have_the_types_of_the_known_encoding(
    tmp_path: Path, prepare_log: Prepare, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = _log(tmp_path, range(0, 40), range(0, 30), text)
    first = prepare_log(log)
    read: list[ReadOptions] = []

    def opened(*args: Any) -> Log:
        read.append(args[-1])
        return open_log(*args)

    monkeypatch.setattr(preprocessing.__main__, "open_log", opened)
    asked = ["--text-ids", *text.split()] if text else []
    for flags in ([], ["--extend"], asked):
        prepare_log(log, "--workflow", str(first), *flags)
    assert [options.text_ids for options in read] == [frozenset(text.split())] * 3
    assert [options.whole_ids for options in read] == [frozenset({"user", "item"} - set(text.split()))] * 3
    if text != "user item":
        with pytest.raises(UserError, match=r"--text-ids: the .*(user|item) ids of --workflow .* are integers; leave"):
            prepare_log(log, "--workflow", str(first), "--text-ids")


@pytest.mark.parametrize("extend", [[], ["--extend"]])
def test_text_ids_that_look_like_integers_are_known(
    tmp_path: Path, prepare_log: Prepare, mapping_files: Files, extend: list[str]
) -> None:
    # As Amazon's item ids, some of which are digits alone: today's log happens to hold only such.
    items = [f"B{number:03d}" if number % 3 else f"{1000 + number}" for number in range(40)]
    first, today = tmp_path / "first.csv", tmp_path / "today.csv"
    rows = [f"{user},{item},{user}\n" for user in range(6) for item in items[user:]]
    first.write_text("user,item,time\n" + "".join(rows))
    known = [row for row in rows if row.split(",")[1].isdigit() and not row.startswith("0")]
    today.write_text("user,item,time\n" + "".join([*known, "1,931,9\n"]))
    folder = prepare_log(today, "--workflow", str(prepare_log(first)), *extend)
    expected = {(int(user), item) for user, item, _ in (row.split(",") for row in known)}
    assert _positives(folder, mapping_files) == expected | ({(1, "931")} if extend else set())
    assert _stats(folder)["dropped_unknown"] == (0 if extend else 1)


def test_words_that_may_be_missing_values_are_named_where_they_become_ids(
    tmp_path: Path, prepare_log: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.csv"
    rows = [f"{user},{item},{item}\n" for user in ("ann", "bob", "NA") for item in ("x", "None", "N/A", "y", "z")]
    log.write_text("who,what,when\n" + "".join(rows[:-1]))
    names = ("--user", "who", "--item", "what", "--order", "file")
    first = prepare_log(log, *names)
    said = " ".join(capsys.readouterr().out.split())
    assert "column 'who': 'NA' taken as user ids; if they stand for missing values" in said
    assert "column 'what': 'N/A', 'None' taken as item ids" in said
    prepare_log(log, *names, "--workflow", str(first))  # they are known ids by now
    assert "taken as" not in capsys.readouterr().out
    log.write_text("who,what,when\nann,x,1\nnone,x,2\nann,y,3\nNA,y,4\n")
    prepare_log(log, *names, "--workflow", str(first), "--extend")
    said = " ".join(capsys.readouterr().out.split())
    assert "column 'who': 'none' taken as user ids" in said
    assert "'what'" not in said


@KINDS
def test_new_ids_are_appended_in_sorted_order(
    tmp_path: Path, prepare_log: Prepare, mapping_files: Files, text: str
) -> None:
    first = prepare_log(_log(tmp_path, range(20, 40), range(10, 30), text))
    log = _log(tmp_path, range(10, 50), range(5, 25), text, seed=1)
    folder = prepare_log(log, "--workflow", str(first), "--extend")
    rows = pd.read_csv(log)
    for name in ("user", "item"):
        old = _ids(first, name)
        new = sorted(set(rows[name].tolist()) - set(old))
        assert _ids(folder, name) == old + new
        assert _stats(folder)[f"new_{name}s"] == len(new) > 0
    assert _stats(folder)["dropped_unknown"] == 0
    assert _positives(folder, mapping_files) == set(zip(rows["user"], rows["item"], strict=True))


def test_the_same_log_again_adds_nothing_and_gives_the_same_rows(
    tmp_path: Path, prepare_log: Prepare, folder_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    log = _log(tmp_path, range(0, 40), range(0, 200), "user")
    first = prepare_log(log)
    for flags in ([], ["--extend"]):
        assert folder_bytes(prepare_log(log, "--workflow", str(first), *flags)) == folder_bytes(first)


def test_an_int32_encoding_can_be_extended_with_int64_ids(tmp_path: Path, prepare_log: Prepare) -> None:
    first = prepare_log(_log(tmp_path, range(0, 40), range(0, 30), ""))
    wide = tmp_path / "wide.csv"
    wide.write_text(f"user,item,time\n{2**40},7,1\n{2**40},-3,2\n1,{-(2**50)},3\n2,1,4\n2,3,4\n")
    folder = prepare_log(wide, "--workflow", str(first), "--extend")
    assert _ids(folder, "user") == [*range(40), 2**40]
    assert _ids(folder, "item") == [*range(30), -(2**50), -3]


@pytest.mark.parametrize("extend", [[], ["--extend"]])
def test_text_ids_for_an_encoding_of_integers_are_an_error(
    tmp_path: Path, prepare_log: Prepare, extend: list[str]
) -> None:
    first = prepare_log(_log(tmp_path, range(0, 40), range(0, 30), ""))
    log = _log(tmp_path, range(0, 40), range(0, 30), "item", seed=1)
    flags = ["--input", str(log), "--output", str(tmp_path / "out"), "--workflow", str(first), "--device", "cpu"]
    with pytest.raises(UserError, match=r"item.* integer"):
        main([*flags, *extend])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", [frozenset(), frozenset({"user"}), frozenset({"user", "item"})])
def test_kinds_of_ids_that_differ_from_the_known_ones_are_refused(text: frozenset[str]) -> None:
    known = Encoding({"user": pa.array([3]), "item": pa.array(["x"])}, {"user": 0, "item": 0})
    stored: Any = SimpleNamespace(text=text)
    with pytest.raises(UserError, match=r"the log's (user|item) ids are (text|integers), and .*--workflow"):
        check_kinds(known, stored)
    check_kinds(known, SimpleNamespace(text=frozenset({"item"})))  # type: ignore[arg-type]


def test_a_log_of_only_unknown_ids_is_an_error(tmp_path: Path, prepare_log: Prepare) -> None:
    first = prepare_log(_log(tmp_path, range(0, 40), range(0, 30), ""))
    log = _log(tmp_path, range(100, 140), range(0, 30), "", seed=1)
    with pytest.raises(UserError, match=r"460 have ids that --workflow does not know"):
        prepare_log(log, "--workflow", str(first))


def test_the_folder_whose_encoding_is_used_is_not_overwritten(tmp_path: Path, prepare_log: Prepare) -> None:
    log = _log(tmp_path, range(0, 40), range(0, 30), "")
    first = prepare_log(log)
    before = _stats(first)
    with pytest.raises(UserError, match="which this command reads"):
        main(["--input", str(log), "--output", str(first), "--workflow", str(first), "--overwrite", "--device", "cpu"])
    assert _stats(first) == before
