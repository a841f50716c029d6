"""Operator costs: memory traffic and floating-point operations of matrix products. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

SECTOR_BYTES = 32  # granularity of GPU memory access: a shorter row still moves this much
POSITION_BYTES = 8
_SORTED_INSIDE = 4096  # arrays, or rows, up to this length are sorted within a core and moved once


@dataclass
class Cost:
    """Total of an operator's calls in a stage: bytes read and written, and matrix-product operations by precision.

    Attributes:
        calls: number of calls; on a GPU each is at least one kernel.
        fp32_flops, half_flops: of matrix products in float32, and in float16 or bfloat16.
        draws: random numbers, which take time on a CPU.
        warp_instructions: of a GPU, each for 32 threads; 0 where they are not known.
    """

    calls: int = 0
    read_bytes: float = 0.0
    written_bytes: float = 0.0
    fp32_flops: float = 0.0
    half_flops: float = 0.0
    draws: float = 0.0
    warp_instructions: float = 0.0

    @property
    def bytes(self) -> float:
        return self.read_bytes + self.written_bytes

    @staticmethod
    def sum(costs: Iterable[Cost]) -> Cost:
        return reduce(Cost.plus, costs, Cost())

    def plus(self, other: Cost) -> Cost:
        return Cost(**{name: value + getattr(other, name) for name, value in vars(self).items()})

    def times(self, factor: float) -> Cost:
        """Scaled to another number of samples; the number of calls stays the same."""
        return Cost(self.calls, *(value * factor for name, value in vars(self).items() if name != "calls"))


def sort_bytes(n: int, length: int, key_bytes: int) -> float:
    """Bytes read and written by a bytewise radix sort of `n` keys with their positions, in rows of `length`."""
    passes = 1 if length <= _SORTED_INSIDE else key_bytes
    return float(2 * n * (key_bytes + POSITION_BYTES) * passes)
