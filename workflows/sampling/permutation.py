"""A random order of many things in which each place is computed, and none is stored."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

from array_api_compat import array_namespace, device

from workflows.device.loops import host_loops, host_view
from workflows.sampling import counter_rng
from workflows.sampling.interactions import count

Array = Any  # an array of NumPy, CuPy or torch

ROUNDS = 8  # even; kernels.cu and `compiled.permuted` have the same number


class Permutation:
    """A pseudorandom permutation of 0 .. size - 1, a function of a seed.

    A Feistel network over a grid that is nearly square (Black and Rogaway 2002, "Ciphers with arbitrary finite
    domains"): in turn, each coordinate is shifted by a random amount that depends on the other one. The grid has a few
    cells more than there are places (fewer than its width); a place that falls there is permuted again until it does
    not, so that the rest is a permutation as well.

    Attributes:
        height, width: sides of the grid.
    """

    def __init__(self, size: int, seed: int) -> None:
        """
        Args:
            size: at least 1.
            seed: from `counter_rng.stream_seed`.
        """
        self.size, self.seed = size, seed
        self.width = math.isqrt(size - 1) + 1
        self.height = -(-size // self.width)
        self._escapes: Array | None = None

    def places(self, start: int, stop: int, like: Array) -> Array:
        """Where the elements start .. stop - 1 are, int64; nothing waits for a GPU.

        Args:
            like: an array of the wanted library and device.
        """
        loops = host_loops(host_view(like), self.size)
        if loops is not None:
            found = loops.permuted(start, stop, self.size, self.height, self.width, self.seed)
            return array_namespace(like).asarray(found, device=device(like))
        return self._escaped(self._shuffled(count(stop - start, like) + start))

    @cached_property
    def _spare(self) -> int:
        """Cells of the grid beyond the places."""
        return self.height * self.width - self.size

    def _shuffled(self, index: Array) -> Array:
        """The network, a permutation of the whole grid."""
        xp = array_namespace(index)
        row = index // self.width
        column = index - row * self.width
        for number in range(0, ROUNDS, 2):
            row = row + counter_rng.below(counter_rng.draws(self.seed, column * ROUNDS + number), self.height)
            row = xp.where(row < self.height, row, row - self.height)
            column = column + counter_rng.below(counter_rng.draws(self.seed, row * ROUNDS + number + 1), self.width)
            column = xp.where(column < self.width, column, column - self.width)
        return row * self.width + column

    def _escaped(self, places: Array) -> Array:
        """The places, with spare cells followed back to a place."""
        if not self._spare:
            return places
        xp = array_namespace(places)
        if self._escapes is None:
            escapes = self._shuffled(count(self._spare, places) + self.size)
            # Each round doubles the steps followed. A cycle of spare cells never ends, but no place leads into it.
            for _ in range(self._spare.bit_length()):
                escapes = self._followed(xp, escapes, escapes)
            self._escapes = escapes
        return self._followed(xp, places, self._escapes)

    def _followed(self, xp: Any, places: Array, escapes: Array) -> Array:
        return xp.where(places < self.size, places, xp.take(escapes, xp.clip(places - self.size, min=0)))
