"""Outputs under construction: complete or absent at every moment, and swept if their process died."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from model.network.checkpoint import save_tensors
from model.run.appended import AppendedFile
from preprocessing.spec.reader import save_tensor
from workflows.common import staging
from workflows.common.errors import UserError
from workflows.common.files import check_output, replace_file
from workflows.common.staging import StagedFolder, check_file, published, staged_file, sweep, written

ROOT = Path(__file__).parents[3]


LEFTOVER = """
import os, signal, sys
from contextlib import closing
from pathlib import Path
from workflows.common.staging import StagedFolder

with closing(StagedFolder(Path(sys.argv[1]))) as staged:
    (staged.folder / "train").mkdir()
    (staged.folder / "train" / "half").write_text("rows")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftovers_of_a_killed_process_are_swept(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LEFTOVER, str(tmp_path / "out")], cwd=ROOT, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert (left / "out" / "train" / "half").is_file()
    for foreign in (".out.abcdefgh.partial", ".out.tmp", "out.neumf.partial"):
        (tmp_path / foreign).write_text("of another program")
    with staged_file(tmp_path / "other.json", overwrite=False) as partial:
        assert not left.exists()
        partial.touch()
    assert len(list(tmp_path.iterdir())) == 4


def _stage(path: Path, content: str) -> StagedFolder:
    staged = StagedFolder(path)
    (staged.folder / "file").write_text(content)
    return staged


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_and_nothing_else_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanges: bool
) -> None:
    if not exchanges:
        monkeypatch.setattr(staging, "_exchanged", lambda first, second: False)
    for content in ("old", "new"):
        with closing(_stage(tmp_path / "out", content)) as staged:
            staged.publish()
            assert staged.folder == tmp_path / "out"
        assert (tmp_path / "out" / "file").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


class _KilledError(BaseException):
    """Stands in for SIGKILL: nothing is cleaned up after it."""


def _killed(*_: object, **__: object) -> None:
    raise _KilledError


@pytest.mark.skipif(sys.platform != "linux", reason="renameat2")
def test_of_two_that_write_a_file_the_first_one_stays(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    with pytest.raises(UserError, match="exists already"), staged_file(path, overwrite=False) as second:  # noqa: PT012
        second.write_text("second")
        with staged_file(path, overwrite=False) as first:
            first.write_text("first")
    assert [file.name for file in tmp_path.iterdir()] == ["out.csv"]
    assert path.read_text() == "first"


def test_a_process_killed_after_the_exchange_has_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(_stage(tmp_path / "out", "old")) as staged:
        staged.publish()
    dying = _stage(tmp_path / "out", "new")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", _killed)
        with pytest.raises(_KilledError):
            dying.publish()
    assert (tmp_path / "out" / "file").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_without_an_exchange_the_next_command_puts_the_old_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(_stage(tmp_path / "out", "old")) as staged:
        staged.publish()
    monkeypatch.setattr(staging, "_exchanged", lambda first, second: False)
    dying, rename = _stage(tmp_path / "out", "new"), Path.rename
    with monkeypatch.context() as patched:
        # Killed between the two renames, which also keeps the first from being undone.
        patched.setattr(Path, "rename", lambda self, to: _killed() if ".old" not in str(to) else rename(self, to))
        with pytest.raises(_KilledError):
            dying.publish()
    os.close(dying._lock)
    assert not (tmp_path / "out").exists()
    sweep(tmp_path)
    assert (tmp_path / "out" / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_stage_without_a_lock_is_swept_only_if_it_is_empty(tmp_path: Path) -> None:
    """As of a process that is about to make the lock, or of one killed there."""
    empty, full = (tmp_path / f".{name}.0123abcd.neumf.partial" for name in ("empty", "full"))
    empty.mkdir()
    (full / "full").mkdir(parents=True)
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [full]


def test_an_interrupted_removal_is_finished_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dying = _stage(tmp_path / "out", "new")
    (dying.folder / "train").mkdir()
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda folder, **_: (folder / "file").unlink() or _killed())
        with pytest.raises(_KilledError):
            dying.close()
    assert (dying.folder / "train").is_dir()
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_changed_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may change all
    with pytest.raises(UserError, match=r"out may not be changed by this user.*name another --output"):
        check_output(tmp_path / "out", True, lambda _: True)


def test_a_file_that_another_process_writes_is_not_swept(tmp_path: Path) -> None:
    with staged_file(tmp_path / "a", overwrite=True) as first:
        first.write_text("first")
        with staged_file(tmp_path / "a", overwrite=True) as second:
            second.write_text("second")
            assert first != second
        assert first.read_text() == "first"
    assert (tmp_path / "a").read_text() == "first"  # the last to finish wins, whole
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_that_a_library_replaces_is_not_swept(tmp_path: Path) -> None:
    with staged_file(tmp_path / "a", overwrite=False) as partial:
        safetensors.torch.save_file({"a": torch.zeros(1)}, partial)  # by a rename
        sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["a.csv", "n" * 250])
