"""Long runs keep their number of open files and threads, and their memory; what dies leaves no process behind."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from soak_commands import PATIENCE_S, Commands, is_alive, start, unused_shared_memory

import train
from model.run.run_writer import RunWriter

EPOCHS = (15, 50)  # in `make test`, in `make soak`
WARM_UP = 10
MAX_GROWTH_MIB = 8.0  # of the allocator; a leak of one batch per epoch would be more


@pytest.fixture
def epochs(request: pytest.FixtureRequest) -> int:
    return EPOCHS[request.config.getoption("--soak")]


@pytest.mark.parametrize("loader", ["merlin", "memory"])
def test_epochs_leak_nothing(
    tmp_path: Path, commands: Commands, loader: str, epochs: int, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    seen: list[tuple[int, int, float]] = []
    process, write_epoch = psutil.Process(), RunWriter.epoch

    def measured(self: RunWriter, *given: Any) -> None:
        write_epoch(self, *given)
        seen.append((process.num_fds(), process.num_threads(), process.memory_info().rss / 2**20))

    monkeypatch.setattr(RunWriter, "epoch", measured)
    flags = commands.flags("train", tmp_path / "run")[1:]
    train.main([*flags, "-e", str(epochs), "--loader", loader, "--validation", "leave-one-out"])
    assert len(seen) == epochs
    warm, last = seen[WARM_UP], seen[-1]
    assert last[:2] == warm[:2]
    assert last[2] - warm[2] < MAX_GROWTH_MIB
    record_property("epochs without a leak", epochs)


def test_workers_end_with_a_command_that_is_killed(
    tmp_path: Path, commands: Commands, request: pytest.FixtureRequest, record_property: Any
) -> None:
    if not request.config.getoption("--soak"):
        pytest.skip("starting workers takes long; make soak")
    left = unused_shared_memory()
    command = start(commands.flags("workers", tmp_path / "out"))
    deadline = time.monotonic() + PATIENCE_S
    while len(workers := psutil.Process(command.pid).children(recursive=True)) < 2:  # the first one tidies up
        assert command.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    command.kill()
    command.communicate()
    while any(is_alive(worker.pid) for worker in workers):
        assert time.monotonic() < deadline, "workers outlive their command"
        time.sleep(0.01)
    while not unused_shared_memory() <= left:  # another program's may be on its way out
        assert time.monotonic() < deadline, "shared memory is left"
        time.sleep(0.1)
    assert not (tmp_path / "out").exists()
    record_property("kills of workers' commands", 1)
