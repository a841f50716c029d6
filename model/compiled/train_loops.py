"""Compiled loops for training on a CPU, one part of the work per thread: gradients of a block of samples, and Adam.

ReLU and dropout zero about three quarters of the hidden units. A zero unit contributes nothing, so these loops list the
nonzero units and visit only their rows of the weights: exact, at a quarter of the work. numba compiles the loops on
first import; later imports load them from `__pycache__`.

Shapes: N samples, D users of the block, I items, F factors, w_1 … w_L widths of the hidden layers, S = w_1 + … + w_L,
U = w_2 + … + w_L, P samples of a piece. Matrices in the tuples are flat.
"""

from __future__ import annotations

from math import exp, log1p, sqrt
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
    prefetch_row,
    tuple_type,
)
from workflows.sampling import counter_rng

_PIECE = U(64)  # P: samples whose activations stay in the cache until their weight gradients are accumulated
_KEEP_BITS = 16
KEEP_ALL, KEEP_HALF = 1 << _KEEP_BITS, 1 << (_KEEP_BITS - 1)

_mix = njit(counter_rng.mix)


class SampleColumns(NamedTuple):
    """Samples of a batch.

    Attributes:
        users, items: int32 [N], rows of the block's users and the batch's items.
        labels: float32 [N].
    """

    users: np.ndarray
    items: np.ndarray
    labels: np.ndarray


class Projected(NamedTuple):
    """What the network computes of each user or item alone, or its gradient; R is D or I.

    Attributes:
        first: float32 [R, w_1], the part of the first layer before ReLU. The users' part includes the bias.
        gmf: float32 [R, F], the GMF embedding.
    """

    first: np.ndarray
    gmf: np.ndarray


class Weights(NamedTuple):
    """The network above the first layer.

    Attributes:
        widths: uint64 [L].
        down, up: float32, the weights of layers 2 … L, concatenated: [in, out] each, and the same values [out, in].
            The forward pass adds rows of the former, the backward pass rows of the latter.
        biases: float32 [U], of layers 2 … L.
        gmf_head, hidden_head: float32 [F] and [w_L], the weights of the last layer.
        head_bias: float32.
    """

    widths: np.ndarray
    down: np.ndarray
    up: np.ndarray
    biases: np.ndarray
    gmf_head: np.ndarray
    hidden_head: np.ndarray
    head_bias: np.float32


class Sums(NamedTuple):
    """What a thread adds up over its samples.

    Attributes:
        users: gradients of the block's users. Threads share the arrays, but no user's samples are on two threads.
        items: gradients of the batch's items.
        up, biases, gmf_head, hidden_head: gradients of the `Weights` of that name, float32.
        scalars: float64 [2]: the loss, and the gradient of the last layer's bias.
    """

    users: Projected
    items: Projected
    up: np.ndarray
    biases: np.ndarray
    gmf_head: np.ndarray
    hidden_head: np.ndarray
    scalars: np.ndarray


class Dropout(NamedTuple):
    """The dropout of a batch.

    Attributes:
        keep: probability of keeping a hidden unit, times 2**16, an int.
        scale: float32, factor of the kept units.
        seed: an int, combined with the sample index.
    """

    keep: int
    scale: np.float32
    seed: int

    @classmethod
    def keeping(cls, keep: int, seed: int) -> Dropout:
        return cls(keep, np.float32(KEEP_ALL / keep), seed)


