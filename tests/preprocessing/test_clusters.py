"""Threads, worker processes and an external cluster write the same bytes, even if a worker dies."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client

from preprocessing.__main__ import main
from workflows.cluster import DaskCluster
from workflows.common.errors import UserError

Prepare = Callable[..., Path]
Bytes = Callable[[Path], dict[str, bytes]]

_ROOT = Path(__file__).parents[2]
_FLAGS = ["--test-negatives", "6", "--train-negatives", "1", "--negatives", "popularity", "--partitions", "6"]

pytestmark = pytest.mark.usefixtures("forked")


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text users, integer items, eight pieces."""
    rng = np.random.default_rng(0)
    rows = 2400
    columns = {
        "user": pa.array([f"ü-{number}" for number in rng.integers(0, 150, rows)]),
        "item": rng.zipf(1.4, rows) % 120,
        "time": rng.integers(0, 500, rows),
    }
    path = tmp_path_factory.mktemp("clusters") / "log.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=300)
    return path


@pytest.fixture(scope="module")
def of_threads(log: Path, prepare_log: Prepare, folder_bytes: Bytes) -> dict[str, bytes]:
    """Folder content written by threads."""
    content = folder_bytes(prepare_log(log, *_FLAGS))
    assert sum(name.startswith("train/") for name in content) == 6
    return content


@pytest.mark.parametrize("workers", ["1", "3"])
def test_worker_processes_write_the_same_bytes(
    log: Path, of_threads: dict[str, bytes], prepare_log: Prepare, folder_bytes: Bytes, workers: str
) -> None:
    assert folder_bytes(prepare_log(log, *_FLAGS, "--workers", workers)) == of_threads


@pytest.mark.parametrize("stage", [0, 2], ids=["reading", "writing"])
def test_killing_a_worker_does_not_change_the_output(
    log: Path,
    of_threads: dict[str, bytes],
    prepare_log: Prepare,
    folder_bytes: Bytes,
    monkeypatch: pytest.MonkeyPatch,
    stage: int,
) -> None:
    # Kill a worker after the first result of a stage: its undelivered results must be recomputed.
    collect, stages, killed = DaskCluster.collect, itertools.count(), []

    def collect_and_kill(self: DaskCluster, tasks: Any, on_result: Callable[[Any], None]) -> None:
        to_kill = list(self.client.cluster.workers.values())[:1] if next(stages) == stage else []

        def first_then_kill(result: Any) -> None:
            on_result(result)
            if to_kill:
                killed.append(to_kill.pop().pid)
                psutil.Process(killed[0]).kill()

        collect(self, tasks, first_then_kill)

    monkeypatch.setattr(DaskCluster, "collect", collect_and_kill)
    # Shorten how long Dask tries to reach the dead worker.
    with dask.config.set({"distributed.comm.timeouts.connect": "3s"}):
        assert folder_bytes(prepare_log(log, *_FLAGS, "--workers", "2")) == of_threads
    assert killed


# --- External cluster -------------------------------------------------------------------------------------------


@contextmanager
def _started(*argv: str, folder: Path, path: Path = _ROOT) -> Iterator[None]:
    """Run a Dask command as a process and kill it after the block."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dask", *argv],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def _free_address() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def _cluster(folder: Path, workers: int, path: Path = _ROOT) -> Iterator[str]:
    """Address of a TCP scheduler with workers whose PYTHONPATH is `path`."""
    address = _free_address()
    port = address.rpartition(":")[2]
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard", "--no-jupyter"]
    worker = ["worker", f"tcp://{address}", "--no-nanny", "--nthreads", "1", "--no-dashboard", "--memory-limit", "0"]
    with ExitStack() as processes:
        processes.enter_context(_started(*scheduler, folder=folder))
        for number in range(workers):
            local = ["--local-directory", str(folder / str(number))]
            processes.enter_context(_started(*worker, *local, folder=folder, path=path))
        with Client(address, timeout="60s") as client:  # retries the connection until the timeout
            client.wait_for_workers(workers, timeout=60) if workers else None
        yield address


def test_workers_of_an_external_scheduler_write_the_same_bytes(
    tmp_path: Path, log: Path, of_threads: dict[str, bytes], prepare_log: Prepare, folder_bytes: Bytes
) -> None:
    with _cluster(tmp_path, 2) as address:
        assert folder_bytes(prepare_log(log, *_FLAGS, "--scheduler", address)) == of_threads
        # The cluster is reusable, and keeps nothing from the first run.
        assert folder_bytes(prepare_log(log, *_FLAGS, "--scheduler", address)) == of_threads


def test_a_scheduler_without_workers_is_an_error_that_says_how_to_start_them(tmp_path: Path, log: Path) -> None:
    with _cluster(tmp_path, 0) as address, pytest.raises(UserError, match=f"no workers.*dask worker {address}"):
        main(["--input", str(log), "--output", str(tmp_path / "out"), "--scheduler", address, "--device", "cpu"])
    assert not (tmp_path / "out").exists()


def _refusal(log: Path, address: str) -> subprocess.CompletedProcess[str]:
    output = log.parent / "refused"
    argv = ["--input", str(log), "--output", str(output), "--scheduler", address, "--device", "cpu"]
    done = subprocess.run(
        [sys.executable, "-m", "preprocessing", *argv], cwd=_ROOT, capture_output=True, text=True, timeout=120
    )
    assert not output.exists()
    assert not list(log.parent.glob(".refused*"))
    return done


def _assert_refused(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    for part in parts:
        assert part in done.stderr


def test_a_worker_without_the_project_is_a_clear_error(tmp_path: Path, log: Path) -> None:
    # The project may be installed for every process, so shadow it with a package that fails to import.
    (tmp_path / "before" / "workflows").mkdir(parents=True)
    (tmp_path / "before" / "workflows" / "__init__.py").write_text("raise ImportError('not this project')\n")
    with _cluster(tmp_path, 1, path=tmp_path / "before") as address:
        done = _refusal(log, address)
    _assert_refused(done, "cannot run this program", "in which it is installed (make setup)", address)


def test_an_unreachable_scheduler_is_a_clear_error(log: Path) -> None:
    address = _free_address()
    _assert_refused(_refusal(log, address), f"--scheduler {address}: no Dask scheduler answers there", "dask scheduler")


def test_the_number_of_partitions_does_not_change_the_rows(
    log: Path, prepare_log: Prepare, mapping_files: Callable[[Path, str], list[pd.DataFrame]]
) -> None:
    def rows(*flags: str) -> list[pd.DataFrame]:
        folder = prepare_log(log, *_FLAGS[:-2], *flags)
        found = (pd.concat(mapping_files(folder, name)) for name in ("train", "test"))
        return [part.sort_values("user", kind="stable").reset_index(drop=True) for part in found]

    expected = rows("--partitions", "1")
    for flags in (["--partitions", "13"], ["--memory-limit", "400MiB"]):
        for part, same_part in zip(rows(*flags), expected, strict=True):
            pd.testing.assert_frame_equal(part, same_part)
