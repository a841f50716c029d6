"""Compiled CPU loops: training (forward and backward of a block of samples, Adam) and scoring, one part per thread.

ReLU and dropout zero about three quarters of the hidden units. A zero unit contributes nothing, so these loops list the
nonzero units and visit only their rows of the weights: exact, at a quarter of the work. Compiled by numba on first
import, then loaded from `__pycache__`.

Shapes: N samples, D users of the block, I items, F factors, w_1 … w_L widths of the hidden layers, U = w_2 + … + w_L.
"""

from __future__ import annotations

from math import exp, log1p, sqrt
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from workflows.sampling import counter_rng

_PIECE = np.uint64(64)  # samples whose activations stay in the cache until their weight gradients are accumulated
_AHEAD = np.uint64(2)  # prefetch distance for item rows, in samples
_TILE = np.uint64(256)  # items that stay in the cache for all rows
_KEEP_BITS = 16
KEEP_ALL, KEEP_HALF = 1 << _KEEP_BITS, 1 << (_KEEP_BITS - 1)

_F32, _I64 = types.float32, types.int64
_VECTOR, _MATRIX = _F32[::1], _F32[:, ::1]
# Not `True`, which includes `nnan`: a NaN loss must stay NaN.
_FAST: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "arcp", "nsz", "afn"}}
_inlined = njit(inline="always")
_mix = njit(counter_rng.mix)
_U = np.uint64  # type of all indices below: spares the check for negative indices
_ZERO = np.float32(0.0)


@intrinsic
def _lowest_bit(typing_context, bits):
    """The index of the lowest set bit of a nonzero integer."""

    def generate(context, builder, signature, arguments):
        return builder.cttz(arguments[0], context.get_constant(types.boolean, True))

    return types.uint64(types.uint64), generate


