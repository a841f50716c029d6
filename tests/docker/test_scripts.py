"""The scripts of the reference's container users, run with a stand-in for Python where that says enough."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent.parent


def run_script(name: str, *arguments: str, python: Path, cwd: Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": str(python)}
    command = ["bash", str(ROOT / "docker" / name), *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture
def echo(tmp_path: Path) -> Path:
    """A `python` that prints where it stands and its arguments, one a line."""
    path = tmp_path / "python"
    path.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    path.chmod(0o755)
    return path


def arguments_of(done: subprocess.CompletedProcess[str], folder: Path) -> list[str]:
    """The arguments Python got, where it was started in `folder`."""
    stood, *arguments = done.stdout.splitlines()
    assert Path(stood) == folder
    return arguments


@pytest.mark.parametrize(
    "given",
    [[], ["--data", "/data/a folder"], ["-e", "3", "--amp"], ["--device_name", "x"], ["--log_path", "--gpus.json"]],
)
def test_training_is_on_eight_gpus_with_amp(echo: Path, tmp_path: Path, given: list[str]) -> None:
    done = run_script("run_training.sh", *given, python=echo, cwd=tmp_path)
    # Where the user stands, so that relative paths are the user's.
    assert arguments_of(done, tmp_path) == [str(ROOT / "train.py"), "--amp", "--gpus", "8", *given]


@pytest.mark.parametrize(
    "given",
    [
        ["--device", "cpu"],
        ["--device=cpu"],
        ["--gpus", "1"],
        ["-e", "2", "--gpus=2", "-s", "1"],
        ["--gpus", "1", "--device", "cuda"],
    ],
)
def test_a_device_of_ones_own_takes_the_place(echo: Path, tmp_path: Path, given: list[str]) -> None:
    done = run_script("run_training.sh", *given, python=echo, cwd=tmp_path)
    assert arguments_of(done, tmp_path) == [str(ROOT / "train.py"), "--amp", *given]


def test_the_defaults_of_preparing_are_the_references(echo: Path, tmp_path: Path) -> None:
    done = run_script("prepare_dataset.sh", python=echo, cwd=tmp_path)
    expected = ["-m", "preprocessing", "--input", "/data/ml-20m", "--output", "/data/cache/ml-20m"]
    assert arguments_of(done, ROOT) == expected  # where the packages are
    done = run_script("prepare_dataset.sh", "ml-1m", python=echo, cwd=tmp_path)
    assert arguments_of(done, ROOT) == [part.replace("ml-20m", "ml-1m") for part in expected]


@pytest.mark.parametrize("place", ["raw/ml-20m.zip", "raw.zip"])
def test_a_zip_is_taken_where_nothing_is_unpacked(echo: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / place).touch()
    given = ["ml-20m", str(tmp_path / "raw"), str(tmp_path / "cache out"), "--seed", "3"]
    expected = ["-m", "preprocessing", "--input", str(tmp_path / place), "--output", given[2], "--seed", "3"]
    assert arguments_of(run_script("prepare_dataset.sh", *given, python=echo, cwd=tmp_path), ROOT) == expected
    (tmp_path / "raw" / "ratings.csv").touch()
    expected[3] = given[1]
    assert arguments_of(run_script("prepare_dataset.sh", *given, python=echo, cwd=tmp_path), ROOT) == expected


def test_paths_are_relative_to_where_the_user_is(echo: Path, tmp_path: Path) -> None:
    done = run_script("prepare_dataset.sh", "mine", "raw", "cache", python=echo, cwd=tmp_path)
    expected = ["-m", "preprocessing", "--input", str(tmp_path / "raw"), "--output", str(tmp_path / "cache")]
    assert arguments_of(done, ROOT) == expected


def test_a_small_data_set_is_prepared_once(echo: Path, tmp_path: Path) -> None:
    raw, cache = tmp_path / "raw", tmp_path / "cache" / "mine"
    raw.mkdir()
    rows = [(user, (user * 7 + step * 3) % 30, 100 + step) for user in range(12) for step in range(8)]
    text = "".join(f"{user},{item},{time}\n" for user, item, time in rows)
    (raw / "ratings.csv").write_text("user_id,item_id,timestamp\n" + text)
    more = ["--partitions", "1", "--valid_negative", "15"]
    done = run_script(
        "prepare_dataset.sh", "mine", str(raw), str(cache), *more, python=Path(sys.executable), cwd=tmp_path
    )
    assert "12 users" in done.stdout
    assert "Warning" not in done.stdout + done.stderr
    spec = yaml.safe_load((cache / "feature_spec.yaml").read_text())
    assert spec["feature_spec"]["user"]["cardinality"] == 12
    assert spec["metadata"]["test_samples_per_series"] == 16

    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    again = run_script("prepare_dataset.sh", "mine", str(raw), str(cache), *more, python=echo, cwd=tmp_path)
    assert "prepared already" in again.stdout
    assert "-m" not in again.stdout.split()  # Python was not started
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before


def test_a_failure_is_passed_on(tmp_path: Path) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nexit 7\n")
    broken.chmod(0o755)
    run_script("run_training.sh", python=broken, cwd=tmp_path, code=7)
    run_script("prepare_dataset.sh", "x", str(tmp_path), str(tmp_path / "out"), python=broken, cwd=tmp_path, code=7)
