"""Counter-based random numbers against SplitMix64 in Python's unbounded integers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workflows.sampling import counter_rng

INT64 = st.integers(-(2**63), 2**63 - 1)
WORD = 2**64


def finalise(z: int) -> int:
    """SplitMix64's output function on an unsigned 64-bit integer."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def splitmix64(state: int) -> Iterator[int]:
    """The generator as published: add the golden ratio, finalise."""
    while True:
        state = (state + 0x9E3779B97F4A7C15) % WORD
        yield finalise(state)


def unsigned(values: np.ndarray) -> list[int]:
    return [int(value) % WORD for value in values]


def int64(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def test_draws_match_the_published_splitmix64_sequence() -> None:
    # The first outputs for state 1234567, as listed on Rosetta Code.
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert list(itertools.islice(splitmix64(1234567), 5)) == published
    assert unsigned(counter_rng.draws(int64([1234567]), np.arange(5))) == published


@given(st.lists(INT64, min_size=1, max_size=20))
def test_mix_is_the_finaliser(values: list[int]) -> None:
    assert unsigned(counter_rng.mix(int64(values))) == [finalise(value % WORD) for value in values]


@given(st.lists(INT64, min_size=1, max_size=8), INT64)
def test_draw_n_of_a_key_is_output_n_of_its_generator(ids: list[int], seed: int) -> None:
    key = counter_rng.keys(seed, int64(ids))
    assert unsigned(key) == [finalise(finalise(i * 0x9E3779B97F4A7C15 % WORD) ^ (seed % WORD)) for i in ids]
    drawn = counter_rng.draws(key[:, None], np.arange(4)[None, :])
    assert [unsigned(row) for row in drawn] == [list(itertools.islice(splitmix64(k), 4)) for k in unsigned(key)]


@given(st.lists(INT64, min_size=1, max_size=8), INT64, st.integers(1, 2**40))
def test_numpy_and_torch_draw_the_same_numbers(ids: list[int], seed: int, bound: int) -> None:
    def numbers(ids, number):
        return counter_rng.below(counter_rng.draws(counter_rng.keys(seed, ids)[:, None], number[None, :]), bound)

    in_numpy = numbers(int64(ids), np.arange(5))
    in_torch = numbers(torch.tensor(ids, dtype=torch.int64), torch.arange(5))
    np.testing.assert_array_equal(in_numpy, in_torch.numpy())


@given(INT64, st.integers(1, 2**40))
def test_below_is_the_high_word_of_the_product(bits: int, bound: int) -> None:
    number = int(counter_rng.below(int64([bits]), int64([bound]))[0])
    assert number == (bits % WORD) * bound // WORD
    assert 0 <= number < bound


@pytest.mark.parametrize("bound", [1, 2, 3, 2**16, 2**31 - 1, 2**39, 2**40 - 1, 2**40])
def test_below_at_the_extremes_of_the_bits(bound: int) -> None:
    # All bits clear, all set, and either half alone: these reveal a lost carry or a sign error.
    bits = [0, -1, -(2**63), 2**63 - 1, 2**32 - 1, 2**32, -(2**32)]
    expected = [(value % WORD) * bound // WORD for value in bits]
    assert counter_rng.below(int64(bits), bound).tolist() == expected
    assert counter_rng.below(torch.tensor(bits), torch.tensor(bound)).tolist() == expected


def test_below_broadcasts_bounds_over_draws() -> None:
    bits = counter_rng.draws(np.arange(3)[:, None], np.arange(4)[None, :])
    bounds = np.array([1, 10, 1000])
    together = counter_rng.below(bits, bounds[:, None])
    assert together.shape == (3, 4)
    for row, bound in enumerate(bounds):
        np.testing.assert_array_equal(together[row], counter_rng.below(bits[row], int(bound)))


@pytest.mark.parametrize("bins", [7, 64])
def test_numbers_are_uniform_over_ids_and_over_draws(bins: int, assert_uniform: Callable) -> None:
    seed = counter_rng.stream_seed(3, 1)
    over_ids = counter_rng.below(counter_rng.draws(counter_rng.keys(seed, np.arange(100_000)), np.array([0])), bins)
    over_draws = counter_rng.below(counter_rng.draws(counter_rng.keys(seed, np.arange(1)), np.arange(100_000)), bins)
    assert_uniform(np.bincount(over_ids, minlength=bins))
    assert_uniform(np.bincount(over_draws, minlength=bins))


def test_every_bit_is_set_half_the_time() -> None:
    drawn = counter_rng.draws(counter_rng.keys(counter_rng.stream_seed(8), np.arange(40_000)), np.array([5]))
    share = [(drawn >> bit & 1).mean() for bit in range(64)]
    np.testing.assert_allclose(share, 0.5, atol=5 * 0.5 / 40_000**0.5)


def test_neighbouring_draws_are_independent(assert_uniform: Callable) -> None:
    # Pairs of numbers in 0 .. 15 fill a 16 x 16 grid evenly only if they are independent.
    def numbers(seed, ids, number):
        return counter_rng.below(counter_rng.draws(counter_rng.keys(seed, ids), np.array([number])), 16)

    def board(first, second):
        return np.bincount(first * 16 + second, minlength=256)

    ids, seed = np.arange(50_000), counter_rng.stream_seed(1, 2)
    one = numbers(seed, ids, 0)
    assert_uniform(board(one, numbers(seed, ids + 1, 0)))  # neighbouring ids
    assert_uniform(board(one, numbers(seed, ids, 1)))  # neighbouring draws
    assert_uniform(board(one, numbers(seed, ids + 1, 1)))  # both at once
    assert_uniform(board(one, numbers(seed + 1, ids, 0)))  # neighbouring seeds
    assert_uniform(board(one, numbers(counter_rng.stream_seed(1, 3), ids, 0)))  # neighbouring purposes


def test_stream_seed_depends_on_each_part_and_its_position() -> None:
    parts = [(), (0,), (0, 0), (1,), (1, 0), (0, 1), (2, 1), (1, 2), (-1,), (2**63 - 1,)]
    seeds = [counter_rng.stream_seed(*part) for part in parts]
    assert len(set(seeds)) == len(parts)
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)
    assert counter_rng.stream_seed(1, 2) == seeds[7]


def test_ids_that_differ_by_multiples_of_the_golden_ratio_share_no_sequence() -> None:
    # If the id itself were the state, draw 1 of id i would equal draw 0 of id i + golden ratio.
    golden = 0x9E3779B97F4A7C15 - WORD
    ids = np.arange(1000) * golden
    key = counter_rng.keys(counter_rng.stream_seed(0), ids)
    assert np.intersect1d(counter_rng.draws(key, np.array([0])), counter_rng.draws(key, np.array([1]))).size == 0
