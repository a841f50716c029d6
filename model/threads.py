"""How many of a CPU's threads training takes.

Threads wait for each other many times in a step. That costs small steps more than it saves; and where another program
takes one of the cores, each time may last as long as the system lets that program run, a few milliseconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

PARAMETER_WORK = 25  # of a parameter in Adam's pass, in multiplications of a matrix product that take as long


def worthwhile_threads(work: int, work_of_thread: int) -> int:
    """As many of torch's threads as have enough to do; at least 1.

    Args:
        work, work_of_thread: of a step, and what is enough for a thread; in any unit.
    """
    return max(1, min(torch.get_num_threads(), work // work_of_thread))


@contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Torch uses so many threads, and no more, within."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
