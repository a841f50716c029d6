"""Kernels run in Triton's interpreter, in these tests and in the processes that they start."""

from __future__ import annotations

import importlib.util

import pytest

if importlib.util.find_spec("triton"):  # the tests themselves are skipped without it
    import interpreted_triton  # noqa: F401


@pytest.fixture(autouse=True)
def interpreted_in_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
