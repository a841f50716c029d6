"""A permutation of any size: every place once, without a pattern, the same in every library."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from workflows.device import loops
from workflows.sampling import compiled
from workflows.sampling.permutation import Permutation

SEEDS = st.integers(-(2**63), 2**63 - 1)


def places(size: int, seed: int, like: np.ndarray | torch.Tensor) -> np.ndarray:
    return np.asarray(Permutation(size, seed).places(0, size, like))


@settings(max_examples=60)
@given(st.one_of(st.integers(1, 70), st.integers(71, 5000)), SEEDS)
def test_every_place_occurs_once_in_every_library(size: int, seed: int) -> None:
    found = places(size, seed, np.zeros(0))
    assert found.dtype == np.int64
    assert np.array_equal(np.sort(found), np.arange(size))
    assert np.array_equal(places(size, seed, torch.zeros(0)), found)
    order = Permutation(size, seed)
    assert np.array_equal(compiled.permuted(0, size, size, order.height, order.width, seed), found)


@settings(max_examples=30)
@given(st.integers(1, 400), st.integers(0, 400), st.integers(0, 400), SEEDS)
def test_any_part_can_be_computed_alone(size: int, start: int, stop: int, seed: int) -> None:
    start, stop = sorted((min(start, size), min(stop, size)))
    found = Permutation(size, seed).places(start, stop, np.zeros(0))
    assert np.array_equal(found, places(size, seed, np.zeros(0))[start:stop])


def test_sizes_beyond_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (1 << 38) + 12345
    order, stop = Permutation(size, 7), 10_000
    assert order.height * order.width >= size
    assert order.height * order.width - size < order.width
    found = order.places(0, stop, torch.zeros(0)).numpy()
    assert len(np.unique(found)) == stop
    assert found.min() >= 0
    assert found.max() < size
    monkeypatch.setattr(loops, "COMPILED_ROWS", 1 << 60)
    monkeypatch.setattr(Permutation, "_spare", 0)  # none of these places is beyond the size
    assert np.array_equal(Permutation(size, 7).places(0, stop, np.zeros(0)), found)


@pytest.mark.parametrize("size", [20, 64, 1000, 65_536])
def test_batches_are_random_samples(size: int) -> None:
    """The first tenth of the order holds elements from everywhere, and neighbours are not tied to each other."""
    rng, firsts, steps = np.random.default_rng(1), [], []
    for seed in rng.integers(-(2**63), 2**63 - 1, max(3, 60_000 // size)):
        found = places(size, int(seed), np.zeros(0))
        firsts.append(found[: size // 10])
        steps.append(np.diff(found) % size)
    bins = np.bincount(np.concatenate(firsts) * 20 // size, minlength=20)
    widths = np.bincount(np.arange(size) * 20 // size, minlength=20)
    assert stats.chisquare(bins, widths / widths.sum() * bins.sum()).pvalue > 1e-4
    # The difference of neighbours is any number but 0, equally often.
    between = np.concatenate(steps) - 1
    bins = np.bincount(between * 19 // (size - 1), minlength=19)
    widths = np.bincount(np.arange(size - 1) * 19 // (size - 1), minlength=19)
    assert stats.chisquare(bins, widths / widths.sum() * bins.sum()).pvalue > 1e-4


def test_pairs_of_elements_are_independent() -> None:
    """All pairs of places of two elements are equally likely, also of elements in one row or column of the grid."""
    size = 24
    orders = np.stack(
        [places(size, int(s), np.zeros(0)) for s in np.random.default_rng(2).integers(0, 2**63 - 1, 6_000)]
    )
    for first, second in ((0, 1), (0, Permutation(size, 0).width), (3, 19)):
        pairs = np.bincount(orders[:, first] * size + orders[:, second], minlength=size * size).reshape(size, size)
        assert not pairs.diagonal().any()
        assert stats.chisquare(pairs[~np.eye(size, dtype=bool)]).pvalue > 1e-4


def test_seeds_give_unrelated_orders() -> None:
    first, second = (places(5000, seed, np.zeros(0)) for seed in (1, 2))
    assert np.mean(first == second) < 0.002
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
