"""Stateless random numbers: a counter-based hash instead of a stateful generator.

A draw is a pure function of (seed, stream, id, draw index) in wrapping 64-bit integer arithmetic, so NumPy, CuPy and
torch give the same numbers for any partition, worker or rank. The function is SplitMix64 (Steele, Lea, Flood 2014):
output `n` of the generator whose state is the hashed id.
Only operators on int64 arrays are used, so any library works; masks turn arithmetic shifts into logical ones.
"""

from __future__ import annotations

from typing import Any

Array = Any  # an int64 array of NumPy, CuPy or torch

_LOW_21, _LOW_22 = (1 << 21) - 1, (1 << 22) - 1


def _signed(value: int) -> int:
    """The int64 with the same 64 bits."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_STEP, _FIRST, _SECOND = (_signed(value) for value in (_GOLDEN, *_MULTIPLIERS))


def mix(x: Array) -> Array:
    """SplitMix64's finaliser: a bijection of int64 whose output bits all depend on all input bits."""
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * _FIRST
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * _SECOND
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _mix_int(x: int) -> int:
    mask = (1 << 64) - 1
    x &= mask
    x = ((x ^ (x >> 30)) * _MULTIPLIERS[0]) & mask
    x = ((x ^ (x >> 27)) * _MULTIPLIERS[1]) & mask
    return x ^ (x >> 31)


def stream_seed(*parts: int) -> int:
    """Hash several integers (the user's seed, an epoch, a purpose) into one seed, a signed 64-bit integer."""
    state = 0
    for part in parts:
        state = _mix_int(state + _GOLDEN + _mix_int(part + _GOLDEN))
    return _signed(state)


def keys(seed: int, ids: Array) -> Array:
    """One generator state per id: int64, same shape as `ids` (int64). `seed` comes from `stream_seed`."""
    return mix(mix(ids * _STEP) ^ seed)


def draws(key: Array, number: Array) -> Array:
    """Draw `number` (int64, zero-based) of each key; shapes broadcast. All 64 bits are random."""
    return mix(advanced(key, number + 1))


def advanced(key: Array, drawn: Array) -> Array:
    """The keys skipped ahead by `drawn` draws: draw 0 of the result is draw `drawn` of the key; shapes broadcast."""
    return key + drawn * _STEP


def below(bits: Array, bound: Array) -> Array:
    """Map 64 random bits to [0, bound), as `floor(bits * bound / 2**64)` (Lemire 2019, without rejection).

    Args:
        bits: int64, all bits used.
        bound: int64 in [1, 2**40], broadcastable; the bias is below bound / 2**64.
    """
    # Multiply in digits of 22, 21 and 21 bits, so that no product exceeds 63 bits.
    carry = (bits & _LOW_21) * bound >> 21
    carry = ((bits >> 21 & _LOW_21) * bound + carry) >> 21
    return ((bits >> 42 & _LOW_22) * bound + carry) >> 22
