"""Whether rows stay in device memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from model.data import residency
from model.data.residency import stays_in_memory
from model.distributed.process_group import ProcessGroup


class Others(ProcessGroup):
    """One of three ranks; `fitting` of the other two have room."""

    def __init__(self, fitting: int) -> None:
        super().__init__(torch.device("cpu"), 0, 3)
        self._fitting = fitting

    def start_sum(self, number: int) -> Callable[[], int]:
        return lambda: number + self._fitting


@pytest.mark.parametrize(
    ("loader", "free", "fitting", "expected"),
    [
        ("merlin", None, 0, False),
        ("memory", None, 0, True),
        ("merlin", 400, 2, True),
        ("merlin", 399, 2, False),
        ("merlin", 400, 1, False),
        ("memory", 0, 0, True),
    ],
)
def test_a_quarter_of_the_free_memory_of_every_gpu(
    monkeypatch: pytest.MonkeyPatch, loader: str, free: int | None, fitting: int, expected: bool
) -> None:
    monkeypatch.setattr(residency, "free_bytes", lambda _: free)
    assert stays_in_memory(loader, 100, Others(fitting)) is expected