def test_messages_name_the_place_of_an_output(tmp_path: Path, name: str) -> None:
    with staged_file(tmp_path / name, overwrite=False) as partial:
        partial.touch()
        assert published(partial) == tmp_path / name
    with closing(StagedFolder(tmp_path / "out")) as staged:
        assert published(staged.folder / "out" / "x") == tmp_path / "out" / "out" / "x"
    assert published(tmp_path / "b") == tmp_path / "b"


def test_long_and_odd_names(tmp_path: Path) -> None:
    for name in ("n" * 250, "物" * 80, "a[b]*?", "new\nline", "-"):
        with suppress(KeyboardInterrupt), staged_file(tmp_path / name, overwrite=False) as partial:
            partial.write_text("half")
            raise KeyboardInterrupt
        replace_file(tmp_path / name, b"whole")
        assert (tmp_path / name).read_text() == "whole"
    assert len(list(tmp_path.iterdir())) == 5


_MATRIX = np.zeros((200, 500))
_WRITERS: dict[str, Callable[[Path], object]] = {
    "bytes": lambda path: replace_file(path, b"0" * 300_000),
    "log": lambda path: AppendedFile(path).append(b"0" * 300_000),
    "safetensors": lambda path: save_tensors(path, {"a": torch.zeros(100_000)}),
    "torch": lambda path: save_tensor(path, _MATRIX),
    "numpy": lambda path: np.save(path, _MATRIX),
    "parquet": lambda path: pq.write_table(pa.table({"a": np.random.default_rng(0).random(100_000)}), path),
}


@pytest.mark.parametrize("writer", _WRITERS)
def test_a_full_disk_is_one_message_that_names_the_output(tmp_path: Path, writer: str) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with (
            pytest.raises(
                UserError, match=rf"^{tmp_path}/out(/file.npy)? could not be written: .* MiB are free in {tmp_path}"
            ),
            written(tmp_path / "out"),
            closing(StagedFolder(tmp_path / "out")) as staged,
        ):
            _WRITERS[writer](staged.folder / "file.npy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_complete_or_absent(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with suppress(KeyboardInterrupt), staged_file(target, overwrite=False) as partial:
        partial.write_text("half")
        raise KeyboardInterrupt
    assert list(target.parent.iterdir()) == []
    with staged_file(target, overwrite=False) as partial:
        partial.write_text("first")
        assert not target.exists()
    for overwrite in (False, True):
        with suppress(UserError), staged_file(target, overwrite) as partial:
            partial.write_text("second")
        assert target.read_text() == ("second" if overwrite else "first")
    assert list(target.parent.iterdir()) == [target]


def test_files_that_must_not_be_written_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, message in (
        (tmp_path / "file", r"exists already.*--overwrite"),
        (tmp_path, "is a folder"),
        (tmp_path / "file" / "below", "is a file"),
    ):
        with pytest.raises(UserError, match=message):
            check_file(path, overwrite=False)
    check_file(tmp_path / "file", overwrite=True)
