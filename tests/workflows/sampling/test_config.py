"""The candidates for negative sampling: their order, weights and array library."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workflows.sampling.config import Sampling, line_of
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
    line = line_of(4, Sampling(kind=kind), None, None, np.zeros(1))
    assert (line.n_items, line.weight) == (4, 4)
    assert all(part is None for part in (line.before, line.items, line.places, line.since))


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, 10.0])
def test_weights_are_proportional_to_the_powers_and_never_zero(exponent: float) -> None:
    line = line_of(4, Sampling(kind="popularity", exponent=exponent), COUNTS, None, np.zeros(1))
    weights = np.diff(line.before)
    powers = [float(count) ** exponent for count in COUNTS]  # 0 ** 0 is 1 in Python as in NumPy
    np.testing.assert_allclose(weights, np.array(powers) / sum(powers) * MAX_WEIGHT, rtol=1e-9, atol=2)
    assert weights.min() >= 1
    assert line.before[0] == 0
    assert line.weight <= MAX_WEIGHT


def test_the_weight_of_a_large_catalogue_stays_within_the_maximum() -> None:
    counts = np.zeros(1_000_000, dtype=np.int64)
    counts[0] = 2**40
    line = line_of(len(counts), Sampling(kind="popularity", exponent=10.0), counts, None, counts)
    assert MAX_WEIGHT - 2 * len(counts) < line.weight <= MAX_WEIGHT
    assert np.diff(line.before).min() == 1


@pytest.mark.parametrize("kind", ["exact", "popularity"])
def test_time_aware_candidates_are_ordered_by_time(kind: str) -> None:
    line = line_of(4, Sampling(kind=kind, time_aware=True, exponent=0.5), COUNTS, SINCE, np.zeros(1))
    assert line.items.tolist() == [2, 0, 3, 1]  # ties in time are ordered by item
    assert line.places[line.items].tolist() == [0, 1, 2, 3]
    assert line.since.tolist() == [-3, 5, 5, 9]
    assert line.limits(np.array([-4, -3, 4, 5, 8, 9])).tolist() == [0, 1, 1, 3, 3, 4]
    if kind == "popularity":
        weights = np.diff(line.before)
        np.testing.assert_allclose(weights / weights.sum(), np.array([1, 4, 9, 0]) / 14, atol=1e-9)


def test_candidates_are_built_in_the_library_of_the_given_array() -> None:
    sampling = Sampling(kind="popularity", time_aware=True)
    line = line_of(4, sampling, COUNTS, SINCE, torch.zeros(1))
    expected = line_of(4, sampling, COUNTS, SINCE, np.zeros(1))
    for name in ("before", "items", "places", "since"):
        assert getattr(line, name).dtype == torch.int64
        np.testing.assert_array_equal(getattr(line, name).numpy(), getattr(expected, name))
