"""Compiled loops for scoring on a CPU, one part of the pairs or items per thread.

ReLU and folding (`model.compiled.folding`) leave few units nonzero. The loops list them and visit only their rows of
the weights. numba compiles the loops on first import; later imports load them from `__pycache__`.

Shapes: N pairs, R rows (a user with its side features), I items, F factors, w_1 … w_L widths of the hidden layers,
S = w_1 + … + w_L. Matrices in the tuples are flat.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, types

from model.compiled.llvm import (
    AHEAD,
    F32,
    FAST,
    I32,
    I64,
    MATRIX,
    U64,
    VECTOR,
    ZERO,
    U,
    add_rows,
    inlined,
    lowest_bit,
    positive_bits,
    prefetch_row,
    tuple_type,
)

_TILE = U(256)  # items that stay in the cache for all rows


class Pairs(NamedTuple):
    """Pairs to score.

    Attributes:
        rows, items: int32 [N], rows of the two `Tables`.
    """

    rows: np.ndarray
    items: np.ndarray


class Tables(NamedTuple):
    """What each row and each item contribute to all hidden units, then their GMF factors.

    Attributes:
        rows, items: float32 [R, S + F] and [I, S + F].
    """

    rows: np.ndarray
    items: np.ndarray


class Network(NamedTuple):
    """The folded network above the tables.

    Attributes:
        widths: uint64 [L].
        factors: F, an int.
        passed: for layers 1 … L - 1, the contribution of their units to all layers above, concatenated, float32
            [w_l, w_(l+1) + … + w_L].
        head, bias: of the last layer, float32 [w_L] and a float32.
    """

    widths: np.ndarray
    factors: int
    passed: np.ndarray
    head: np.ndarray
    bias: np.float32


class Scratch(NamedTuple):
    """One thread's memory for a pair.

    Attributes:
        units: float32 [S], all hidden units.
        listed, numbers: float32 and uint64 [largest w], the positive units of a layer and their indices.
    """

    units: np.ndarray
    listed: np.ndarray
    numbers: np.ndarray


_PAIRS = tuple_type(Pairs, *[I32[::1]] * 2)
_SHARED = (
    tuple_type(Tables, *[VECTOR] * 2),
    tuple_type(Network, U64[::1], I64, VECTOR, VECTOR, F32),
    tuple_type(Scratch, VECTOR, VECTOR, U64[::1]),
)


@inlined
def _list_positive(units, at, width, listed, numbers):
    """List the units at … at + width - 1 that are positive or NaN: indices and values. Returns their number."""
    n_listed = U(0)
    for start in range(U(0), width, U(64)):
        begin, n_units, bits = at + start, min(U(64), width - start), U(0)
        if n_units == U(64):
            bits = positive_bits(units, begin)
        else:
            for index in range(n_units):
                bits |= U(not units[begin + index] <= ZERO) << index
        while bits:
            unit = lowest_bit(bits)
            bits &= bits - U(1)
            numbers[n_listed] = start + unit
            listed[n_listed] = units[begin + unit]
            n_listed += U(1)
    return n_listed


@inlined
def _n_units(network):
    """S."""
    n_units = U(0)
    for layer in range(len(network.widths)):
        n_units += network.widths[layer]
    return n_units


@inlined
def _score(row, item, n_units, tables, network, scratch):
    """The logit of a pair, given its rows of the tables."""
    widths, units = network.widths, scratch.units
    n_factors = U(network.factors)
    of_row, of_item = row * (n_units + n_factors), item * (n_units + n_factors)
    for unit in range(n_units):
        units[unit] = tables.rows[of_row + unit] + tables.items[of_item + unit]
    logit, at, offset = network.bias, U(0), U(0)
    for layer in range(len(widths) - 1):
        n_listed = _list_positive(units, at, widths[layer], scratch.listed, scratch.numbers)
        at += widths[layer]
        above = n_units - at
        add_rows(units, at, above, network.passed, offset, above, scratch.listed, scratch.numbers, U(0), n_listed)
        offset += widths[layer] * above
    for unit in range(n_units - at):
        value = units[at + unit]
        logit += network.head[unit] * (ZERO if value <= ZERO else value)
    for factor in range(n_factors):
        logit += tables.rows[of_row + n_units + factor] * tables.items[of_item + n_units + factor]
    return logit


@njit(types.void(I64, I64, VECTOR, _PAIRS, *_SHARED), cache=True, _nrt=False, **FAST)
def score_pairs(first, last, logits, pairs, tables, network, scratch):
    """Score pairs first … last - 1 into `logits`, float32 [N]."""
    n_units = _n_units(network)
    stride = n_units + U(network.factors)
    for pair in range(U(first), U(last)):
        if pair + AHEAD < U(last):
            prefetch_row(tables.items, U(pairs.items[pair + AHEAD]), stride)
        logits[pair] = _score(U(pairs.rows[pair]), U(pairs.items[pair]), n_units, tables, network, scratch)


@njit(types.void(I64, I64, MATRIX, *_SHARED), cache=True, _nrt=False, **FAST)
def score_all(first, last, logits, tables, network, scratch):
    """Score every row with items first … last - 1 into `logits`, float32 [R, I]."""
    n_units = _n_units(network)
    for begin in range(U(first), U(last), _TILE):
        end = min(begin + _TILE, U(last))
        for row in range(U(len(logits))):
            for item in range(begin, end):
                logits[row, item] = _score(row, item, n_units, tables, network, scratch)