class _Scratch(NamedTuple):
    """One thread's memory for a piece of samples. W is S, each width divided by 64 and rounded up.

    Attributes:
        hidden, active, slopes: float32 [P, S], uint64 [P, W] and float32 [P], for each sample: its hidden units, the
            bits of the nonzero ones, and the gradient of its logit.
        listed, numbers: float32 and uint64 [largest w], the nonzero units of a layer and their indices.
        gradient, lower: float32 [largest w], gradients of a layer's units and of those of the layer below.
        values, samples, counts: float32 and uint64 [U, P], uint64 [U]; for each unit of layers 2 … L: its gradients
            in the samples in which it is nonzero, the indices of those samples, and their number.
    """

    hidden: np.ndarray
    active: np.ndarray
    slopes: np.ndarray
    listed: np.ndarray
    numbers: np.ndarray
    gradient: np.ndarray
    lower: np.ndarray
    values: np.ndarray
    samples: np.ndarray
    counts: np.ndarray

    @classmethod
    def empty(cls, widths: np.ndarray) -> _Scratch:
        piece, largest, n_words = int(_PIECE), int(widths.max()), int(((widths + U(63)) // U(64)).sum())
        n_lists = int(widths[1:].sum())
        return cls(
            hidden=np.empty(piece * int(widths.sum()), np.float32),
            active=np.empty(piece * n_words, np.uint64),
            slopes=np.empty(piece, np.float32),
            listed=np.empty(largest, np.float32),
            numbers=np.empty(largest, np.uint64),
            gradient=np.empty(largest, np.float32),
            lower=np.empty(largest, np.float32),
            values=np.empty(n_lists * piece, np.float32),
            samples=np.empty(n_lists * piece, np.uint64),
            counts=np.empty(n_lists, np.uint64),
        )


_WORDS = U64[::1]
_SAMPLES = tuple_type(SampleColumns, I32[::1], I32[::1], VECTOR)
_ROWS = tuple_type(Projected, VECTOR, VECTOR)
_WEIGHTS = tuple_type(Weights, _WORDS, *[VECTOR] * 5, F32)
_SUMS = tuple_type(Sums, _ROWS, _ROWS, *[VECTOR] * 4, types.float64[::1])
_DROPOUT = tuple_type(Dropout, I64, F32, I64)
_SCRATCH = tuple_type(_Scratch, VECTOR, _WORDS, VECTOR, VECTOR, _WORDS, *[VECTOR] * 3, _WORDS, _WORDS)


@inlined
def _next(state):
    """xorshift64: the next state; the cycle covers all values but 0 (Marsaglia 2003)."""
    state ^= state << U(13)
    state ^= state >> U(7)
    return state ^ (state << U(17))


@inlined
def _first_state(seed, sample):
    """The initial random state of a sample's masks; never 0."""
    return U(_mix(seed + np.int64(sample) * np.int64(0x632BE59BD9B4E019))) | U(1)


@inlined
def _kept(keep, state):
    """Bits of the kept units out of 64, each with probability `keep` / 2**16, and the next random state."""
    if keep == KEEP_ALL:
        return ~U(0), state
    if keep == KEEP_HALF:
        state = _next(state)
        return state * U(2685821657736338717), state
    bits = U(0)
    for start in range(U(0), U(64), U(4)):
        state = _next(state)
        drawn = state * U(2685821657736338717)
        for index in range(U(4)):
            low = (drawn >> (U(_KEEP_BITS) * index)) & U(0xFFFF)
            bits |= U(low < keep) << (start + index)
    return bits, state


@njit(types.uint8[:, ::1](I64, I64, I64, types.int64[::1], I64), cache=True)
def dropout_masks(seed, first, last, hidden_widths, keep):
    """Dropout masks that `train_block` applies to samples first … last - 1: uint8 [N, w_1 + … + w_L], 1: kept."""
    masks = np.empty((last - first, hidden_widths.sum()), np.uint8)
    for sample in range(first, last):
        state, at = _first_state(seed, sample), 0
        for width in hidden_widths:
            for start in range(0, width, 64):
                kept, state = _kept(U(keep), state)
                for index in range(min(64, width - start)):
                    masks[sample - first, at + start + index] = (kept >> U(index)) & U(1)
            at += width
    return masks


@inlined
def _n_words(width):
    """Number of words for the bits of a layer's units."""
    return (width + U(63)) // U(64)


@inlined
def _activate(units, at, width, active, words, keep, scale, state):
    """ReLU and dropout of units at … at + width - 1, in place. Returns the next random state.

    Sets the bits of the nonzero units in `active`, starting at word `words`.
    """
    word = words
    for start in range(U(0), width, U(64)):
        kept, state = _kept(keep, state)
        begin, n_units = at + start, min(U(64), width - start)
        positive = U(0)
        # Full words have a width known at compile time; the last one may be shorter.
        if n_units == U(64):
            for index in range(U(64)):
                positive |= U(units[begin + index] > ZERO) << index
            kept &= positive
            for index in range(U(64)):
                units[begin + index] = scale * units[begin + index] if (kept >> index) & U(1) else ZERO
        else:
            for index in range(n_units):
                positive |= U(units[begin + index] > ZERO) << index
            kept &= positive
            for index in range(n_units):
                units[begin + index] = scale * units[begin + index] if (kept >> index) & U(1) else ZERO
        active[word] = kept
        word += U(1)
    return state


@inlined
def _list_active(values, at, width, active, words, listed, numbers):
    """List the nonzero units of a layer: indices in `numbers`, `values` in `listed`. Returns their number.

    The values start at `at`, the layer's bits in `active` at word `words`.
    """
    n_active, word = U(0), words
    for start in range(U(0), width, U(64)):
        bits = active[word]
        word += U(1)
        while bits:
            unit = start + lowest_bit(bits)
            bits &= bits - U(1)
            numbers[n_active] = unit
            listed[n_active] = values[at + unit]
            n_active += U(1)
    return n_active


@inlined
def _forward(samples, start, n, users, items, weights, dropout, sample_weight, sums, scratch, n_units, n_words):
    """Hidden units, losses and logit gradients of a piece: samples start … start + n - 1."""
    widths, hidden, active = weights.widths, scratch.hidden, scratch.active
    n_layers, n_factors = len(widths), U(len(weights.gmf_head))
    w_first, w_last = widths[0], widths[n_layers - 1]
    keep, scale = U(dropout.keep), dropout.scale
    for sample in range(n):
        user, item = U(samples.users[start + sample]), U(samples.items[start + sample])
        if sample + AHEAD < n:
            coming = U(samples.items[start + sample + AHEAD])
            prefetch_row(items.first, coming, w_first)
            prefetch_row(items.gmf, coming, n_factors)
        at, words = sample * n_units, sample * n_words
        of_user, of_item = user * w_first, item * w_first
        for unit in range(w_first):
            hidden[at + unit] = users.first[of_user + unit] + items.first[of_item + unit]
        state = _first_state(dropout.seed, start + sample)
        state = _activate(hidden, at, w_first, active, words, keep, scale, state)
        bias, offset = U(0), U(0)
        for layer in range(1, n_layers):
            width, below = widths[layer], widths[layer - 1]
            n_active = _list_active(hidden, at, below, active, words, scratch.listed, scratch.numbers)
            at, words = at + below, words + _n_words(below)
            for unit in range(width):
                hidden[at + unit] = weights.biases[bias + unit]
            add_rows(hidden, at, width, weights.down, offset, width, scratch.listed, scratch.numbers, U(0), n_active)
            state = _activate(hidden, at, width, active, words, keep, scale, state)
            bias, offset = bias + width, offset + width * below
        logit = weights.head_bias
        for unit in range(w_last):
            logit += hidden[at + unit] * weights.hidden_head[unit]
        of_user, of_item = user * n_factors, item * n_factors
        for factor in range(n_factors):
            logit += users.gmf[of_user + factor] * weights.gmf_head[factor] * items.gmf[of_item + factor]
        small = exp(-abs(logit))
        chance = 1.0 / (1.0 + small) if logit >= 0 else small / (1.0 + small)
        label = samples.labels[start + sample]
        sums.scalars[0] += max(logit, ZERO) - logit * label + log1p(small)
        scratch.slopes[sample] = (chance - label) * sample_weight
        sums.scalars[1] += scratch.slopes[sample]


@inlined
def _backward(samples, start, n, users, items, weights, dropout, sums, scratch, n_units, n_words):
    """Gradients of a piece, except `sums.up`: `_add_weight_gradients` computes that from the lists in `scratch`."""
    widths, hidden, active, gradient, lower = (
        weights.widths, scratch.hidden, scratch.active, scratch.gradient, scratch.lower,
    )  # fmt: skip
    n_layers, n_factors, n_lists = len(widths), U(len(weights.gmf_head)), U(len(scratch.counts))
    w_first, w_last = widths[0], widths[n_layers - 1]
    for unit in range(n_lists):
        scratch.counts[unit] = U(0)
    for sample in range(n):
        user, item = U(samples.users[start + sample]), U(samples.items[start + sample])
        slope = scratch.slopes[sample]
        if sample + AHEAD < n:
            coming = U(samples.items[start + sample + AHEAD])
            prefetch_row(sums.items.first, coming, w_first)
            prefetch_row(sums.items.gmf, coming, n_factors)
        at, words = (sample + U(1)) * n_units - w_last, (sample + U(1)) * n_words - _n_words(w_last)
        bias, offset = n_lists, U(len(weights.up))
        slope_of_hidden = slope * dropout.scale
        for unit in range(w_last):
            sums.hidden_head[unit] += slope * hidden[at + unit]
            gradient[unit] = slope_of_hidden * weights.hidden_head[unit] if hidden[at + unit] > ZERO else ZERO
        for layer in range(n_layers - 1, 0, -1):
            width, below = widths[layer], widths[layer - 1]
            bias, offset = bias - width, offset - width * below
            for unit in range(width):
                sums.biases[bias + unit] += gradient[unit]
            n_active = _list_active(gradient, U(0), width, active, words, scratch.listed, scratch.numbers)
            for t in range(n_active):
                unit = bias + scratch.numbers[t]
                index = unit * _PIECE + scratch.counts[unit]
                scratch.samples[index] = sample
                scratch.values[index] = scratch.listed[t]
                scratch.counts[unit] += U(1)
            for unit in range(below):
                lower[unit] = ZERO
            add_rows(lower, U(0), below, weights.up, offset, below, scratch.listed, scratch.numbers, U(0), n_active)
            at, words = at - below, words - _n_words(below)
            for unit in range(below):
                gradient[unit] = dropout.scale * lower[unit] if hidden[at + unit] > ZERO else ZERO
        of_user, of_item = user * w_first, item * w_first
        for unit in range(w_first):
            sums.users.first[of_user + unit] += gradient[unit]
        for unit in range(w_first):
            sums.items.first[of_item + unit] += gradient[unit]
        of_user, of_item = user * n_factors, item * n_factors
        for factor in range(n_factors):
            by_item = slope * items.gmf[of_item + factor]
            sums.gmf_head[factor] += by_item * users.gmf[of_user + factor]
            sums.users.gmf[of_user + factor] += by_item * weights.gmf_head[factor]
            sums.items.gmf[of_item + factor] += slope * users.gmf[of_user + factor] * weights.gmf_head[factor]


@inlined
def _add_weight_gradients(weights, sums, scratch, n_units):
    """Add a piece's gradients to `sums.up`: each unit's row stays in registers while all its samples are added."""
    unit, offset, at = U(0), U(0), U(0)
    for layer in range(1, len(weights.widths)):
        below = weights.widths[layer - 1]
        for _ in range(weights.widths[layer]):
            add_rows(
                sums.up, offset, below, scratch.hidden, at, n_units, scratch.values, scratch.samples, unit * _PIECE,
                scratch.counts[unit],
            )  # fmt: skip
            unit, offset = unit + U(1), offset + below
        at += below


def train_block(
    samples: SampleColumns, first: int, last: int, users: Projected, items: Projected, weights: Weights,
    dropout: Dropout, sample_weight: float, sums: Sums,
) -> None:  # fmt: skip
    """Forward and backward of samples first … last - 1; adds their losses and gradients to `sums`.

    Args:
        sample_weight: of each sample in the gradient, not in the loss.
    """
    scratch = _Scratch.empty(weights.widths)
    _train_block(samples, first, last, users, items, weights, dropout, sample_weight, sums, scratch)


# No reference counting (`_nrt`), which would take a third of the time; hence no allocation of arrays.
@njit(
    types.void(_SAMPLES, I64, I64, _ROWS, _ROWS, _WEIGHTS, _DROPOUT, F32, _SUMS, _SCRATCH),
    cache=True, _nrt=False, **FAST,
)  # fmt: skip
def _train_block(samples, first, last, users, items, weights, dropout, sample_weight, sums, scratch):
    """See `train_block`."""
    n_units, n_words = U(0), U(0)
    for layer in range(len(weights.widths)):
        n_units += weights.widths[layer]
        n_words += _n_words(weights.widths[layer])
    for start in range(U(first), U(last), _PIECE):
        n = min(_PIECE, U(last) - start)
        _forward(samples, start, n, users, items, weights, dropout, sample_weight, sums, scratch, n_units, n_words)
        _backward(samples, start, n, users, items, weights, dropout, sums, scratch, n_units, n_words)
        _add_weight_gradients(weights, sums, scratch, n_units)


@njit(
    types.void(*[MATRIX] * 4, I32[::1], I64, I64, *[types.float64] * 4, I64),
    cache=True, _nrt=False, **FAST,
)  # fmt: skip
def adam_rows(weights, means, squares, gradients, rows, first, last, rate, beta1, beta2, eps, step):
    """Adam (Kingma and Ba 2015, algorithm 1) on rows first … last - 1, in place.

    Args:
        weights, means, squares: float32 [R, W], the parameter and its two moments.
        gradients: float32 [G, W].
        rows: int32 [R], the row of `gradients` for each row; -1 for a zero gradient.
        step: counted from 1.
    """
    by_mean, by_square = np.float32(rate / (1.0 - beta1**step)), np.float32(1.0 / sqrt(1.0 - beta2**step))
    beta1, rest1, beta2, rest2 = np.float32(beta1), np.float32(1.0 - beta1), np.float32(beta2), np.float32(1.0 - beta2)
    eps = np.float32(eps)
    for row in range(first, last):
        weight, mean, square = weights[row], means[row], squares[row]
        if rows[row] < 0:
            for index in range(len(weight)):
                mean[index] *= beta1
                square[index] *= beta2
                weight[index] -= by_mean * mean[index] / (sqrt(square[index]) * by_square + eps)
        else:
            gradient = gradients[rows[row]]
            for index in range(len(weight)):
                slope = gradient[index]
                mean[index] = beta1 * mean[index] + rest1 * slope
                square[index] = beta2 * square[index] + rest2 * slope * slope
                weight[index] -= by_mean * mean[index] / (sqrt(square[index]) * by_square + eps)
