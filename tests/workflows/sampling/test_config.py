"""The candidates for negative sampling: their order, weights and array library."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workflows.sampling.config import Sampling, build_candidates
from workflows.sampling.negatives import MAX_WEIGHT

COUNTS, SINCE = np.array([16, 0, 1, 81]), np.array([5, 9, -3, 5])


def test_statistics_are_needed_only_for_popularity_and_time() -> None:
    needed = [
        s
        for s in (Sampling(), Sampling(kind="uniform"), Sampling(kind="popularity"), Sampling(time_aware=True))
        if s.needs_statistics
    ]
    assert needed == [Sampling(kind="popularity"), Sampling(time_aware=True)]


@pytest.mark.parametrize("kind", ["exact", "uniform"])
def test_with_equal_weights_the_candidates_hold_only_their_number(kind: str) -> None:
    candidates = build_candidates(4, Sampling(kind=kind), None, None, np.zeros(1))
    assert (candidates.n_items, candidates.weight) == (4, 4)
    assert all(part is None for part in (candidates.cdf, candidates.items, candidates.positions, candidates.since))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 10.0])
def test_weights_are_proportional_to_the_powers_and_never_zero(exponent: float) -> None:
    candidates = build_candidates(4, Sampling(kind="popularity", exponent=exponent), COUNTS, None, np.zeros(1))
    weights = np.diff(candidates.cdf)
    powers = [float(count) ** exponent for count in COUNTS]  # 0 ** 0 is 1 in Python as in NumPy
    np.testing.assert_allclose(weights, np.array(powers) / sum(powers) * MAX_WEIGHT, rtol=1e-9, atol=2)
    assert weights.min() >= 1
    assert candidates.cdf[0] == 0
    assert candidates.weight <= MAX_WEIGHT


def test_the_weight_of_a_large_catalogue_stays_within_the_maximum() -> None:
    counts = np.zeros(1_000_000, dtype=np.int64)
    counts[0] = 2**40
    candidates = build_candidates(len(counts), Sampling(kind="popularity", exponent=10.0), counts, None, counts)
    assert MAX_WEIGHT - 2 * len(counts) < candidates.weight <= MAX_WEIGHT
    assert np.diff(candidates.cdf).min() == 1


@pytest.mark.parametrize("kind", ["exact", "popularity"])
def test_time_aware_candidates_are_ordered_by_time(kind: str) -> None:
    candidates = build_candidates(4, Sampling(kind=kind, time_aware=True, exponent=0.5), COUNTS, SINCE, np.zeros(1))
    assert candidates.items.tolist() == [2, 0, 3, 1]  # ties in time are ordered by item
    assert candidates.positions[candidates.items].tolist() == [0, 1, 2, 3]
    assert candidates.since.tolist() == [-3, 5, 5, 9]
    assert candidates.cutoffs(np.array([-4, -3, 4, 5, 8, 9])).tolist() == [0, 1, 1, 3, 3, 4]
    if kind == "popularity":
        weights = np.diff(candidates.cdf)
        np.testing.assert_allclose(weights / weights.sum(), np.array([1, 4, 9, 0]) / 14, atol=1e-9)


def test_candidates_are_built_in_the_library_of_the_given_array() -> None:
    sampling = Sampling(kind="popularity", time_aware=True)
    candidates = build_candidates(4, sampling, COUNTS, SINCE, torch.zeros(1))
    expected = build_candidates(4, sampling, COUNTS, SINCE, np.zeros(1))
    for name in ("cdf", "items", "positions", "since"):
        assert getattr(candidates, name).dtype == torch.int64
        np.testing.assert_array_equal(getattr(candidates, name).numpy(), getattr(expected, name))
