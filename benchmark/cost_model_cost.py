"""What an operator costs: bytes of memory and operations of matrix products. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

SECTOR_BYTES = 32  # what a GPU's memory is read and written by: of a shorter row as much is moved
POSITION_BYTES = 8
_SORTED_INSIDE = 4096  # so long an array, or row of one, is sorted inside a core, and moved once


@dataclass
class Cost:
    """Of all calls of an operator in a stage: bytes read and written, and operations of products by their precision.

    Attributes:
        calls: how often it was called; on a GPU each is a kernel at least.
        fp32_flops, half_flops: of products of float32, and of float16 or bfloat16.
        draws: random numbers, which cost a CPU time.
    """

    calls: int = 0
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    fp32_flops: float = 0.0
    half_flops: float = 0.0
    draws: float = 0.0

    @property
    def bytes(self) -> float:
        return self.read_bytes + self.written_bytes

    @staticmethod
    def sum(costs: Iterable[Cost]) -> Cost:
        return reduce(Cost.plus, costs, Cost())

    def plus(self, other: Cost) -> Cost:
        return Cost(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def times(self, factor: float) -> Cost:
        """For another number of samples; the calls stay what they are."""
        return Cost(self.calls, *(value * factor for name, value in vars(self).items() if name != "calls"))


def sort_bytes(n: int, length: int, key_bytes: int) -> float:
    """Bytes read and written to sort `n` keys, in rows of `length`, with their positions: a radix sort by bytes."""
    passes = 1 if length <= _SORTED_INSIDE else key_bytes
    return float(2 * n * (key_bytes + POSITION_BYTES) * passes)
