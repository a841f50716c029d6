"""`python -m benchmark.peers.install`, which is `make peers`: one environment for each peer, from its lock.

A peer that cannot be installed is left out: its environment is removed and its error kept beside it. The others go on.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmark.common.program import ROOT
from workflows.common.errors import UserError, run_command
from workflows.common.progress import console

LOCKS, ENVIRONMENTS = ROOT / "requirements" / "peers", ROOT / ".venv-peers"
_READY = ".ready"  # holds the digest of the lock
_NEEDS_CUDA = (
    "import importlib.metadata, sys; "
    "sys.exit(not any('nvidia' in one for one in importlib.metadata.requires('torch') or ()))"
)


def peers(locks: Path | None = None) -> list[str]:
    """All peers that have a lock."""
    return sorted(path.stem for path in (locks or LOCKS).glob("*.txt"))


def python_of(peer: str, environments: Path | None = None) -> Path | None:
    """The interpreter of an installed peer; None if it is not installed."""
    folder = (environments or ENVIRONMENTS) / peer
    return folder / "bin" / "python" if (folder / _READY).exists() else None


def error_of(peer: str, environments: Path | None = None) -> str:
    """Why a peer is not installed."""
    path = _error_path(peer, environments or ENVIRONMENTS)
    return path.read_text(encoding="utf-8").strip() if path.exists() else "not installed: run `make peers`"


def _error_path(peer: str, environments: Path) -> Path:
    return environments / f"{peer}.error.txt"


def install(
    peer: str, torch_index: str = "", locks: Path | None = None, environments: Path | None = None
) -> str | None:
    """Install a peer, or keep an environment made from the same lock; returns the error, None if there is none."""
    locks, environments = locks or LOCKS, environments or ENVIRONMENTS
    lock, folder, error_path = locks / f"{peer}.txt", environments / peer, _error_path(peer, environments)
    text = lock.read_bytes()
    digest = hashlib.sha256(text).hexdigest()
    ready = folder / _READY
    if ready.exists() and ready.read_text(encoding="utf-8") == digest:
        return None
    shutil.rmtree(folder, ignore_errors=True)
    error_path.unlink(missing_ok=True)
    environments.mkdir(parents=True, exist_ok=True)
    uv, python = str(Path(sys.executable).with_name("uv")), str(folder / "bin" / "python")
    into = [uv, "pip", "install", "--quiet", "--python", python, "--no-deps", "--require-hashes"]
    try:
        _run([uv, "venv", "--quiet", "--no-project", "--python", sys.executable, str(folder)])
        if b"\n# torch==" in text or b"\n# torch\n" in text:  # left out of the lock: its build depends on the index
            pip = [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps"]
            index = ["--index-url", torch_index] if torch_index else []
            _run([*pip, "--only-binary", ":all:", *index, "-r", str(ROOT / "requirements" / "torch.txt")])
            if not subprocess.run([python, "-c", _NEEDS_CUDA], check=False).returncode:
                _run([*into, "-r", str(ROOT / "requirements" / "torch-gpu.txt")])
        _run([*into, "--only-binary", ":all:", "--compile-bytecode", "-r", str(lock)])
    except UserError as error:
        shutil.rmtree(folder, ignore_errors=True)
        error_path.write_text(f"{error}\n", encoding="utf-8")
        return str(error)
    ready.write_text(digest, encoding="utf-8")
    return None


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, env={**os.environ}
    )
    if done.returncode:
        name = " ".join(Path(word).name if "/" in word else word for word in command[:3])
        last_lines = "\n".join(done.stderr.splitlines()[-8:])
        raise UserError(f"{name} ended with status {done.returncode}:\n{last_lines}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmark.peers.install", allow_abbrev=False)
    parser.add_argument("peers", nargs="*", metavar="NAME", help=f"default: all of {', '.join(peers())}")
    parser.add_argument("--torch-index", default="", metavar="INDEX", help="package index of CPU builds of torch")
    args = parser.parse_args()
    unknown = set(args.peers) - set(peers())
    if unknown:
        raise UserError(f"there is no peer {', '.join(sorted(unknown))}; there are {', '.join(peers())}")
    names, failed = args.peers or peers(), {}
    for number, peer in enumerate(names, 1):
        started = time.perf_counter()
        error = install(peer, args.torch_index)
        if error is not None:
            failed[peer] = error
        state = "installed" if error is None else "failed"
        console.print(f"{number}/{len(names)} {peer}: {state} ({time.perf_counter() - started:.0f} s)")
    for peer, error in failed.items():
        console.print(f"left out: {peer}: {error}", markup=False)


if __name__ == "__main__":
    run_command(main)
