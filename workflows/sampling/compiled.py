"""Compiled loops for large host arrays, each equivalent to the array code that it replaces.

Array code makes a pass over memory for every operation; these loops make few and allocate little.
Numba (which Merlin needs anyway) compiles them on first import and caches them in `__pycache__`. Use them through
`workflows.device.loops.host_loops`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit, types

from workflows.sampling import counter_rng, permutation

_DIGIT_BITS = 9  # so that one cache line per bucket fits the caches
_CODE_BITS = 63  # a shift by 64 would be a no-op
_DRAWS = 512  # draws per block, so that they stay in the L1 cache

# pandas returns read-only views under copy-on-write; writable arrays match this signature too.
_INT = types.int64
_INTS = types.Array(_INT, 1, "C", readonly=True)
_INTS_32, _FLOATS, _BYTES = (
    types.Array(kind, 1, "C", readonly=True) for kind in (types.int32, types.float32, types.int8)
)

_ROUNDS = permutation.ROUNDS
_U = np.uint64  # for indices in the innermost loops: saves the check for negative indices
_STEP = counter_rng._STEP
_mix, _advanced, _below = (njit(function) for function in (counter_rng.mix, counter_rng.advanced, counter_rng.below))


@njit
def _below_32(bits, bound):
    """`counter_rng.below` for a bound of at most 2**32, all uint64: in halves, so that it vectorizes."""
    low = (bits & _U(0xFFFFFFFF)) * bound >> _U(32)
    return ((bits >> _U(32)) * bound + low) >> _U(32)


def histories(
    users: np.ndarray, items: np.ndarray, times: np.ndarray, ranges: Sequence[tuple[int, int]]
) -> tuple[np.ndarray, ...] | None:
    """The fields of `interactions.histories`, in order; None if the value ranges are too wide.

    Args:
        users, items, times: integers [N], N > 0.
        ranges: least and greatest value of each.
    """
    columns = [np.ascontiguousarray(column, dtype=np.int64) for column in (users, items, times)]
    lows = [low for low, _ in ranges]
    user_bits, item_bits, time_bits = ((high - low).bit_length() for low, high in ranges)
    owner_bits = min(user_bits, len(users).bit_length())
    if max(user_bits + item_bits, owner_bits + time_bits) > _CODE_BITS or len(users) >= 1 << 32:
        return None
    return _histories(*columns, *lows, item_bits, user_bits + item_bits, time_bits)  # type: ignore[call-arg]


@njit
def _sorted_codes(codes, width):
    """Radix sort of uint64 codes of `width` bits: (sorted codes, uint32 argsort); overwrites `codes`."""
    n_codes = len(codes)
    order, order_to = np.empty(n_codes, np.uint32), np.empty(n_codes, np.uint32)
    codes_to = np.empty_like(codes)
    passes = max(1, -(-width // _DIGIT_BITS))
    digit_bits = max(1, -(-width // passes))
    mask = np.uint64((1 << digit_bits) - 1)
    positions = np.zeros((passes, 1 << digit_bits), np.uint32)
    for position in range(n_codes):
        order[position] = position
        code = codes[position]
        for number in range(passes):
            positions[number, code & mask] += np.uint32(1)
            code >>= np.uint64(digit_bits)
    for number in range(passes):
        shift, to = np.uint64(number * digit_bits), positions[number]
        before = np.uint32(0)
        for digit in range(len(to)):
            rows = to[digit]
            to[digit] = before
            before += rows
        for position in range(n_codes):
            digit = codes[position] >> shift & mask
            codes_to[to[digit]], order_to[to[digit]] = codes[position], order[position]
            to[digit] += np.uint32(1)
        codes, codes_to = codes_to, codes
        order, order_to = order_to, order
    return codes, order


@njit(_INT[::1](_INTS, _INT), nogil=True, cache=True)
def key_order(keys, width):
    """Positions that stably sort non-negative keys of `width` bits: int64 [N], N < 2**32."""
    _, order = _sorted_codes(keys.astype(np.uint64), width)
    return order.astype(np.int64)


@njit(types.UniTuple(_INT[::1], 7)(_INTS, _INTS, _INTS, *[_INT] * 6), nogil=True, cache=True)
def _histories(users, items, times, low_user, low_item, low_time, item_bits, pair_bits, time_bits):
    n_rows = len(users)
    codes = np.empty(n_rows, np.uint64)
    for row in range(n_rows):
        codes[row] = np.uint64(users[row] - low_user) << np.uint64(item_bits) | np.uint64(items[row] - low_item)
    codes, order = _sorted_codes(codes, pair_bits)
    owners, starts, counts = np.empty(n_rows, np.int64), np.empty(n_rows, np.int64), np.empty(n_rows, np.int64)
    rows, own_items, own_times = np.empty(n_rows, np.int64), np.empty(n_rows, np.int64), np.empty(n_rows, np.int64)
    n_pairs, n_users = 0, 0
    item_mask, before = np.uint64((1 << item_bits) - 1), np.uint64(0)
    for position in range(n_rows):
        code, time = codes[position], times[order[position]]
        if position and code == before:
            own_times[n_pairs - 1] = min(own_times[n_pairs - 1], time)
            continue
        if not position or (code ^ before) >> np.uint64(item_bits):
            owners[n_users], starts[n_users] = np.int64(code >> np.uint64(item_bits)) + low_user, n_pairs
            n_users += 1
        rows[n_pairs], own_items[n_pairs], own_times[n_pairs] = n_users - 1, np.int64(code & item_mask) + low_item, time
        before = code
        n_pairs += 1
    for user in range(n_users):
        counts[user] = (starts[user + 1] if user + 1 < n_users else n_pairs) - starts[user]
    codes = codes[:n_pairs]
    for position in range(n_pairs):
        codes[position] = np.uint64(rows[position]) << np.uint64(time_bits) | np.uint64(own_times[position] - low_time)
    owner_bits = 0
    while n_users >> owner_bits:
        owner_bits += 1
    _, by_time = _sorted_codes(codes, min(time_bits + owner_bits, _CODE_BITS))
    return (
        owners[:n_users],
        counts[:n_users],
        starts[:n_users],
        rows[:n_pairs],
        own_items[:n_pairs],
        own_times[:n_pairs],
        by_time.astype(np.int64),
    )


@njit
def _merge(into, n_into, more, n_more):
    """Merge more[:n_more] into into[:n_into], both ascending, back to front."""
    left, right = n_into - 1, n_more - 1
    while right >= 0:
        if left >= 0 and into[left] > more[right]:
            into[left + right + 1] = into[left]
            left -= 1
        else:
            into[left + right + 1] = more[right]
            right -= 1


@njit(_INT[:, ::1](*[_INTS] * 5, _INT, _INT), nogil=True, cache=True)
def distinct_positions(starts, ends, positions, keys, cutoffs, n_items, length):
    """The positions that `negatives.series_negatives` draws if all weights are equal: int64 [T, length], ascending.

    Args:
        starts, ends: int64 [T]; the owner of series t has the positions positions[starts[t] : ends[t]].
        positions: int64 [N], ascending for each owner.
        keys, cutoffs: int64 [T], random key and cutoff per series; a cutoff that leaves nothing is ignored.
    """
    n_series = len(keys)
    chosen = np.empty((n_series, length), np.int64)
    longest = 0
    for series in range(n_series):
        longest = max(longest, ends[series] - starts[series])
    taken, points = np.empty(longest + length, np.int64), np.empty(length, np.int64)
    for series in range(n_series):
        own, key = chosen[series], keys[series]
        start, own_positions = starts[series], ends[series] - starts[series]
        cutoff, n_taken = cutoffs[series], 0
        while n_taken < own_positions and positions[start + n_taken] < cutoff:
            n_taken += 1
        if n_taken == cutoff:
            cutoff, n_taken = n_items, own_positions
        taken[:n_taken] = positions[start : start + n_taken]
        found, drawn = 0, 0
        while found < length and n_taken < cutoff:
            missing = length - found
            for draw in range(missing):
                points[draw] = _below(_mix(_advanced(key, drawn + draw + 1)), cutoff - n_taken)
            drawn += missing
            points[:missing].sort()
            new, passed = 0, 0  # points are sorted, so one pass over `taken` finds all positions
            for draw in range(missing):
                while passed < n_taken and taken[passed] <= points[draw] + passed:
                    passed += 1
                position = points[draw] + passed
                if not new or points[new - 1] != position:
                    points[new] = position
                    new += 1
            _merge(taken, n_taken, points, new)
            _merge(own, found, points, new)
            n_taken += new
            found += new
        if found < length:  # too few candidates: repeat them as evenly as possible
            points[:found] = own[:found]
            for position in range(length):
                own[position] = points[position % found] if found else 0
            own.sort()
    return chosen


@njit
def _set_bits(word):
    """Population count of a uint64, in pairs, nibbles and bytes: compilers turn this into one instruction."""
    word -= word >> _U(1) & _U(0x5555555555555555)
    word = (word & _U(0x3333333333333333)) + (word >> _U(2) & _U(0x3333333333333333))
    word = word + (word >> _U(4)) & _U(0x0F0F0F0F0F0F0F0F)
    return word * _U(0x0101010101010101) >> _U(56)


@njit
def _count_clear(words, before):
    """Fill `before` with the number of clear bits before each word; both uint64 [W]."""
    total = _U(0)
    for number in range(_U(len(words))):
        before[number] = total
        total += _U(64) - _set_bits(words[number])


@njit
def _clear_bit(words, before, point):
    """Position of clear bit number `point`, which must exist; `before` comes from `_count_clear`."""
    word, size = _U(0), _U(len(words))
    while size > _U(1):  # branch-free: the branches would be unpredictable
        half = size >> _U(1)
        word += half * _U(before[word + half] <= point)
        size -= half
    clear = ~words[word]
    for _ in range(point - before[word]):
        clear &= clear - _U(1)  # clears the lowest set bit
    return (word << _U(6)) + _set_bits((clear & ~clear + _U(1)) - _U(1))


_ROWS_TO_PLACES = [
    types.Tuple((kind[:, ::1], types.boolean[::1]))(*[types.Array(kind, 1, "C", readonly=True)] * 2, *[_INT] * 3)
    for kind in (types.int32, types.int64)
]


@njit(_ROWS_TO_PLACES, nogil=True, cache=True)
def row_positions(users, items, n_items, per_row, seed):
    """The result of `negatives.row_negatives` if all weights are equal: [N, per_row], and bool [N].

    A bitmap marks the user's own items. The loops over all draws are branch-free; only the few draws that hit one of
    the user's own items go through the last loop.

    Args:
        users: int32 or int64 [N], each user's rows consecutive and complete.
        items: same dtype, [N], below `n_items`, which is at most 2**31 - 1.
    """
    n_rows, start = len(users), 0
    chosen, exists = np.empty((n_rows, per_row), items.dtype), np.empty(n_rows, np.bool_)
    drawn, at = chosen.reshape(-1), _U(0)
    own, before = np.zeros(n_items // 64 + 1, _U), np.empty(n_items // 64 + 1, _U)
    again = np.empty(_DRAWS, np.uint32)
    while start < n_rows:
        user, end = np.int64(users[start]), start
        left, counted = _U(n_items), False
        while end < n_rows and users[end] == user:
            word, bit = _U(items[end]) >> _U(6), _U(items[end]) & _U(63)
            left -= _U(1) - (own[word] >> bit & _U(1))
            own[word] |= _U(1) << bit
            end += 1
        exists[start:end] = left > _U(0)
        key = _mix(_mix(user * _STEP) ^ seed)
        for first in range(_U(0), _U((end - start) * per_row), _U(_DRAWS)):
            n_draws, n_again = min(_U(_DRAWS), _U((end - start) * per_row) - first), _U(0)
            for draw in range(n_draws):
                bits = _mix(_advanced(key, np.int64(first + draw) + 1))
                drawn[at + draw] = _below_32(_U(bits), _U(n_items))
            for draw in range(n_draws):
                item = _U(drawn[at + draw])
                again[n_again] = draw
                n_again += own[item >> _U(6)] >> (item & _U(63)) & _U(1)
            if n_again and left and not counted:
                _count_clear(own, before)
                counted = True
            for number in range(n_again if left else _U(0)):
                hit = _U(again[number])
                bits = _mix(_mix(_advanced(key, np.int64(first + hit) + 1)))
                drawn[at + hit] = _clear_bit(own, before, _below_32(_U(bits), left))
            at += n_draws
        for row in range(start, end):
            own[_U(items[row]) >> _U(6)] = _U(0)
        start = end
    return chosen, exists


@njit
def _shift(place, seed, number, bound):
    """The place, shifted by a random amount within 0 .. bound - 1, all uint64 (`permutation.Permutation`)."""
    place += _below_32(_U(_mix(_advanced(seed, np.int64(number) + 1))), bound)
    return place - bound * _U(place >= bound)


@njit(_INT[::1](*[_INT] * 6), nogil=True, cache=True)
def permuted(start, stop, size, height, width, seed):
    """The result of `permutation.Permutation.places`."""
    found = np.empty(stop - start, np.int64)
    rows, columns, rounds = _U(height), _U(width), _U(_ROUNDS)
    for index in range(stop - start):
        place = _U(start + index)
        while True:
            row = place // columns
            column = place - row * columns
            for number in range(_U(0), rounds, _U(2)):
                row = _shift(row, seed, column * rounds + number, rows)
                column = _shift(column, seed, row * rounds + number + _U(1), columns)
            place = row * columns + column
            if place < _U(size):
                break
        found[index] = place
    return found


@njit(_INT(_INTS_32, _INTS_32, _FLOATS, _BYTES), nogil=True, cache=True)
def rows_hash(users, items, labels, split):
    """The result of `fingerprint.rows_hash`."""
    total = 0
    for row in range(len(users)):
        key = (np.int64(users[row]) << 32) | (np.int64(items[row]) << 1) | (labels[row] > 0)
        if split[row]:
            key = ~key
        if row and users[row - 1] == users[row] and split[row - 1] == split[row]:
            key = _advanced(key, np.int64(items[row - 1]) + 1)
        total += _mix(key)
    return total
