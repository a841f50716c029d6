from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing import fingerprint
from preprocessing.__main__ import main
from preprocessing.fingerprint import Fingerprint, encoding_hash, read_fingerprint, rows_hash, split_hash
from workflows.sampling import compiled

Prepare = Callable[..., Path]
Row = tuple[int, int, float, int]

USERS = st.lists(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), max_size=4), max_size=6)


def made_rows(users: list[list[tuple[int, bool, bool]]]) -> list[list[Row]]:
    """Rows of each user: user, item, label, split (train first)."""
    return [
        [(user, item, float(label), int(test)) for item, label, test in sorted(rows, key=lambda row: row[2])]
        for user, rows in enumerate(users)
    ]


def hashed(rows: list[Row]) -> int:
    types = (np.int32, np.int32, np.float32, np.int8)
    columns = [
        np.array([row[place] for row in rows], dtype) for place, dtype in enumerate(types)
    ]  # fmt: skip
    return rows_hash(*columns) % 2**64


def mixed(value: int) -> int:
    """SplitMix64's finaliser in Python's integers."""
    mask = 2**64 - 1
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & mask
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & mask
    return value ^ (value >> 31)


def summed(users: list[list[Row]]) -> int:
    """`rows_hash` in Python's integers, user by user."""
    total = 0
    for rows in users:
        before: dict[int, int] = {0: 0, 1: 0}
        for user, item, label, split in rows:
            key = user << 32 | item << 1 | int(label)
            key = key ^ (2**64 - 1) if split else key
            total += mixed((key + before[split] * 0x9E3779B97F4A7C15) % 2**64)
            before[split] = item + 1
    return total % 2**64


@given(users=USERS, compiled_loops=st.booleans())
def test_rows_are_hashed_with_the_row_before(users: Any, compiled_loops: bool) -> None:
    rows = made_rows(users)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fingerprint, "host_loops", lambda _: compiled if compiled_loops else None)
        assert hashed([row for user in rows for row in user]) == summed(rows)
        assert sum(hashed(user) for user in rows[::-1]) % 2**64 == summed(rows)  # partitions, in another order


def test_any_change_of_the_rows_changes_their_hash() -> None:
    rows: list[Row] = [(0, 1, 1.0, 0), (0, 2, 1.0, 0), (0, 3, 1.0, 1), (1, 2, 1.0, 0), (1, 3, 0.0, 1)]
    others = [
        rows[:-1],
        [rows[1], rows[0], *rows[2:]],  # a user's order
        [(2, *rows[0][1:]), *rows[1:]],
        [(0, 7, 1.0, 0), *rows[1:]],
        [(0, 1, 0.0, 0), *rows[1:]],
        [*rows[:2], (0, 3, 1.0, 0), *rows[3:]],
    ]
    assert len({hashed(changed) for changed in [rows, *others]}) == 1 + len(others)
    counts = [{"train": 3, "test": 2}, {"train": 2, "test": 3}]
    assert len({split_hash(count, total) for count in counts for total in (5, 6)}) == 4
    assert split_hash(counts[0], -1) == split_hash(counts[0], 2**64 - 1)


def test_the_hash_of_an_encoding_depends_on_kinds_and_values_alone() -> None:
    same = [
        {"user": pa.array([3, 5], kind), "item": pa.array(items, text)}
        for kind in (pa.int8(), pa.int32(), pa.int64())
        for text in (pa.string(), pa.large_string())
        for items in (["a", "", "ßc"],)
    ]
    same.append({"user": pa.array([9, 3, 5, 7]).slice(1, 2), "item": pa.array(["x", "a", "", "ßc", "y"]).slice(1, 3)})
    assert len({encoding_hash(one) for one in same}) == 1
    others = [
        {"user": pa.array([5, 3]), "item": same[0]["item"]},
        {"user": pa.array([3]), "item": same[0]["item"]},
        {"user": pa.array(["3", "5"]), "item": same[0]["item"]},
        {"user": pa.array([3, 5]), "item": pa.array(["a", "ß", "c"])},
        {"user": pa.array([3, 5]), "item": pa.array(["a", "ßc", ""])},
        {"item": pa.array([3, 5]), "user": same[0]["item"]},
        {"user": pa.array([], pa.string()), "item": pa.array([], pa.int64())},
    ]
    assert len({encoding_hash(one) for one in [same[0], *others]}) == 1 + len(others)


def test_a_folder_has_the_fingerprint_of_its_rows_and_ids(tmp_path: Path, prepare_log: Prepare) -> None:
    rng = np.random.default_rng(2)
    users, items = rng.integers(0, 60, 600), rng.integers(0, 300, 600)
    columns = {"user": users, "item": items, "time": np.arange(600)}
    as_csv, as_parquet = tmp_path / "log.csv", tmp_path / "log.parquet"
    as_csv.write_text("user,item,time\n" + "".join(f"{a},{b},{c}\n" for a, b, c in zip(*columns.values(), strict=True)))
    pq.write_table(pa.table(columns).cast(pa.schema([(name, pa.int32()) for name in columns])), as_parquet)
    first = read_fingerprint(prepare_log(as_csv, "--partitions", "3"))
    assert first is not None
    assert {len(first.encoding), len(first.split)} == {64}
    assert read_fingerprint(prepare_log(as_parquet, "--partitions", "5")) == first
    for other in (["-s", "2"], ["--test-negatives", "99"], ["--train-negatives", "1"]):
        changed = read_fingerprint(prepare_log(as_csv, *other))
        assert changed is not None
        assert changed.encoding == first.encoding
        assert changed.split != first.split
    pq.write_table(pa.table({**columns, "user": users + 1}), as_parquet)  # the same rows of other people
    other_ids = read_fingerprint(prepare_log(as_parquet, "--partitions", "4"))
    assert other_ids is not None
    assert other_ids.encoding != first.encoding
    assert other_ids.split == first.split


def test_transcoding_keeps_the_fingerprint(tmp_path: Path, prepare_log: Prepare) -> None:
    (tmp_path / "log.csv").write_text("user,item,time\n1,1,1\n1,2,2\n2,1,1\n2,3,2\n")
    prepared = prepare_log(tmp_path / "log.csv", "--test-negatives", "1")
    main(["--input", str(prepared), "--output", str(tmp_path / "transcoded"), "--device", "cpu"])
    assert read_fingerprint(tmp_path / "transcoded") == read_fingerprint(prepared) is not None


@pytest.mark.parametrize("content", [None, {}, {"fingerprint": "x"}, {"fingerprint": {"encoding": "x"}}])
def test_a_folder_may_have_none(tmp_path: Path, content: Any) -> None:
    if content is not None:
        (tmp_path / "stats.json").write_text(json.dumps(content))
    assert read_fingerprint(tmp_path) is None
    (tmp_path / "stats.json").write_text('{"fingerprint": {"encoding": "a", "split": "b", "later": 1}}')
    assert read_fingerprint(tmp_path) == Fingerprint("a", "b")
