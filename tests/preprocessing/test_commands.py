"""Real processes in sequence: generate a log, prepare, transcode, check, and corrupt it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

_ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("forked")


def _run(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "preprocessing", *map(str, argv)]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)


def test_synthetic_data_becomes_tensors_that_pass_the_check(tmp_path: Path) -> None:
    prepared, tensors = tmp_path / "prepared", tmp_path / "tensors"
    made = _run("--synthetic", "60x150x2000", "--output", prepared, "--test-negatives", "5")
    assert made.returncode == 0, made.stderr
    assert _run("--input", prepared, "--emit", "torch_tensor", "--output", tensors).returncode == 0
    ids, labels = (torch.load(tensors / f"test_data_{chunk}.pt", weights_only=True) for chunk in (0, 1))
    assert (ids.dtype, ids.shape, labels.dtype, labels.shape) == (torch.int64, (360, 2), torch.float32, (360, 1))
    good = _run("--check", tensors)
    assert (good.returncode, "0 errors" in good.stdout) == (0, True), good.stdout + good.stderr

    ids[7, 1] = 10**6
    torch.save(ids, tensors / "test_data_0.pt")
    bad = _run("--check", tensors)
    assert bad.returncode == 2
    assert "test_data_0.pt" in bad.stdout
    assert "Traceback" not in bad.stdout + bad.stderr
