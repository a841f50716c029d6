"""Id encoding: in a workflow, restored, stored in a file, and from many threads."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workflows.merlin import Workflow, frame_dataset
from workflows.operators.encode import EncodeIds, IdTable

INT64 = st.integers(-(2**63), 2**63 - 1)


class _Columns:
    def __init__(self, names: list[str]) -> None:
        self.names = names


def make_log() -> pd.DataFrame:
    """Original ids are sparse and unsorted."""
    rng = np.random.default_rng(0)
    columns = {
        "user": rng.permutation(300)[rng.integers(0, 30, 400)],
        "item": rng.permutation(500)[rng.integers(0, 50, 400)],
    }
    return pd.DataFrame(columns)


def dataset_of(log: pd.DataFrame, partitions: int):
    parts = [log.iloc[number::partitions] for number in range(partitions)]
    return frame_dataset(lambda number: parts[number], partitions, meta=log.iloc[:0], cpu=True)


@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize("kind", ["int64", "str"])
def test_encoded_ids_are_ranks_among_the_distinct_originals(partitions: int, kind: str) -> None:
    log = make_log()
    log["item"] = log["item"].astype(kind)  # as strings, "10" sorts before "9"
    encoder = EncodeIds()
    workflow = Workflow(["user", "item"] >> encoder)
    workflow.fit(dataset_of(log, partitions))
    assert encoder.fitted
    for name in ("user", "item"):
        assert encoder.categories[name].tolist() == sorted(set(log[name]))
    encoded = workflow.transform(log)
    assert encoded.dtypes.tolist() == [np.int32, np.int32]
    for name in ("user", "item"):
        codes = {original: code for code, original in enumerate(sorted(set(log[name])))}
        assert encoded[name].tolist() == [codes[original] for original in log[name]]


@pytest.mark.parametrize("ids", [[30, 10, 20], ["b", "", "ab"], [2**63 - 1, -(2**63), 0]])
def test_unknown_ids_become_minus_one(ids: list) -> None:
    encoder = EncodeIds()
    workflow = Workflow(["id"] >> encoder)
    known = pd.DataFrame({"id": ids})
    workflow.fit(frame_dataset(lambda _: known, 1, meta=known.iloc[:0], cpu=True))
    unknown = "zz" if isinstance(ids[0], str) else 11
    order = {original: code for code, original in enumerate(sorted(ids))}
    encoded = workflow.transform(pd.DataFrame({"id": [ids[0], unknown, ids[1], ids[2]]}))
    assert encoded["id"].tolist() == [order[ids[0]], -1, order[ids[1]], order[ids[2]]]


def test_refitting_forgets_the_first_log() -> None:
    encoder = EncodeIds()
    workflow = Workflow(["id"] >> encoder)
    for ids in ([1, 2, 3], [5, 3]):
        frame = pd.DataFrame({"id": ids})
        workflow.fit(frame_dataset(lambda _, frame=frame: frame, 1, meta=frame.iloc[:0], cpu=True))
        assert workflow.transform(frame)["id"].tolist() == [sorted(ids).index(value) for value in ids]
    assert workflow.transform(pd.DataFrame({"id": [1]}))["id"].tolist() == [-1]


def test_a_restored_encoder_needs_no_fit() -> None:
    encoder = EncodeIds({"id": pd.Series([3, 5, 9])})
    assert encoder.fitted
    assert encoder.transform(_Columns(["id"]), pd.DataFrame({"id": [9, 4, 3]}))["id"].tolist() == [2, -1, 0]


def test_an_encoder_is_pickled_without_its_lookups() -> None:
    encoder = EncodeIds({"id": pd.Series([3, 5, 9])})
    frame = pd.DataFrame({"id": [9, 4, 3]})
    encoder.transform(_Columns(["id"]), frame)
    copy = pickle.loads(pickle.dumps(encoder))
    assert copy.tables["id"]._lookup is None
    assert copy.transform(_Columns(["id"]), frame)["id"].tolist() == [2, -1, 0]


def test_many_threads_can_use_a_restored_encoder_at_once() -> None:
    ids = np.random.default_rng(0).permutation(200_000)
    encoder = EncodeIds({name: pd.Series(np.arange(200_000)) for name in ("a", "b")})  # the lookups are not built yet
    frame = pd.DataFrame({"a": ids, "b": ids[::-1]})
    threads = 8
    together = Barrier(threads)

    def encode(_: int) -> pd.DataFrame:
        together.wait()
        return encoder.transform(_Columns(["a", "b"]), frame)

    with ThreadPoolExecutor(threads) as pool:
        for found in pool.map(encode, range(threads)):
            pd.testing.assert_frame_equal(found, frame.astype("int32"))


@given(
    st.sampled_from([-(2**63), -7, 0, 2**31 - 9, 2**40, 2**63 - 60]),
    st.lists(st.integers(0, 50) | INT64, unique=True, max_size=20),
    st.lists(st.integers(-5, 55) | INT64, max_size=20),
    st.sampled_from(["int32", "int64"]),
    st.sampled_from(["int32", "int64"]),
)
def test_numbers_are_positions_in_the_table(
    low: int, ids: list[int], column: list[int], kind: str, column_kind: str
) -> None:
    # Dense and sparse ids, at the limits of int64, and of another integer width than the column.
    def held(values: list[int], kind: str) -> list[int]:
        info = np.iinfo(kind)
        return [low + value for value in values if info.min <= low + value <= info.max]

    ids, column = held(ids, kind), held(ids[::2] + column, column_kind)
    found = IdTable(pd.Series(ids, dtype=kind)).numbers(pd.Series(column, dtype=column_kind))
    assert found.dtype == np.int32
    assert found.tolist() == [ids.index(value) if value in ids else -1 for value in column]


def test_a_stored_table_is_pickled_as_its_file_name(tmp_path: Path) -> None:
    ids = pd.Series(np.random.default_rng(0).permutation(100_000) - 50_000)  # in encoded order, not sorted
    table = IdTable(ids).store(tmp_path / "ids.npy")
    sent = pickle.dumps(table)
    assert len(sent) < 500
    there = pickle.loads(sent)
    assert there is pickle.loads(sent)  # read once per process
    np.testing.assert_array_equal(there.ids, ids)
    assert there.numbers(pd.Series([ids[7], 10**12, ids[0]])).tolist() == [7, -1, 0]
    assert len(pickle.dumps(IdTable(ids))) > 8 * len(ids)


def test_an_encoder_of_stored_tables_has_a_small_pickle(tmp_path: Path) -> None:
    encoder = EncodeIds({"id": pd.Series(np.arange(10_000))})
    encoder.tables = {name: table.store(tmp_path / f"{name}.npy") for name, table in encoder.tables.items()}
    sent = pickle.dumps(encoder)
    assert len(sent) < 2000
    frame = pd.DataFrame({"id": [9999, 10_000, -1]})
    assert pickle.loads(sent).transform(_Columns(["id"]), frame)["id"].tolist() == [9999, -1, -1]


def test_known_columns_keep_their_encoding_and_others_are_fitted() -> None:
    log = make_log()
    known = pd.Series(log["item"].unique()[::2])  # some of the items, in order of first appearance
    encoder = EncodeIds({"item": known})
    workflow = Workflow(["user", "item"] >> encoder)
    for _ in range(2):  # refitting forgets only the categories that were found
        workflow.fit(dataset_of(log, 3))
        assert encoder.categories["item"].tolist() == known.tolist()
        assert encoder.categories["user"].tolist() == sorted(set(log["user"]))
    codes = {original: code for code, original in enumerate(known)}
    assert workflow.transform(log)["item"].tolist() == [codes.get(original, -1) for original in log["item"]]


def test_no_partition_is_read_if_every_column_is_known() -> None:
    encoder = EncodeIds({"id": pd.Series([5, 3])})
    encoder.fit_finalize(encoder.fit(_Columns(["id"]), None).compute(scheduler="synchronous"))
    assert encoder.categories["id"].tolist() == [5, 3]


def test_kept_columns_are_passed_through_unchanged() -> None:
    log = make_log().assign(time=np.linspace(0, 1, 400))
    encoder = EncodeIds(keep=["time"])
    workflow = Workflow(["user", "time"] >> encoder)
    workflow.fit(dataset_of(log, 3))
    assert list(encoder.categories) == ["user"]
    rows = workflow.transform(log)
    assert rows["time"].tolist() == log["time"].tolist()
    assert rows.dtypes.tolist() == [np.int32, np.float64]
