"""Logs without times: the order of the files, or a draw."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from preprocessing.__main__ import main
from preprocessing.prepare.partition import load_partition, spill_log
from preprocessing.prepare.row_filter import Selection, drawn_times
from preprocessing.sources import parquet, text
from preprocessing.sources.log import Log, LogColumns
from preprocessing.sources.parquet import parquet_log
from preprocessing.sources.unpack import SourceFile
from preprocessing.spec.feature_spec import read_feature_spec
from workflows.cluster import thread_cluster
from workflows.common.errors import UserError
from workflows.device.frames import frame_device

Files = Callable[[Path, str], list[pd.DataFrame]]
NAMES = ["--user", "who", "--item", "what"]
MASK = 2**64 - 1


def made_log(texts: bool = False, rows: int = 500) -> pd.DataFrame:
    """Repeated pairs, missing ids, and users with one interaction."""
    rng = np.random.default_rng(3)
    log = pd.DataFrame({"rating": rng.integers(0, 11, rows), "who": rng.integers(0, 40, rows), "what": 0})
    log["what"] = rng.integers(0, 30, rows) - 7
    log = pd.concat([log, pd.DataFrame({"rating": [9, 9], "who": [90, 91], "what": [5, 6]})], ignore_index=True)
    if texts:
        log = log.assign(who=log["who"].map("user {}".format), what=log["what"].map("{} é".format))
    log = log.astype({"who": object, "what": object})
    log.loc[5::17, "who"] = None
    log.loc[11::29, "what"] = None
    return log


def csv(log: pd.DataFrame, folder: Path) -> Path:
    log.to_csv(folder / "log.csv", index=False, sep=";")
    return folder / "log.csv"


def several_csv(log: pd.DataFrame, folder: Path) -> Path:
    """Parts whose names sort in the order of the rows."""
    folder = folder / "parts"
    folder.mkdir()
    for number, start in enumerate(range(0, len(log), 120)):
        log.iloc[start : start + 120].to_csv(folder / f"{number:02d}.csv", index=False)
    return folder


def row_groups(log: pd.DataFrame, folder: Path) -> Path:
    table = pa.table({name: pa.array(log[name].tolist()) for name in log})
    pq.write_table(table, folder / "log.parquet", row_group_size=150)
    return folder / "log.parquet"


WRITE = {"csv": csv, "several csv": several_csv, "parquet": row_groups}


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read in many pieces, and pieces in several tables."""
    monkeypatch.setattr(text, "PIECE_BYTES", 500)
    monkeypatch.setattr(parquet, "_TABLE_ROWS", 64)


def prepared(log: Path, output: Path, *flags: str) -> Path:
    main(["--input", str(log), "--output", str(output), "--device", "cpu", "--test-negatives", "5", *flags])
    return output


def tables(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}


def stats_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "stats.json").read_text())


def positives(folder: Path, mapping_files: Files) -> dict[int, tuple[list[int], list[int]]]:
    """Encoded items of each user: (train in order, held out)."""
    found: dict[int, tuple[list[int], list[int]]] = {}
    for place, mapping in enumerate(("train", "test")):
        for part in mapping_files(folder, mapping):
            for row in part.query("label == 1").itertuples():
                found.setdefault(row.user, ([], []))[place].append(row.item)
    return found


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(("kind", "texts"), [("csv", False), ("several csv", True), ("parquet", True)])
def test_the_order_of_the_files_is_that_of_row_numbers(kind: str, texts: bool, tmp_path: Path) -> None:
    log = made_log(texts)
    flags = (*NAMES, "--partitions", "3", "--rating", "rating", "--min-rating", "2")
    plain = prepared(WRITE[kind](log, tmp_path), tmp_path / "plain", *flags, "--order", "file")
    (tmp_path / "timed").mkdir()
    timed = WRITE[kind](log.assign(when=range(len(log))), tmp_path / "timed")
    by_time = prepared(timed, tmp_path / "by time", *flags, "--time", "when")
    assert tables(plain) == tables(by_time)
    assert (plain / "feature_spec.yaml").read_bytes() == (by_time / "feature_spec.yaml").read_bytes()
    ours, theirs = stats_of(plain), stats_of(by_time)
    assert (ours.pop("order"), theirs.pop("order")) == ("file", "time")
    assert ours["dropped_missing"] > 0
    assert ours["dropped_duplicates"] > 0
    assert ours == theirs


def mixed(value: int) -> int:
    """SplitMix64's finaliser in Python's integers."""
    value &= MASK
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def drawn(seed: int, user: int, item: int) -> int:
    golden, state = 0x9E3779B97F4A7C15, 0
    for part in (seed, 3):
        state = mixed(state + golden + mixed(part + golden))
    return mixed(mixed(mixed(user * golden) ^ state) + (item + 1) * golden) >> 33


def test_a_drawn_order_is_a_hash_of_seed_user_and_item(tmp_path: Path, mapping_files: Files) -> None:
    log = made_log()
    folder = prepared(csv(log, tmp_path), tmp_path / "out", *NAMES, "--order", "random", "-s", "9")
    users, items = (
        pd.read_parquet(folder / "categories" / f"{name}.parquet")["original"].tolist() for name in ("user", "item")
    )
    pairs = set(log.dropna()[["who", "what"]].itertuples(index=False, name=None))
    found = positives(folder, mapping_files)
    assert len(found) == len(users)
    for user, (train, held_out) in found.items():
        own = sorted((drawn(9, users[user], item), item) for who, item in pairs if who == users[user])
        assert [items[item] for item in train + held_out] == [item for _, item in own]
        assert len(held_out) == (len(own) > 1)
    assert stats_of(folder)["order"] == "random"
    assert not read_feature_spec(folder).metadata.time_ordered
    main(["--check", str(folder)])