@intrinsic
def _prefetch(typing_context, array, index):
    """Prefetch the cache line of array[place]."""

    def generate(context, builder, signature, arguments):
        structure = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.bitcast(builder.gep(structure.data, [arguments[1]]), ir.PointerType(ir.IntType(8)))
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, *[ir.IntType(32)] * 3])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [pointer, *(ir.Constant(ir.IntType(32), value) for value in (0, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, index), generate


@_inlined
def _prefetch_row(table, row, width):
    for index in range(row * width, (row + _U(1)) * width, _U(16)):
        _prefetch(table, index)


@_inlined
def _next(state):
    """xorshift64: the next state; the cycle covers all values but 0 (Marsaglia 2003)."""
    state ^= state << _U(13)
    state ^= state >> _U(7)
    return state ^ (state << _U(17))


@_inlined
def _first(seed, sample):
    """The initial random state of a sample's masks; never 0."""
    return _U(_mix(seed + np.int64(sample) * np.int64(0x632BE59BD9B4E019))) | _U(1)


@_inlined
def _kept(keep, state):
    """Bits of the kept units out of 64, each with probability `keep` / 2**16, and the next random state."""
    if keep == KEEP_ALL:
        return ~_U(0), state
    if keep == KEEP_HALF:
        state = _next(state)
        return state * _U(2685821657736338717), state
    bits = _U(0)
    for start in range(_U(0), _U(64), _U(4)):
        state = _next(state)
        drawn = state * _U(2685821657736338717)
        for index in range(_U(4)):
            low = (drawn >> (_U(_KEEP_BITS) * index)) & _U(0xFFFF)
            bits |= _U(low < keep) << (start + index)
    return bits, state


@_inlined
def _activate(units, at, width, active, words, keep, scale, state):
    """ReLU and dropout of units at … at + width - 1, in place; sets the bits of nonzero units in `active`, starting at
    `words`. Returns the next random state."""
    word = words
    for start in range(_U(0), width, _U(64)):
        kept, state = _kept(keep, state)
        begin, n_units = at + start, min(_U(64), width - start)
        positive = _U(0)
        # Full words have a width known at compile time; the last one may be shorter.
        if n_units == _U(64):
            for index in range(_U(64)):
                positive |= _U(units[begin + index] > _ZERO) << index
            kept &= positive
            for index in range(_U(64)):
                units[begin + index] = scale * units[begin + index] if (kept >> index) & _U(1) else _ZERO
        else:
            for index in range(n_units):
                positive |= _U(units[begin + index] > _ZERO) << index
            kept &= positive
            for index in range(n_units):
                units[begin + index] = scale * units[begin + index] if (kept >> index) & _U(1) else _ZERO
        active[word] = kept
        word += _U(1)
    return state


@_inlined
def _list_active(values, at, width, active, words, listed, numbers):
    """List the nonzero units: indices in `numbers`, `values` in `listed`. Returns their number."""
    n_active, word = _U(0), words
    for start in range(_U(0), width, _U(64)):
        bits = active[word]
        word += _U(1)
        while bits:
            unit = start + _lowest_bit(bits)
            bits &= bits - _U(1)
            numbers[n_active] = unit
            listed[n_active] = values[at + unit]
            n_active += _U(1)
    return n_active


def _vector(context, builder, kind, array, index, width):
    """A pointer to `width` float32 of an array, starting at `index`, as one vector; `kind` is its numba type."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [index]), ir.VectorType(ir.FloatType(), width).as_pointer())


@intrinsic
def _positive_bits(typing_context, units, at):
    """The bits of the units out of 64 that are positive or NaN."""

    def generate(context, builder, signature, arguments):
        values = builder.load(_vector(context, builder, signature.args[0], *arguments, 64), align=4)
        return builder.bitcast(builder.fcmp_unordered(">", values, ir.Constant(values.type, None)), ir.IntType(64))

    return types.uint64(units, at), generate


def _row_adder(width):
    """`_add_rows` for rows of a width known at compile time: a vector that stays in registers.

    Loops over elements would be half as fast, since the compiler assumes that any two arrays may alias.
    """

    @intrinsic
    def add(typing_context, total, at, table, offset, stride, listed, numbers, lists, n_listed):
        def generate(context, builder, signature, arguments):
            total, at, table, offset, stride, listed, numbers, lists, n_listed = arguments
            kinds, vector = signature.args, ir.VectorType(ir.FloatType(), width)
            values = context.make_array(kinds[5])(context, builder, listed).data
            rows = context.make_array(kinds[6])(context, builder, numbers).data
            target = _vector(context, builder, kinds[0], total, at, width)
            result = cgutils.alloca_once(builder, vector)
            builder.store(builder.load(target, align=4), result)
            with cgutils.for_range(builder, n_listed, intp=ir.IntType(64)) as loop:
                t = builder.add(lists, loop.index)
                row = builder.mul(builder.load(builder.gep(rows, [t])), stride)
                source = _vector(context, builder, kinds[2], table, builder.add(offset, row), width)
                value = builder.load(builder.gep(values, [t]))
                one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
                factor = builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), width), None))
                product = builder.fmul(factor, builder.load(source, align=4), flags=["contract"])
                builder.store(builder.fadd(builder.load(result), product, flags=["contract"]), result)
            builder.store(builder.load(result), target, align=4)
            return context.get_dummy_value()

        return types.void(total, at, table, offset, stride, listed, numbers, lists, n_listed), generate

    return add


_add_64, _add_16, _add_1 = (_row_adder(width) for width in (64, 16, 1))


@_inlined
def _add_rows(total, at, width, table, offset, stride, listed, numbers, lists, n_listed):
    """total[at : at + width] += sum over t of listed[t] * row numbers[t] of a table.

    Args:
        offset, stride: row r of the table starts at offset + stride * r.
        lists, n_listed: start and number of the listed rows.
    """
    start = _U(0)
    while start < width:
        left = width - start
        if left >= _U(64):
            _add_64(total, at + start, table, offset + start, stride, listed, numbers, lists, n_listed)
            start += _U(64)
        elif left >= _U(16):
            _add_16(total, at + start, table, offset + start, stride, listed, numbers, lists, n_listed)
            start += _U(16)
        else:
            _add_1(total, at + start, table, offset + start, stride, listed, numbers, lists, n_listed)
            start += _U(1)


def train_block(
    users: np.ndarray, items: np.ndarray, labels: np.ndarray, first: int, last: int,
    user_first: np.ndarray, user_gmf: np.ndarray, d_user_first: np.ndarray, d_user_gmf: np.ndarray,
    item_first: np.ndarray, item_gmf: np.ndarray, d_item_first: np.ndarray, d_item_gmf: np.ndarray,
    hidden_widths: np.ndarray, down: np.ndarray, up: np.ndarray, biases: np.ndarray,
    gmf_head: np.ndarray, hidden_head: np.ndarray,
    d_up: np.ndarray, d_biases: np.ndarray, d_gmf_head: np.ndarray, d_hidden_head: np.ndarray,
    sums: np.ndarray, head_bias: float, weight: float, keep: int, seed: int,
) -> None:  # fmt: skip
    """Forward and backward of samples first … last - 1; gradients are added to the `d_` arrays.

    All matrices are flat.

    Args:
        users: int32 [N], rows of the user arrays.
        items: int32 [N], rows of the item arrays.
        labels: float32 [N].
        user_first, item_first: float32 [D, w_1] and [I, w_1], parts of the first layer; the users' includes the bias.
        user_gmf, item_gmf: float32 [D, F] and [I, F].
        hidden_widths: int64 [L].
        down, up: the weights of layers 2 … L, concatenated, [in, out] and [out, in]; `d_up` as `up`.
        biases: of layers 2 … L, concatenated.
        gmf_head, hidden_head: the weights of the last layer, float32 [F] and [w_L].
        sums: float64 [2]: the loss of all samples, and the gradient of the last layer's bias.
        weight: of each sample in the gradient.
        keep: probability of keeping a hidden unit, times 2**16.
        seed: of the dropout masks, combined with the sample index.
    """
    widths = hidden_widths.astype(np.uint64)
    word_counts = (widths + _U(63)) // _U(64)
    piece, largest = int(_PIECE), int(widths.max())
    n_lists = int(widths[1:].sum())
    scratch = (
        np.empty(piece * int(widths.sum()), np.float32),
        np.empty(piece * int(word_counts.sum()), np.uint64),
        np.empty(piece, np.float32),
        np.empty(largest, np.float32),
        np.empty(largest, np.uint64),
        np.empty(largest, np.float32),
        np.empty(largest, np.float32),
        np.empty(n_lists * piece, np.float32),
        np.empty(n_lists * piece, np.uint64),
        np.empty(n_lists, np.uint64),
    )
    _train_block(
        users, items, labels, first, last, user_first, user_gmf, d_user_first, d_user_gmf, item_first, item_gmf,
        d_item_first, d_item_gmf, widths, word_counts, down, up, biases, gmf_head, hidden_head, d_up, d_biases,
        d_gmf_head, d_hidden_head, sums, np.float32(head_bias), np.float32(weight), keep,
        np.float32(KEEP_ALL / keep), seed, *scratch,
    )  # fmt: skip


# No reference counting (`_nrt`), which would take a third of the time; hence no allocation of arrays.
@njit(
    types.void(
        types.int32[::1], types.int32[::1], _VECTOR, _I64, _I64, *[_VECTOR] * 8, *[types.uint64[::1]] * 2,
        *[_VECTOR] * 9, types.float64[::1], _F32, _F32, _I64, _F32, _I64,
        _VECTOR, types.uint64[::1], _VECTOR, _VECTOR, types.uint64[::1], *[_VECTOR] * 3, *[types.uint64[::1]] * 2,
    ),
    cache=True,
    _nrt=False,
    **_FAST,
)  # fmt: skip
def _train_block(
    users, items, labels, first, last,
    user_first, user_gmf, d_user_first, d_user_gmf, item_first, item_gmf, d_item_first, d_item_gmf,
    widths, word_counts, down, up, biases, gmf_head, hidden_head, d_up, d_biases, d_gmf_head, d_hidden_head,
    sums, head_bias, weight, keep_of_all, scale, seed,
    hidden, active, slopes, listed, numbers, gradient, lower, values, samples, n_samples,
):  # fmt: skip
    """See `train_block`.

    Args:
        widths, word_counts: uint64 [L], for each hidden layer the number of units, and of words for their bits.
        hidden, active, slopes: for each sample of a piece: all hidden units; bits of the nonzero ones; the gradient of
            its logit.
        listed, numbers, gradient, lower: scratch space for the units of a layer.
        values, samples, n_samples: for each unit of layers 2 … L: its gradients in the samples of a piece in which it
            is nonzero, the indices of those samples, and their number.
    """
    keep = _U(keep_of_all)
    n_layers, n_factors = len(widths), _U(len(gmf_head))
    n_units, n_words, n_lists = _U(0), _U(0), _U(len(n_samples))
    for layer in range(n_layers):
        n_units += widths[layer]
        n_words += word_counts[layer]
    w_first, w_last = widths[0], widths[n_layers - 1]
    for start in range(_U(first), _U(last), _PIECE):
        n = min(_PIECE, _U(last) - start)
        for unit in range(n_lists):
            n_samples[unit] = _U(0)
        for sample in range(n):
            user, item = _U(users[start + sample]), _U(items[start + sample])
            if sample + _AHEAD < n:
                coming = _U(items[start + sample + _AHEAD])
                _prefetch_row(item_first, coming, w_first)
                _prefetch_row(item_gmf, coming, n_factors)
            at, words = sample * n_units, sample * n_words
            of_user, of_item = user * w_first, item * w_first
            for unit in range(w_first):
                hidden[at + unit] = user_first[of_user + unit] + item_first[of_item + unit]
            state = _activate(hidden, at, w_first, active, words, keep, scale, _first(seed, start + sample))
            bias, offset = _U(0), _U(0)
            for layer in range(1, n_layers):
                width, below = widths[layer], widths[layer - 1]
                n_active = _list_active(hidden, at, below, active, words, listed, numbers)
                at, words = at + below, words + word_counts[layer - 1]
                for unit in range(width):
                    hidden[at + unit] = biases[bias + unit]
                _add_rows(hidden, at, width, down, offset, width, listed, numbers, _U(0), n_active)
                state = _activate(hidden, at, width, active, words, keep, scale, state)
                bias, offset = bias + width, offset + width * below
            logit = head_bias
            for unit in range(w_last):
                logit += hidden[at + unit] * hidden_head[unit]
            of_user, of_item = user * n_factors, item * n_factors
            for factor in range(n_factors):
                logit += user_gmf[of_user + factor] * gmf_head[factor] * item_gmf[of_item + factor]
            small = exp(-abs(logit))
            chance = 1.0 / (1.0 + small) if logit >= 0 else small / (1.0 + small)
            label = labels[start + sample]
            sums[0] += max(logit, _ZERO) - logit * label + log1p(small)
            slopes[sample] = (chance - label) * weight
            sums[1] += slopes[sample]
        for sample in range(n):
            user, item, slope = _U(users[start + sample]), _U(items[start + sample]), slopes[sample]
            if sample + _AHEAD < n:
                coming = _U(items[start + sample + _AHEAD])
                _prefetch_row(d_item_first, coming, w_first)
                _prefetch_row(d_item_gmf, coming, n_factors)
            at, words = (sample + _U(1)) * n_units - w_last, (sample + _U(1)) * n_words - word_counts[n_layers - 1]
            bias, offset = n_lists, _U(len(up))
            slope_of_hidden = slope * scale
            for unit in range(w_last):
                d_hidden_head[unit] += slope * hidden[at + unit]
                gradient[unit] = slope_of_hidden * hidden_head[unit] if hidden[at + unit] > _ZERO else _ZERO
            for layer in range(n_layers - 1, 0, -1):
                width, below = widths[layer], widths[layer - 1]
                bias, offset = bias - width, offset - width * below
                for unit in range(width):
                    d_biases[bias + unit] += gradient[unit]
                n_active = _list_active(gradient, _U(0), width, active, words, listed, numbers)
                for t in range(n_active):
                    unit = bias + numbers[t]
                    index = unit * _PIECE + n_samples[unit]
                    samples[index] = sample
                    values[index] = listed[t]
                    n_samples[unit] += _U(1)
                for unit in range(below):
                    lower[unit] = _ZERO
                _add_rows(lower, _U(0), below, up, offset, below, listed, numbers, _U(0), n_active)
                at, words = at - below, words - word_counts[layer - 1]
                for unit in range(below):
                    gradient[unit] = scale * lower[unit] if hidden[at + unit] > _ZERO else _ZERO
            of_user, of_item = user * w_first, item * w_first
            for unit in range(w_first):
                d_user_first[of_user + unit] += gradient[unit]
            for unit in range(w_first):
                d_item_first[of_item + unit] += gradient[unit]
            of_user, of_item = user * n_factors, item * n_factors
            for factor in range(n_factors):
                by_item = slope * item_gmf[of_item + factor]
                d_gmf_head[factor] += by_item * user_gmf[of_user + factor]
                d_user_gmf[of_user + factor] += by_item * gmf_head[factor]
                d_item_gmf[of_item + factor] += slope * user_gmf[of_user + factor] * gmf_head[factor]
        unit, offset, at = _U(0), _U(0), _U(0)
        for layer in range(1, n_layers):
            below = widths[layer - 1]
            for _ in range(widths[layer]):
                begin = unit * _PIECE
                _add_rows(d_up, offset, below, hidden, at, n_units, values, samples, begin, n_samples[unit])
                unit, offset = unit + _U(1), offset + below
            at += below


@njit(types.uint8[:, ::1](_I64, _I64, _I64, types.int64[::1], _I64), cache=True)
def dropout_masks(seed, first, last, hidden_widths, keep):
    """Dropout masks that `train_block` applies to samples first … last - 1: uint8 [N, w_1 + … + w_L], 1: kept."""
    masks = np.empty((last - first, hidden_widths.sum()), np.uint8)
    for sample in range(first, last):
        state, at = _first(seed, sample), 0
        for width in hidden_widths:
            for start in range(0, width, 64):
                kept, state = _kept(_U(keep), state)
                for index in range(min(64, width - start)):
                    masks[sample - first, at + start + index] = (kept >> _U(index)) & _U(1)
            at += width
    return masks


@njit(
    types.void(*[_MATRIX] * 4, types.int32[::1], _I64, _I64, *[types.float64] * 4, _I64),
    cache=True, _nrt=False, **_FAST,
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


@_inlined
def _list_positive(units, at, width, listed, numbers):
    """List the units from `at` on that are positive or NaN: indices and values. Returns their number."""
    n_listed = _U(0)
    for start in range(_U(0), width, _U(64)):
        begin, n_units, bits = at + start, min(_U(64), width - start), _U(0)
        if n_units == _U(64):
            bits = _positive_bits(units, begin)
        else:
            for index in range(n_units):
                bits |= _U(not units[begin + index] <= _ZERO) << index
        while bits:
            unit = _lowest_bit(bits)
            bits &= bits - _U(1)
            numbers[n_listed] = start + unit
            listed[n_listed] = units[begin + unit]
            n_listed += _U(1)
    return n_listed


@_inlined
def _score(rows, of_row, items, of_item, n_factors, widths, n_units, passed, head, bias, units, listed, numbers):
    """The logit of a pair, see `score_pairs`."""
    for unit in range(n_units):
        units[unit] = rows[of_row + unit] + items[of_item + unit]
    logit, at, offset = bias, _U(0), _U(0)
    for layer in range(len(widths) - 1):
        n_listed = _list_positive(units, at, widths[layer], listed, numbers)
        at += widths[layer]
        above = n_units - at
        _add_rows(units, at, above, passed, offset, above, listed, numbers, _U(0), n_listed)
        offset += widths[layer] * above
    for unit in range(n_units - at):
        value = units[at + unit]
        logit += head[unit] * (_ZERO if value <= _ZERO else value)
    for factor in range(n_factors):
        logit += rows[of_row + n_units + factor] * items[of_item + n_units + factor]
    return logit


_NETWORK = (types.uint64[::1], _I64, _VECTOR, _VECTOR, _F32, _VECTOR, _VECTOR, types.uint64[::1])


@njit(types.void(_I64, _I64, *[_VECTOR] * 3, *[types.int32[::1]] * 2, *_NETWORK), cache=True, _nrt=False, **_FAST)
def score_pairs(
    first, last, logits, row_table, item_table, rows, items,
    widths, factors, passed, head, bias, units, listed, numbers,
):  # fmt: skip
    """Score pairs first … last - 1.

    The network is folded (`model.compiled.folding`), with S hidden units in all: the sum of a row of each table and,
    for each positive unit of a layer below, its row of `passed`.

    Args:
        logits: float32 [N], output.
        row_table, item_table: float32 [R, S + F] and [I, S + F], flat.
        rows, items: int32 [N], each pair's row in the two tables.
        widths: uint64 [L].
        factors: F.
        passed: of layers 1 … L - 1, concatenated, float32 [w_l, w_(l+1) + … + w_L], flat.
        head, bias: of the last layer, float32 [w_L] and a scalar.
        units, listed, numbers: scratch space for S units, and for those of the largest layer.
    """
    n_factors, n_units = _U(factors), _U(0)
    for layer in range(len(widths)):
        n_units += widths[layer]
    stride = n_units + n_factors
    for pair in range(_U(first), _U(last)):
        if pair + _AHEAD < _U(last):
            _prefetch_row(item_table, _U(items[pair + _AHEAD]), stride)
        logits[pair] = _score(
            row_table, _U(rows[pair]) * stride, item_table, _U(items[pair]) * stride,
            n_factors, widths, n_units, passed, head, bias, units, listed, numbers,
        )  # fmt: skip


@njit(types.void(_I64, _I64, _MATRIX, _VECTOR, _VECTOR, *_NETWORK), cache=True, _nrt=False, **_FAST)
def score_all(first, last, logits, row_table, item_table, widths, factors, passed, head, bias, units, listed, numbers):
    """Score every row with items first … last - 1: logits [R, I]; other arguments as in `score_pairs`."""
    n_factors, n_units = _U(factors), _U(0)
    for layer in range(len(widths)):
        n_units += widths[layer]
    stride = n_units + n_factors
    for begin in range(_U(first), _U(last), _TILE):
        end = min(begin + _TILE, _U(last))
        for row in range(_U(len(logits))):
            for item in range(begin, end):
                logits[row, item] = _score(
                    row_table, row * stride, item_table, item * stride,
                    n_factors, widths, n_units, passed, head, bias, units, listed, numbers,
                )  # fmt: skip
