"""Ranges of the ids and numbers in a folder, gathered block by block."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from preprocessing.spec.values import Block, Kind

_BITS = np.array([byte.bit_count() for byte in range(256)], dtype=np.uint8)


class ValueRanges:
    """Ranges of the features over the blocks added so far.

    Attributes:
        found: number of ids of each id feature: the largest + 1, over all mappings.
        ranges: minimum and maximum of each number in train.
    """

    def __init__(self, kinds: Mapping[str, Kind]) -> None:
        self._kinds = dict(kinds)
        self._seen = {name: np.zeros(0, dtype=np.uint8) for name, kind in kinds.items() if kind == "id"}
        self.found = dict.fromkeys(self._seen, 0)
        self.ranges: dict[str, tuple[float, float]] = {}

    def add(self, mapping: str, block: Block) -> None:
        for name, values in block.columns.items():
            kind = self._kinds[name]
            if not len(values):
                continue
            if kind == "id":
                self.found[name] = max(self.found[name], int(values.max()) + 1)
                self._mark(name, values)
            elif kind == "number" and mapping == "train":
                low, high = self.ranges.get(name, (np.inf, -np.inf))
                self.ranges[name] = min(low, float(values.min())), max(high, float(values.max()))

    def distinct(self, name: str) -> int:
        """Number of distinct ids of a feature."""
        return int(_BITS[self._seen[name]].sum(dtype=np.int64))

    def _mark(self, name: str, ids: np.ndarray) -> None:
        """Mark ids in a bitmap: at most 256 MiB, versus 2 GiB at one byte each."""
        seen, size = self._seen[name], (self.found[name] + 7) // 8
        if size > len(seen):
            grown = np.zeros(max(size, min(2 * len(seen), 1 << 28)), dtype=np.uint8)
            grown[: len(seen)] = seen
            self._seen[name] = seen = grown
        np.bitwise_or.at(seen, ids >> 3, np.left_shift(1, ids & 7).astype(np.uint8))
