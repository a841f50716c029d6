"""The commands that write outputs, on a small log, for tests that disturb them."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent
_LIMITED = ROOT / "tests" / "soak" / "limited.py"
_COLUMNS = ["--user", "user", "--item", "item", "--time", "time", "--test-negatives", "9", "--partitions", "3"]
_NET = ["--device", "cpu", "-f", "4", "--layers", "8", "4", "-l", "0.01", "-k", "3", "-b", "512", "-e", "3"]
_MEMBERS = ["--members", "softmax", "item-item", "--arch", "gmf", "--dropout", "0", "--validation", "leave-one-out"]
PATIENCE_S = 240.0


@dataclass(frozen=True)
class Commands:
    """What the commands read: `log.csv`, `data` (prepared) and `run` (trained), in one folder.

    Attributes:
        folder: where these lie; outputs are elsewhere.
    """

    folder: Path

    def prepare_inputs(self) -> None:
        rng = random.Random(0)
        rows = [f"u{rng.randrange(60)},i{rng.randrange(50)},{time}" for time in range(1200)]
        (self.folder / "log.csv").write_text("\n".join(["user,item,time", *rows]) + "\n")
        for name, output in (("prepare", "data"), ("train", "run")):
            finish(self.flags(name, self.folder / output))

    def flags(self, name: str, output: Path, seed: int = 1) -> list[str]:
        """The command line after `python`; a row of `NAMES` says what `output` is."""
        log, data, run = (str(self.folder / file) for file in ("log.csv", "data", "run"))
        to = ["--output", str(output)]
        prepare = ["-m", "preprocessing", "--seed", str(seed)]
        train = ["train.py", "--data", data, *_NET, "-s", str(seed), *to]
        recommend = ["-m", "model.recommend", "--run", run, "--all", "-k", str(3 + seed), *to]
        return {
            "prepare": [*prepare, "--input", log, *_COLUMNS, *to],
            "workers": [*prepare, "--input", log, *_COLUMNS, "--workers", "1", *to],
            "raw": [*prepare, "--synthetic", "50x40x2000", "--raw", str(output)],
            "transcode": [*prepare[:2], "--input", data, *to],
            "tensors": [*prepare[:2], "--input", data, "--emit", "torch_tensor", *to],
            "train": train,
            "validated": [*train, "--validation", "leave-one-out"],
            "two ranks": [*train, "--gpus", "2"],
            "members": [*train, *_MEMBERS],
            "test": [*train, "--mode", "test", "--load_checkpoint_path", run],
            "recommend.csv": recommend,
            "recommend.parquet": recommend,
            "recommend.json": recommend,
            **{
                f"export.{form}": ["-m", "model.export", "--run", run, "--format", form, *to]
                for form in ("nvidia", "onnx", "torch-export", "safetensors", "embeddings")
            },
        }[name]


TRAINING = ("train", "validated", "two ranks", "members")
FOLDERS = ("prepare", "workers", "transcode", "tensors", *TRAINING, "test", "export.embeddings")
FILES = (
    "raw", "recommend.csv", "recommend.parquet", "recommend.json",
    "export.nvidia", "export.onnx", "export.torch-export", "export.safetensors",
)  # fmt: skip
NAMES = (*FOLDERS, *FILES)


def output_of(name: str, folder: Path) -> Path:
    """Where a command of `NAMES` writes, in `folder`."""
    return folder / ("out" if name in FOLDERS else name.replace("recommend", "out").replace("raw", "out.csv"))


def start(flags: Sequence[str], limit: int | None = None) -> subprocess.Popen[str]:
    """Start a command.

    Args:
        limit: bytes that a file may have.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    limited = [] if limit is None else [str(_LIMITED), str(limit)]
    return subprocess.Popen(
        [sys.executable, *limited, *flags],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and output of a command, which must not hang."""
    try:
        output, _ = process.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, output


def finish(flags: Sequence[str]) -> str:
    """Run a command, which must succeed; returns its output."""
    status, output = ended(start(flags))
    assert status == 0, output
    return output


def tree(path: Path) -> dict[str, bytes]:
    """The content of each file, hidden ones too, and of each folder (nothing)."""
    found = [path] if path.is_file() else sorted(path.rglob("*"))
    return {str(file.relative_to(path)): file.read_bytes() if file.is_file() else b"" for file in found}


def put(old: Path, output: Path) -> None:
    """Copy a file or a folder to a new place."""
    (shutil.copytree if old.is_dir() else shutil.copy)(old, output)


def clear(output: Path) -> None:
    """Remove a file or a folder, if it is there."""
    shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)


def one_message(status: int, output: str, named: Path) -> None:
    """Check that a command failed as it should: one message that names an output, and no temporary file."""
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    assert (status, len(errors)) == (2, 1), output
    assert str(named) in errors[0], output
    assert ".partial" not in output, output
    assert "Traceback" not in output, output


def is_alive(pid: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def unused_shared_memory() -> set[Path]:
    """Shared memory that no process uses."""
    maps = []
    for file in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            maps.append(file.read_text(errors="replace"))
    return {file for file in Path("/dev/shm").iterdir() if not any(str(file) in one for one in maps)}
