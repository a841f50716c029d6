"""Array code and operators on the stand-in for CuPy and cuDF (tests/gpu_stand_in.py), against NumPy and pandas."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import array_api_strict as strict
import dask
import numpy as np
import pandas as pd
import pytest
from cudf_stand_in import Column, Frame
from gpu_stand_in import CPU, HOST_SYNCS, WORKFLOWS, gpu, install, same

from workflows.device.frames import to_host
from workflows.operators import AppendNegatives, LeaveOneOut
from workflows.operators.encode import EncodeIds, IdTable
from workflows.operators.item_statistics import ItemStatistics
from workflows.sampling import counter_rng
from workflows.sampling.candidates import Candidates, Unseen, ordered_pairs
from workflows.sampling.config import Sampling, build_candidates
from workflows.sampling.counter_rng import stream_seed
from workflows.sampling.interactions import histories, run_lengths, run_starts, stable_order
from workflows.sampling.negatives import row_negatives, series_negatives

SEED = stream_seed(4, 5)


@pytest.fixture(autouse=True)
def synced(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
    """The stand-in, installed: which allowed places copied to the host, and how."""
    return install(monkeypatch)


# --- Array code -------------------------------------------------------------------------------------------------

RNG = np.random.default_rng(3)
LOGS = {
    "many ties": [RNG.integers(0, high, 300) for high in (9, 25, 6)],
    "wide": [RNG.integers(-(2**62), 2**62, 50)[RNG.integers(0, 50, 200)] for _ in range(3)],
    "narrow": [RNG.integers(0, high, 200).astype(np.int32) for high in (9, 25, 6)],
    "one row": [np.array([5]), np.array([7]), np.array([-1])],
    "nothing": [np.zeros(0, dtype=np.int64)] * 3,
}


@pytest.mark.parametrize("log", LOGS)
def test_interactions(log: str) -> None:
    columns = LOGS[log]
    here = [gpu(column) for column in columns]
    same(stable_order(*here), stable_order(*columns))
    same(run_starts(here[0]), run_starts(columns[0]))
    starts = np.flatnonzero(run_starts(columns[0]))
    same(run_lengths(gpu(starts), len(columns[0])), run_lengths(starts, len(columns[0])))
    same(vars(histories(*here)).values(), vars(histories(*columns)).values())


def test_counters() -> None:
    ids = np.concatenate([RNG.integers(-(2**63), 2**63 - 1, 20), [2**63 - 1, -(2**63), 0]])
    number = np.arange(6)
    key = counter_rng.keys(SEED, ids)
    same(counter_rng.keys(SEED, gpu(ids)), key)
    bits = counter_rng.draws(key[:, None], number[None, :])
    same(counter_rng.draws(gpu(key)[:, None], gpu(number)[None, :]), bits)
    same(counter_rng.advanced(gpu(key), gpu(ids)), counter_rng.advanced(key, ids))
    bound = np.arange(1, len(ids) + 1)[:, None]
    same(counter_rng.below(gpu(bits), gpu(bound)), counter_rng.below(bits, bound))
    same(counter_rng.below(gpu(bits), 2**40), counter_rng.below(bits, 2**40))


KINDS = {"exact": {}, "popularity": {"kind": "popularity"}, "time": {"time_aware": True}}
KINDS["both"] = KINDS["popularity"] | KINDS["time"]
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
N_ITEMS = 30
COUNTS, SINCE = RNG.integers(0, 50, N_ITEMS), RNG.integers(0, 9, N_ITEMS)


def line(kind: str, like: Any) -> Candidates:
    return build_candidates(N_ITEMS, Sampling(**KINDS[kind]), COUNTS, SINCE, like)


@EACH_KIND
def test_candidates(kind: str) -> None:
    users, items, times = (RNG.integers(0, high, 120) for high in (6, N_ITEMS, 12))
    ours, theirs = line(kind, users), line(kind, gpu(users))
    for name in ("cdf", "items", "positions", "since"):
        if getattr(ours, name) is not None:
            same(getattr(theirs, name), getattr(ours, name))
    points = RNG.integers(0, ours.weight, (6, 5))
    same(theirs.position_of(gpu(items)), ours.position_of(items))
    same(theirs.item_at(gpu(items)), ours.item_at(items))
    same(theirs.cdf_at(gpu(items)), ours.cdf_at(items))
    same(theirs.position_at(gpu(points)), ours.position_at(points))
    same(theirs.cutoffs(gpu(times)), ours.cutoffs(times))

    pairs = ordered_pairs(users, items, N_ITEMS)
    same(ordered_pairs(gpu(users), gpu(items), N_ITEMS), pairs)
    unseen, there = Unseen(*pairs, 6, ours), Unseen(*map(gpu, pairs), 6, theirs)
    owners, cutoffs = np.arange(6), ours.cutoffs(np.array([0, 3, 8, 12, 5, 5]))
    same(there.available(gpu(owners)), unseen.available(owners))
    same(there.usable_cutoffs(gpu(owners), gpu(cutoffs)), unseen.usable_cutoffs(owners, cutoffs))
    points %= unseen.available(owners)[:, None]
    same(there.positions(gpu(owners), gpu(points)), unseen.positions(owners, points))
    some, taken = owners[::2], np.array([[1, 30], [4, 5], [30, 30]])
    rest, rest_there = unseen.without(some, taken), there.without(gpu(some), gpu(taken))
    same(rest_there.available(gpu(np.arange(3))), rest.available(np.arange(3)))


@EACH_KIND
@pytest.mark.parametrize("exact", [True, False])
def test_negatives(kind: str, exact: bool) -> None:
    users = np.sort(RNG.integers(0, 12, 200))
    items, times = RNG.integers(0, N_ITEMS, 200), RNG.integers(0, 12, 200)
    history = histories(users, items, times)
    which = np.flatnonzero(history.counts < N_ITEMS)
    ours, theirs = line(kind, users), line(kind, gpu(users))
    series = series_negatives(history, which, ours, 25, SEED, exact)  # several rounds: most users have fewer unseen
    same(series_negatives(gpu(history), gpu(which), theirs, 25, SEED, exact), series)
    found = row_negatives(users, items, ours, 3, SEED, times, exact)
    same(row_negatives(gpu(users), gpu(items), theirs, 3, SEED, gpu(times), exact), found)


# --- Operators on dataframes ------------------------------------------------------------------------------------


class Selector:
    def __init__(self, *names: str) -> None:
        self.names = list(names)


def collection(*frames: Any) -> SimpleNamespace:
    """A Dask collection of partitions, as passed to an operator."""
    return SimpleNamespace(to_delayed=lambda: [dask.delayed(lambda frame=frame: frame)() for frame in frames])


def computed(delayed: Any) -> Any:
    return delayed.compute(scheduler="synchronous")


def make_log(kind: str) -> pd.DataFrame:
    log = pd.DataFrame({name: RNG.integers(0, high, 250) for name, high in (("user", 9), ("item", N_ITEMS))})
    if kind == "text":
        log = log.astype(str)
    elif kind == "far apart":
        log *= 10**15
    elif kind == "narrow":
        log = log.astype(np.int32)
    return log.assign(time=RNG.integers(0, 12, 250))


@pytest.mark.parametrize("kind", ["near", "narrow", "far apart", "text"])
def test_encoding(kind: str) -> None:
    log, selector = make_log(kind), Selector("user", "item", "time")
    encoders = EncodeIds(keep=["time"]), EncodeIds(keep=["time"])
    halves = [log.iloc[:100], log.iloc[100:]]
    for encoder, parts in zip(encoders, (halves, map(Frame.of, halves)), strict=True):
        encoder.fit_finalize(computed(encoder.fit(selector, collection(*parts))))
    for name, ids in encoders[0].categories.items():
        pd.testing.assert_series_equal(encoders[1].categories[name], ids)
    found = encoders[1].transform(selector, Frame.of(log)).on_host()
    pd.testing.assert_frame_equal(found, encoders[0].transform(selector, log))


@pytest.mark.parametrize(("low", "high"), [(0, 40), (-(2**63), -(2**63) + 40), (2**63 - 40, 2**63 - 1)])
@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_unknown_ids(low: int, high: int, kind: str) -> None:
    table = IdTable(pd.Series([low, high, low + 7]))
    ids = [value for value in (low, high, low + 7, 3, 2**31 - 1, high - 2) if abs(value) < 2**31 or kind == "int64"]
    column = pd.Series(ids, dtype=kind)
    same(table.numbers(Column(column)), IdTable(table.ids).numbers(column))


def test_statistics() -> None:
    log, encoder = make_log("near"), EncodeIds({"item": pd.Series(range(N_ITEMS))})
    log.loc[::7, "item"] = -1
    fitted = []
    for parts in ([log.iloc[:90], log.iloc[90:]], [Frame.of(log.iloc[:90]), Frame.of(log.iloc[90:])]):
        statistics = ItemStatistics(encoder, "item", "time")
        statistics.fit_finalize(computed(statistics.fit(Selector("item", "time"), collection(*parts))))
        fitted.append(statistics)
    np.testing.assert_array_equal(fitted[1].counts, fitted[0].counts)
    np.testing.assert_array_equal(fitted[1].since, fitted[0].since)
    assert fitted[1].transform(Selector("item"), Frame.of(log)).on_host().columns.tolist() == ["item"]


def operators(kind: str, operator: type, negatives: int) -> Iterator[Any]:
    """Two equal operators, one per library: each caches its candidates."""
    sampling = Sampling(**KINDS[kind])
    encoder = EncodeIds({"item": pd.Series(range(N_ITEMS))})
    for _ in range(2):
        statistics = ItemStatistics(encoder, "item", "time")
        statistics.fit_finalize((COUNTS, SINCE))
        options = {"sampling": sampling, "statistics": statistics}
        if operator is LeaveOneOut:
            yield LeaveOneOut(encoder, "user", "item", "time", 6, negatives, **options)
        else:
            yield AppendNegatives(encoder, "user", "item", negatives, time="time", **options)


@EACH_KIND
@pytest.mark.parametrize("operator", [LeaveOneOut, AppendNegatives])
@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("rows", ["known", "some unknown", "none"])
def test_splitting_and_appending(kind: str, operator: type, negatives: int, rows: str) -> None:
    log = make_log("narrow")
    if rows == "some unknown":
        log.loc[::5, "item"] = -1
    elif rows == "none":
        log = log.iloc[:0]
    ours, theirs = operators(kind, operator, negatives)
    found = theirs.transform(None, Frame.of(log)).on_host()
    pd.testing.assert_frame_equal(found, ours.transform(None, log).reset_index(drop=True))


# --- The guard --------------------------------------------------------------------------------------------------


def test_every_listed_host_sync_happens(synced: dict[str, set[str]]) -> None:
    for kind in ("near", "text"):
        test_encoding(kind)
    test_candidates("popularity")
    test_statistics()
    test_splitting_and_appending("both", LeaveOneOut, 2, "known")
    assert synced == HOST_SYNCS


@pytest.mark.parametrize(
    "use",
    [
        lambda x: [value for value in x],  # noqa: C416
        lambda x: list(range(10))[x[0] :],
        lambda x: float(x[0]),
        lambda x: x if x[0] else None,
        lambda x: int(x[0]),
        lambda x: x.get(),
        lambda x: np.asarray(x),
        lambda x: np.sort(x),
        lambda x: x + np.arange(3),
        lambda x: x + strict.asarray([1, 2, 3], device=CPU),
        lambda x: strict.asarray(["a", "b"], dtype=object),
        lambda x: x.item(),
        lambda x: x.tolist(),
        lambda x: x.astype("int32"),
        lambda x: Frame({"x": np.arange(3)}),
        lambda x: Column(pd.Series(["a"])).values,
    ],
)
def test_operations_that_fail_or_copy_on_a_gpu_are_rejected(use: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pretend that the code is in a file under workflows/.
    code = use.__code__.replace(co_filename=str(WORKFLOWS / "some_file.py"))
    there = type(use)(code, use.__globals__)
    with pytest.raises((TypeError, RuntimeError, ValueError, AttributeError, AssertionError, BufferError)):
        there(gpu(np.arange(3)))


PURE = ("interactions", "candidates", "negatives", "counter_rng")


@pytest.mark.parametrize("name", PURE)
def test_array_code_imports_no_library_and_copies_nothing_to_the_host(name: str) -> None:
    tree = ast.parse((WORKFLOWS / "sampling" / f"{name}.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert not imported & {"numpy", "pandas", "torch", "cupy", "cudf"}
    read = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not read & {"item", "tolist", "get", "numpy", "to_numpy", "cpu", "asnumpy"}


def test_to_host_accepts_arrays_and_columns_of_either_library() -> None:
    np.testing.assert_array_equal(to_host(np.arange(3)), np.arange(3))
    np.testing.assert_array_equal(to_host(gpu(np.arange(3))), np.arange(3))
    assert to_host(Column(pd.Series(["b", "a"]))).tolist() == ["b", "a"]
