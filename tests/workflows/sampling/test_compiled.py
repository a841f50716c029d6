"""Compiled loops against the array code that they replace, and the conditions for using them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workflows.device.loops import COMPILED_ROWS, host_loops
from workflows.sampling import compiled, interactions, negatives
from workflows.sampling.candidates import Candidates
from workflows.sampling.counter_rng import keys, stream_seed
from workflows.sampling.interactions import Histories, histories, value_ranges

ROOT = Path(__file__).parents[3]
SEED = stream_seed(4)
LOGS = st.tuples(
    st.integers(0, 2**32 - 1),  # seed
    st.integers(1, 3000),  # rows
    st.integers(1, 40),  # users
    st.integers(1, 60),  # items
    st.sampled_from([1, 100, 2**31, 2**40, 2**50]),  # range of times
    st.sampled_from([np.int32, np.int64]),
)


def log_of(shape: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    seed, rows, users, items, times, dtype = shape
    rng = np.random.default_rng(seed)
    # Sparse user ids, as in one partition.
    ids = (rng.integers(0, users, rows) * 977 - 5000).astype(dtype)
    return ids, rng.integers(0, items, rows).astype(dtype), rng.integers(-7, times, rows)


def same(one: Histories, other: Histories) -> None:
    for field in fields(Histories):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)


@given(LOGS)
def test_histories_match_array_code(shape: tuple) -> None:
    columns = log_of(shape)
    found = compiled.histories(*columns, value_ranges(*columns))
    assert found is not None
    same(Histories(*found), histories(*columns))  # too few rows to use the kernel


@pytest.mark.parametrize("low", [-(2**63), 2**62, 0])
@pytest.mark.parametrize("bits", [0, 1, 10, 11, 12, 31, 32, 33, 62])
def test_histories_at_digit_boundaries(low: int, bits: int) -> None:
    values = low + np.array([0, (1 << bits) - 1, 1 << (bits - 1) if bits else 0, 0], dtype=np.int64)
    narrow = np.zeros(4, dtype=np.int64)
    for columns in ((values, narrow, narrow), (narrow, values, narrow), (narrow, np.arange(4), values)):
        found = compiled.histories(*columns, value_ranges(*columns))
        assert found is not None
        same(Histories(*found), histories(*columns))


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


def test_arrays_can_be_read_only() -> None:
    """As pandas returns them under copy-on-write."""
    columns = log_of((3, 500, 9, 20, 2**40, np.int64))
    expected = histories(*columns)
    found = compiled.histories(*map(read_only, columns), value_ranges(*columns))
    assert found is not None
    same(Histories(*found), expected)
    which = np.flatnonzero(expected.counts < 20)
    ends = expected.starts + expected.counts
    arguments = expected.starts[which], ends[which], expected.items, keys(SEED, expected.users[which]), which * 0 + 20
    np.testing.assert_array_equal(
        compiled.distinct_positions(*map(read_only, arguments), 20, 7), compiled.distinct_positions(*arguments, 20, 7)
    )


def test_ranges_too_wide_for_a_code_are_left_to_array_code() -> None:
    wide, narrow = np.array([-(2**63), 2**63 - 1]), np.array([0, 5])
    assert compiled.histories(wide, narrow, narrow, value_ranges(wide, narrow, narrow)) is None
    columns = narrow, np.array([1, 1]), wide
    assert compiled.histories(*columns, value_ranges(*columns)) is None


@given(LOGS, st.integers(0, 80), st.booleans())
def test_series_negatives_match_array_code(shape: tuple, length: int, time_aware: bool) -> None:
    columns = log_of(shape)
    n_items = int(columns[1].max()) + 2
    candidates = Candidates(n_items)
    if time_aware:
        rng = np.random.default_rng(shape[0])
        line = rng.permutation(n_items)
        candidates = Candidates(n_items, None, line, np.argsort(line), np.sort(rng.integers(-9, shape[4], n_items)))
    history = histories(*columns)
    which = np.flatnonzero(history.counts < n_items)
    # Both calls take the same path except for `host_loops`, which rejects so few rows.
    with pytest.MonkeyPatch.context() as patch:
        expected = negatives.series_negatives(history, which, candidates, length, SEED)
        patch.setattr(negatives, "host_loops", lambda _: compiled)
        found = negatives.series_negatives(history, which, candidates, length, SEED)
    np.testing.assert_array_equal(found, expected)
    assert found.shape == (len(which), length)


def same_rows(users: np.ndarray, items: np.ndarray, n_items: int, per_row: int, as_tensors: bool = False) -> None:
    """Assert that the compiled loop and array code give the same row negatives, in the dtype of the items."""
    candidates = Candidates(n_items)
    given_as = torch.from_numpy if as_tensors else np.asarray
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(negatives, "host_loops", lambda _: None)
        expected = negatives.row_negatives(users, items, candidates, per_row, SEED)
        patch.setattr(negatives, "host_loops", lambda _: compiled)
        found = negatives.row_negatives(given_as(users), given_as(items), candidates, per_row, SEED)
    assert isinstance(found[0], torch.Tensor) == as_tensors
    assert np.asarray(found[0]).dtype == expected[0].dtype == items.dtype
    np.testing.assert_array_equal(found[1], expected[1])
    # Rows without a negative may hold anything.
    np.testing.assert_array_equal(np.asarray(found[0])[expected[1]], expected[0][expected[1]])


@given(LOGS, st.integers(0, 7), st.booleans())
def test_row_negatives_match_array_code(shape: tuple, per_row: int, as_tensors: bool) -> None:
    users, items, _ = log_of(shape)
    order = np.argsort(users, kind="stable")  # keeps repeated pairs
    same_rows(users[order], items[order], int(items.max()) + 1 + shape[0] % 3, per_row, as_tensors)


@pytest.mark.parametrize("kind", [np.int32, np.int64])
@pytest.mark.parametrize("n_items", [3000, 2**31 - 1])
def test_row_negatives_of_users_with_clustered_items(n_items: int, kind: type) -> None:
    rng = np.random.default_rng(5)
    near_the_ends = np.concatenate(
        [np.arange(700), np.arange(n_items - 500, n_items), np.arange(n_items - 500, n_items)]
    )
    users = np.repeat([4, 2, 9, 8], [len(near_the_ends), 900, 1, 2000])
    items = np.concatenate([near_the_ends, 1000 + rng.permutation(900), [n_items - 1], rng.integers(0, n_items, 2000)])
    same_rows(users.astype(kind), items.astype(kind), n_items, 3)


def test_positions_of_one_series_computed_by_hand() -> None:
    """Items 1 and 3 of 5 are taken, leaving 0, 2 and 4: fewer than the five requested."""
    one = np.array([0])
    places = compiled.distinct_positions(one, np.array([2]), np.array([1, 3]), keys(SEED, one), np.array([5]), 5, 5)
    assert places.tolist()[0] in [[0, 0, 2, 2, 4]]
    # Limit 2 leaves only item 0; limit 0 leaves none, so time is ignored.
    for limit, expected in ((2, {0}), (0, {0, 2, 4})):
        few = compiled.distinct_positions(
            one, np.array([2]), np.array([1, 3]), keys(SEED, one), np.array([limit]), 5, 3
        )
        assert set(few[0].tolist()) == expected


def test_kernels_are_used_only_for_large_host_arrays() -> None:
    large = np.zeros(COMPILED_ROWS, dtype=np.int32)
    assert host_loops(large) is compiled
    assert host_loops(large[1:]) is None
    assert host_loops(torch.zeros(COMPILED_ROWS)) is None


def test_large_logs_use_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    users, items, times = (rng.integers(0, high, COMPILED_ROWS) for high in (300, 500, 10_000))
    fast = histories(users, items, times)
    which = np.arange(len(fast.users))
    drawn = negatives.series_negatives(fast, which, Candidates(500), 100, SEED)
    monkeypatch.setattr(interactions, "host_loops", lambda _: None)
    monkeypatch.setattr(negatives, "host_loops", lambda _: None)
    same(fast, histories(users, items, times))
    np.testing.assert_array_equal(drawn, negatives.series_negatives(fast, which, Candidates(500), 100, SEED))


def test_array_code_is_the_fallback_without_a_cache_folder(tmp_path: Path) -> None:
    """In a read-only folder without a home directory, as in a locked-down container."""
    shutil.copytree(ROOT / "workflows", tmp_path / "workflows", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "workflows" / "sampling" / "__pycache__").write_text("no folder")
    program = (
        "import numpy as np; from workflows.device.loops import COMPILED_ROWS, host_loops;"
        "print(host_loops(np.zeros(COMPILED_ROWS)))"
    )
    environment = {"HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none", "PATH": "/usr/bin:/bin"}
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.stdout == "None\n", ran.stderr
    assert "NUMBA_CACHE_DIR" in ran.stderr
