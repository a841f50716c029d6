"""Shared by all tests; torch first, because the Merlin Loader exists only where torch was imported before Merlin."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch  # noqa: F401
from hypothesis import settings

# Random examples are the same on every run, and a slow machine is no failure.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu-device", choices=("cuda", "cpu"), default="cuda", help="cpu: rehearse the tests of a GPU")
    parser.addoption("--soak", action="store_true", help="repeat the tests of freezes and kills many times")


def pytest_configure(config: pytest.Config) -> None:
    # The door to Merlin silences this once, at import; pytest resets the filters for each test.
    config.addinivalue_line("filterwarnings", "ignore:Initializing an NVTabular Dataset in CPU mode")


@pytest.fixture(scope="session")
def assert_uniform() -> Callable[[np.ndarray], None]:
    """Check counts of equally likely outcomes by a chi-square test that errs once in about a million."""

    def check(counts: np.ndarray) -> None:
        counts = np.ravel(counts)
        freedom = len(counts) - 1
        expected = counts.sum() / len(counts)
        assert expected >= 5, "too few draws for a chi-square test"
        statistic = float(((counts - expected) ** 2 / expected).sum())
        # Wilson and Hilferty: the cube root of chi-square / freedom is nearly normal.
        spread = 2 / (9 * freedom)
        z = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5
        assert abs(z) < 5, f"chi-square {statistic:.1f} on {freedom} degrees of freedom"

    return check
