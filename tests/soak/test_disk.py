"""Disks and limits that are too small: one message, the old output as it was, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from soak_commands import NAMES, TRAINING, Commands, ended, finish, one_message, output_of, put, start, tree

SIZES = 20  # in `make soak`; one in `make test`
pytestmark = pytest.mark.usefixtures("forked")
RESUMABLE = ("last/state.safetensors", "stages/")
Record = Callable[[str, object], None]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    soaks = metafunc.config.getoption("--soak")
    if "name" in metafunc.fixturenames:
        few = ("prepare", "validated", "export.safetensors")
        metafunc.parametrize("name", [name for name in NAMES if name != "two ranks"] if soaks else few)
    if "overwrite" in metafunc.fixturenames:
        every = [(step, bool(step % 2)) for step in range(SIZES)]
        metafunc.parametrize("step,overwrite", every if soaks else [(SIZES // 3, False), (SIZES // 3, True)])
    elif "step" in metafunc.fixturenames:
        metafunc.parametrize("step", range(SIZES) if soaks else [SIZES // 3])


@pytest.fixture(scope="module")
def old_of(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """An output of a command that is to be replaced; made once."""
    known: dict[str, Path] = {}

    def made(name: str) -> Path:
        if name not in known:
            known[name] = output_of(name, tmp_path_factory.mktemp("old"))
            finish(commands.flags(name, known[name], seed=2))
        return known[name]

    return made


def _refused(name: str, status: int, said: str, output: Path) -> None:
    # Dask's processes and torch.export need a folder for temporary files, too.
    is_temporary = name in ("workers", "export.torch-export") and "No usable temporary directory" in said
    one_message(status, said, Path(tempfile.gettempdir()) if is_temporary else output)


def _check(name: str, status: int, said: str, output: Path, old: dict[str, bytes]) -> None:
    """Check what a command left in a folder that held nothing but the old output."""
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    found = tree(output)
    assert not [file for file in found if "partial" in file or "neumf.old" in file]
    if status == 0:
        return
    _refused(name, status, said, output)
    is_run = name in TRAINING and any(file.startswith(RESUMABLE) for file in found)
    assert found == old or is_run


def test_a_limit_on_the_size_of_files(
    tmp_path: Path, commands: Commands, old_of: Callable[[str], Path], name: str, step: int, overwrite: bool,
    record_property: Record,
) -> None:  # fmt: skip
    old = old_of(name)
    largest = max(map(len, tree(old).values()))
    output = output_of(name, tmp_path)
    flags = commands.flags(name, output)
    if overwrite:
        put(old, output)
        flags.append("--overwrite")
    status, said = ended(start(flags, limit=largest * step // (SIZES - 1)))
    record_property("limits on the size of files", 1)
    record_property("files too large", int(status != 0))
    if overwrite or output.exists():
        _check(name, status, said, output, tree(old))
    else:
        _refused(name, status, said, output)
        assert list(tmp_path.iterdir()) == []


@contextmanager
def _small_disk(place: Path, size: int) -> Iterator[None]:
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk(
    tmp_path: Path, commands: Commands, old_of: Callable[[str], Path], name: str, step: int,
    request: pytest.FixtureRequest, record_property: Record,
) -> None:  # fmt: skip
    if not request.config.getoption("--soak"):
        pytest.skip("needs root; make soak")
    old = old_of(name)
    # A tmpfs has whole pages.
    size = sum(-(-len(content) // 4096) * 4096 for content in tree(old).values())
    with _small_disk(tmp_path / "disk", size + 4096 * (1 + step * size // 4096 // (SIZES // 2))):
        output = output_of(name, tmp_path / "disk")
        put(old, output)
        status, said = ended(start([*commands.flags(name, output), "--overwrite"]))
        record_property("small disks", 1)
        record_property("full disks", int(status != 0))
        _check(name, status, said, output, tree(old))