@pytest.mark.usefixtures("small_pieces")
def test_a_drawn_order_depends_on_nothing_but_the_seed(
    tmp_path: Path, folder_bytes: Callable[[Path], dict[str, bytes]]
) -> None:
    log = made_log(texts=True)
    flags = (*NAMES, "--order", "random", "--partitions", "4", "-s")
    first = prepared(csv(log, tmp_path), tmp_path / "first", *flags, "5")
    again = prepared(tmp_path / "log.csv", tmp_path / "again", *flags, "5")
    assert folder_bytes(first) == folder_bytes(again)
    other = prepared(tmp_path / "log.csv", tmp_path / "other", *flags, "6")
    assert tables(other)["categories/user.parquet"] == tables(first)["categories/user.parquet"]
    assert stats_of(other)["fingerprint"]["split"] != stats_of(first)["fingerprint"]["split"]
    shuffled = log.sample(frac=1.0, random_state=1)
    for kind in ("several csv", "parquet"):
        found = prepared(WRITE[kind](shuffled, tmp_path), tmp_path / kind, *flags, "5")
        assert tables(found) == tables(first)
        ours, theirs = stats_of(found), stats_of(first)
        assert ours.pop("source") != theirs.pop("source")
        assert ours == theirs
    spread = prepared(tmp_path / "log.csv", tmp_path / "spread", *flags, "5", "--partitions", "7")
    assert stats_of(spread)["fingerprint"] == stats_of(first)["fingerprint"]


def test_each_interaction_is_as_likely_to_be_held_out() -> None:
    users, items = np.repeat(np.arange(20_000), 5), np.tile(np.arange(5), 20_000)
    last = drawn_times(users, items, 1).reshape(-1, 5).argmax(axis=1)
    assert (abs(np.bincount(last) - 4000) < 4 * np.sqrt(20_000 * 0.2 * 0.8)).all()


def test_well_known_names_need_no_time_column(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("userId,movieId,rating\n1,1,1\n1,2,5\n2,2,4\n2,1,3\n1,3,2\n")
    with pytest.raises(UserError, match=r"which columns hold user, item and time\?.*--order file or --order random"):
        prepared(log, tmp_path / "out")
    stats = stats_of(prepared(log, tmp_path / "out", "--order", "file", "--min-rating", "3"))
    assert (stats["interactions"], stats["test_series"]) == (3, 0)
    log.write_text("userId,movieId\n1,1\n")
    with pytest.raises(UserError, match="which columns hold user, item and rating"):
        prepared(log, tmp_path / "none", "--order", "file", "--min-rating", "3")


def test_text_without_a_header_needs_no_time_column(tmp_path: Path, mapping_files: Files) -> None:
    log = tmp_path / "triplets.txt"
    log.write_text("a\tx\t1\nb\tx\t1\na\ty\t5\na\tz\t2\nb\tz\t1\nb\ty\t9\n")
    folder = prepared(log, tmp_path / "out", "--columns", "who,what,plays", *NAMES, "--order", "file")
    assert positives(folder, mapping_files) == {0: ([0, 1, 2], []), 1: ([0, 2, 1], [])}  # both have all items


def test_a_log_with_times_can_be_split_at_random(tmp_path: Path, mapping_files: Files) -> None:
    log = tmp_path / "ratings.dat"
    log.write_text("".join(f"{user}::{item}::5::{100 + item}\n" for user in range(40) for item in range(user % 3, 9)))
    held_out = {}
    for order in ("file", "random"):
        found = positives(prepared(log, tmp_path / order, "--order", order), mapping_files)
        held_out[order] = {item for _, held in found.values() for item in held}
    assert held_out["file"] == {8}
    assert len(held_out["random"]) > 2


def test_strict_still_names_the_row_with_a_missing_value(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("who,what\n1,1\n1,2\n2,\n2,3\n")
    with pytest.raises(UserError, match=r"log\.csv, line 4: column 'what' is empty"):
        prepared(tmp_path / "log.csv", tmp_path / "out", *NAMES, "--order", "file", "--strict")


def test_row_numbers_beyond_32_bits(tmp_path: Path) -> None:
    path = row_groups(pd.DataFrame({"who": [1, 1, 2] * 100, "what": range(300)}), tmp_path)
    columns = LogColumns(user="who", item="what", time=None)
    log: Log = parquet_log([SourceFile(path, "log", path)], columns, False)
    cpu = frame_device("cpu")
    with thread_cluster(1) as cluster:
        spill_log(log, Selection(columns=columns, order="file"), 1, cluster, tmp_path, cpu)
    first_rows = np.load(tmp_path / "first_rows.npy")
    assert first_rows.tolist() == [0, 150, 300]
    np.save(tmp_path / "first_rows.npy", first_rows + np.array([0, 2**40, 2**40]))
    rows = load_partition(0, tmp_path, cpu)
    assert rows["time"].tolist() == [*range(150), *range(2**40 + 150, 2**40 + 300)]
