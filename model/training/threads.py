"""The number of CPU threads used in training.

Threads synchronise many times per step. For small steps that costs more than it saves, and if another program occupies
a core, each synchronisation can last a scheduler time slice, a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PARAMETER_WORK = 25  # per parameter in Adam's pass, in equivalent multiplications of a matrix product


def worthwhile_threads(work: int, work_of_thread: int) -> int:
    """Number of torch's threads that have enough work; at least 1.

    Args:
        work, work_of_thread: work of a step, and minimum work per thread, in the same unit.
    """
    return max(1, min(torch.get_num_threads(), work // work_of_thread))


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Limit torch to `number` threads within the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
