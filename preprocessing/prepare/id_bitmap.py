"""Bitmap of the integers that occur: the distinct ids of a log whose ids span a narrow range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_MAX_RANGE = 1 << 26  # 8 MiB of bits


@dataclass(frozen=True)
class IdBitmap:
    """Bit i is set if `low + i` occurs; `low` is a multiple of 8."""

    low: int
    bits: np.ndarray

    @staticmethod
    def from_ids(ids: np.ndarray) -> IdBitmap | None:
        """Bitmap of the integers in an array; None if their range is too wide."""
        if not len(ids):
            return IdBitmap(0, np.zeros(0, dtype=np.uint8))
        low, high = int(ids.min()) & ~7, int(ids.max())
        if high - low >= _MAX_RANGE:
            return None
        found = np.zeros(high - low + 1, dtype=np.bool_)
        found[ids - low] = True
        return IdBitmap(low, np.packbits(found))

    @staticmethod
    def distinct(parts: Sequence[IdBitmap | None]) -> np.ndarray | None:
        """Union of the parts, ascending int64; None if a part is None, all are empty, or the union is too wide."""
        some = [part for part in parts if part is not None and len(part.bits)]
        if None in parts or not some:
            return None
        low = min(part.low for part in some)
        high = max(part.low + 8 * len(part.bits) for part in some)
        if high - low > 2 * _MAX_RANGE:
            return None
        bits = np.zeros((high - low) // 8, dtype=np.uint8)
        for part in some:
            start = (part.low - low) // 8
            bits[start : start + len(part.bits)] |= part.bits
        return np.flatnonzero(np.unpackbits(bits)) + low
