"""Shared by all tests; imports torch first, because the Merlin Loader needs torch to be imported before Merlin."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch  # noqa: F401
from hypothesis import settings

# Random examples are the same on every run, and slow machines do not fail tests.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=40)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu-device", choices=("cuda", "cpu"), default="cuda", help="cpu: rehearse without a GPU")
    parser.addoption("--soak", action="store_true", help="repeat the tests of faults many times")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was done to the program, as the tests have recorded it: kills, faults, files."""
    counts: Counter[str] = Counter()
    for report in terminalreporter.getreports("passed"):
        counts.update({name: number for name, number in report.user_properties if isinstance(number, int)})
    if counts:
        terminalreporter.write_line(", ".join(f"{number:,} {name}" for name, number in sorted(counts.items())))


def pytest_configure(config: pytest.Config) -> None:
    # Before any test module imports Triton, of which some of torch's do: without a GPU its kernels are interpreted.
    if config.getoption("markexpr") != "gpu":
        os.environ["TRITON_INTERPRET"] = "1"
    # The Merlin door silences this once, at import; pytest resets the filters for each test.
    config.addinivalue_line("filterwarnings", "ignore:Initializing an NVTabular Dataset in CPU mode")


@pytest.fixture(scope="session")
def assert_uniform() -> Callable[[np.ndarray], None]:
    """Check counts of equally likely outcomes by a chi-square test with a false alarm rate of about 1e-6."""

    def check(counts: np.ndarray) -> None:
        counts = np.ravel(counts)
        freedom = len(counts) - 1
        expected = counts.sum() / len(counts)
        assert expected >= 5, "too few draws for a chi-square test"
        statistic = float(((counts - expected) ** 2 / expected).sum())
        # Wilson and Hilferty: the cube root of chi-square / freedom is approximately normal.
        spread = 2 / (9 * freedom)
        z = ((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5
        assert abs(z) < 5, f"chi-square {statistic:.1f} on {freedom} degrees of freedom"

    return check


@pytest.fixture(scope="session")
def fork_server() -> Iterator[type[subprocess.Popen]]:
    """A `subprocess.Popen` whose Python commands skip the imports (see `tests/fork_server.py`)."""
    if sys.platform != "linux" or importlib.util.find_spec("cudf"):  # cuDF initialises CUDA, which cannot be forked
        yield subprocess.Popen
        return
    spec = importlib.util.spec_from_file_location("fork_server", Path(__file__).with_name("fork_server.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.running() as popen:
        yield popen


@pytest.fixture(scope="module")
def forked(fork_server: type[subprocess.Popen]) -> Iterator[None]:
    """Python commands of a module's tests are forked by the fork server; not for tests of a start itself."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(subprocess, "Popen", fork_server)
        yield
