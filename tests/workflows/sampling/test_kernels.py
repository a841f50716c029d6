"""The CUDA kernels, compiled for the CPU, against the array code that they replace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import gpu_stand_in
import host_kernels
import numpy as np
import pandas as pd
import pytest
import torch
from cudf_stand_in import Frame
from hypothesis import given, settings
from hypothesis import strategies as st

from workflows.device.kernels import gpu_kernels
from workflows.operators import LeaveOneOut, append_negatives, encode, leave_one_out
from workflows.operators.encode import EncodeIds, IdTable
from workflows.operators.item_statistics import ItemStatistics
from workflows.sampling import interactions, kernels, negatives
from workflows.sampling.config import Sampling, build_candidates
from workflows.sampling.counter_rng import stream_seed
from workflows.sampling.interactions import Histories, histories, value_ranges
from workflows.sampling.negatives import row_negatives, series_negatives

SEED = stream_seed(3)
USERS = (encode, interactions, leave_one_out, negatives)
IDS = st.sampled_from([np.int32, np.int64])


@contextmanager
def on_kernels() -> Iterator[None]:
    """Inside the block, host arrays go to the kernels."""
    with pytest.MonkeyPatch.context() as patched:
        for module in USERS:
            patched.setattr(module, "gpu_kernels", lambda _: kernels)
        patched.setattr(kernels, "launch", host_kernels.launch)
        yield


def same(found: Any, expected: Any) -> None:
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@st.composite
def logs(draw: Any, least_rows: int = 0) -> tuple[list[np.ndarray], int]:
    """(users, items, times) with ties, repeated pairs and users who have every item; the number of items."""
    n_items, n_users = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    rows = draw(
        st.lists(
            st.tuples(st.integers(0, n_users - 1), st.integers(0, n_items - 1), st.integers(-3, 9)),
            min_size=least_rows,
            max_size=60,
        )
    )
    if draw(st.booleans()):
        rows += [(n_users, item, item % 3) for item in range(n_items)]
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    kinds = [draw(IDS), draw(IDS), draw(IDS)]
    return [np.ascontiguousarray(column.astype(kind)) for column, kind in zip(columns, kinds, strict=True)], n_items


@st.composite
def samplings(draw: Any) -> Sampling:
    return Sampling(
        kind=draw(st.sampled_from(["exact", "uniform", "popularity"])),
        time_aware=draw(st.booleans()),
        seed=draw(st.integers(0, 2**31)),
    )


def same_histories(found: Histories, expected: Histories) -> None:
    for name, values in vars(expected).items():
        same(getattr(found, name), values)


@given(logs(), st.booleans())
def test_histories(log: tuple[list[np.ndarray], int], drop_negative: bool) -> None:
    users, items, times = log[0]
    if drop_negative:
        users, items = users - (np.arange(len(users)) % 5 == 0).astype(users.dtype), items - items.dtype.type(1)
    expected = histories(users, items, times, drop_negative=drop_negative)
    with on_kernels():
        same_histories(histories(users, items, times, drop_negative=drop_negative), expected)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=30), st.integers(1, 3))
def test_value_ranges(values: list[int], n_columns: int) -> None:
    columns = [np.roll(np.array(values), number)[: len(values) - number or None] for number in range(n_columns)]
    columns = [np.resize(column, len(values)) for column in columns]
    with on_kernels():
        assert value_ranges(*columns) == [(int(column.min()), int(column.max())) for column in columns]


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int16, np.uint16, np.uint32])
def test_value_ranges_of_other_widths(kind: type) -> None:
    column = np.arange(1, 8).astype(kind)
    with on_kernels():
        assert value_ranges(column, column.astype(np.int32)) == [(1, 7), (1, 7)]


@pytest.mark.parametrize("bits", [20, 21, 22, 31, 62, 63])
def test_histories_whose_keys_do_not_fit_64_bits(bits: int) -> None:
    rng = np.random.default_rng(bits)
    columns = [rng.choice(rng.integers(-(2**bits) + 1, 2**bits - 1, 12), 300) for _ in range(3)]
    expected = histories(*columns)
    with on_kernels():
        same_histories(histories(*columns), expected)


@settings(max_examples=80)
@given(logs(least_rows=1), samplings(), st.integers(0, 15), st.data())
def test_series_negatives(log: tuple[list[np.ndarray], int], sampling: Sampling, length: int, data: Any) -> None:
    columns, n_items = log
    history, exact = histories(*columns), sampling.kind != "uniform"
    selected = np.flatnonzero(history.counts < n_items)
    if not exact and data.draw(st.booleans()):
        selected = np.arange(len(history.counts))
    candidates = candidates_of(columns, n_items, sampling)
    expected = series_negatives(history, selected, candidates, length, SEED, exact)
    with on_kernels():
        same(series_negatives(history, selected, candidates, length, SEED, exact), expected)


@settings(max_examples=80)
@given(logs(least_rows=1), samplings(), st.integers(1, 7))
def test_row_negatives(log: tuple[list[np.ndarray], int], sampling: Sampling, per_row: int) -> None:
    columns, n_items = log
    order = np.argsort(columns[0], kind="stable")
    users, items, times = (np.ascontiguousarray(column[order]) for column in columns)
    items = items.astype(users.dtype)
    candidates, exact = candidates_of(columns, n_items, sampling), sampling.kind != "uniform"
    given_ = (users, items, candidates, per_row, SEED, times, exact)
    expected, exists = row_negatives(*given_)
    with on_kernels():
        found, found_exists = row_negatives(*given_)
        on_torch = row_negatives(
            torch.from_numpy(users), torch.from_numpy(items), candidates_of(columns, n_items, sampling, torch.ones(1)),
            per_row, SEED, torch.from_numpy(times), exact,
        )  # fmt: skip
    same(found_exists, exists)
    same(found[exists], expected[exists])
    same(on_torch[0].numpy()[exists], expected[exists])


def candidates_of(columns: list[np.ndarray], n_items: int, sampling: Sampling, like: Any = None) -> Any:
    since = np.full(n_items, 2**62)
    np.minimum.at(since, columns[1], columns[2])
    counts = np.bincount(columns[1], minlength=n_items) + 1
    return build_candidates(n_items, sampling, counts, since, since if like is None else like)


@settings(max_examples=80)
@given(logs(), samplings(), st.integers(0, 9), st.integers(0, 3), st.booleans())
def test_the_split(
    log: tuple[list[np.ndarray], int], sampling: Sampling, test_negatives: int, train_negatives: int, unknown: bool
) -> None:
    (users, items, times), n_items = log
    if unknown:
        items = np.where(np.arange(len(items)) % 4 == 0, items.dtype.type(-1), items)
    df = pd.DataFrame({"user": users, "item": items, "time": times})
    operators = []
    for _ in range(2):
        encoder = EncodeIds({"item": pd.Series(range(n_items))})
        statistics = ItemStatistics(encoder, "item", "time")
        statistics.fit_finalize((np.bincount(log[0][1], minlength=n_items) + 1, np.arange(n_items) % 4))
        operators.append(
            LeaveOneOut(encoder, "user", "item", "time", test_negatives, train_negatives, sampling, statistics)
        )
    expected = operators[0].transform(None, df)
    with on_kernels():
        found = operators[1].transform(None, df)
    pd.testing.assert_frame_equal(found, expected)


@pytest.mark.parametrize("spread", [1, 10**15])
@given(ids=st.lists(st.integers(-50, 50), min_size=1, unique=True), asked=st.lists(st.integers(-60, 60)), kind=IDS)
def test_look_ups(spread: int, ids: list[int], asked: list[int], kind: type) -> None:
    known = pd.Series(np.array(ids) * spread)
    column = pd.Series(np.array([*asked, -(2**31), 2**31 - 1], dtype=kind))
    if kind is np.int64:
        column = pd.concat([column * spread, pd.Series([-(2**63), 2**63 - 1])])
    expected = IdTable(known).numbers(column)
    with on_kernels():
        same(IdTable(known).numbers(column), expected)


@pytest.mark.parametrize("kind", ["exact", "popularity", "uniform"])
@pytest.mark.parametrize("time_aware", [False, True])
@pytest.mark.parametrize("train_negatives", [0, 4])
@pytest.mark.parametrize("spread", [1, 10**15])
def test_a_partition_takes_few_launches_and_waits(
    monkeypatch: pytest.MonkeyPatch, kind: str, time_aware: bool, train_negatives: int, spread: int
) -> None:
    gpu_stand_in.install(monkeypatch)
    rng, n_items = np.random.default_rng(1), 60
    log = pd.DataFrame({name: rng.integers(0, high, 600) for name, high in (("user", 50), ("item", n_items))}) * spread
    log = Frame.of(log.assign(time=rng.integers(0, 10**9, 600)))
    encoder = EncodeIds({name: pd.Series(np.arange(n_items)) * spread for name in ("user", "item")}, keep=["time"])
    statistics = ItemStatistics(encoder, "item", "time")
    statistics.fit_finalize((np.ones(n_items, dtype=np.int64), np.zeros(n_items, dtype=np.int64)))
    sampling = Sampling(kind=kind, time_aware=time_aware)
    split = LeaveOneOut(encoder, "user", "item", "time", 20, train_negatives, sampling, statistics)
    selector = SimpleNamespace(names=["user", "item", "time"])
    split.transform(None, encoder.transform(selector, log))  # builds the tables and the candidates
    made = gpu_stand_in.count_calls(monkeypatch)
    split.transform(None, encoder.transform(selector, log))
    assert {"kernel look_up_direct", "kernel look_up_sorted"} & set(made.calls)
    assert made.n_calls <= 60, made.calls
    assert made.n_waits <= 4, made.waits


def test_only_gpu_arrays_go_to_the_kernels() -> None:
    class Array:
        pass

    assert gpu_kernels(np.zeros(1)) is None
    assert gpu_kernels(torch.zeros(1)) is None
    Array.__module__ = "cupy._core.core"
    assert gpu_kernels(Array()) is kernels
    assert append_negatives.row_negatives is negatives.row_negatives
