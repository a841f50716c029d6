"""A prepared folder and a finished run, and how commands are called."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import preprocessing.__main__
import train
from workflows.common.errors import run_command

ROOT = Path(__file__).parents[2]
FLAGS = ["-b", "256", "-f", "4", "--layers", "16", "8", "-l", "0.01", "--device", "cpu"]


@pytest.fixture(scope="session")
def raw_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    columns = {"user": rng.integers(0, 40, 500), "item": rng.integers(0, 50, 500), "time": np.arange(500)}
    path = tmp_path_factory.mktemp("train") / "log.csv"
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def data(raw_log: Path) -> Path:
    """The log, prepared; tests change only copies."""
    columns = "--user user --item item --time time --test-negatives 20 --partitions 2"
    preprocessing.__main__.main(
        ["--input", str(raw_log), *columns.split(), "--output", str(raw_log.parent / "prepared")]
    )
    return raw_log.parent / "prepared"


@pytest.fixture(scope="session")
def run(data: Path) -> Path:
    """A finished run of three epochs; tests change only copies."""
    folder = data.parent / "run"
    places = ["--data", str(data), "--output", str(folder), "--checkpoint_dir", str(data.parent / "checkpoints")]
    train.main([*places, *FLAGS, "-e", "3", "-s", "1"])
    return folder


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that exits with status 2; returns its error message."""

    def message(*flags: str) -> str:
        with pytest.raises(SystemExit) as error:
            run_command(lambda: train.main(flags))
        assert error.value.code == 2
        captured = capsys.readouterr()
        assert captured.err.count("error: ") == 1
        assert "Traceback" not in captured.err
        return captured.err

    return message


@pytest.fixture
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python with the given arguments in a process of its own, which succeeds without a warning."""

    def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        # On a busy machine, threads of such a small network spend more time synchronising than computing.
        environment = {**os.environ, "PYTHONWARNINGS": "", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stdout + done.stderr
        return done

    return run
