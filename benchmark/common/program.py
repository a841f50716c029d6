"""Runs one of our programs with nothing else running, and reads its output."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmark.common.measure import failed

ROOT = Path(__file__).parents[2]


def json_of(module: str, *flags: str) -> dict[str, Any]:
    """The last line printed by one of our programs."""
    return json.loads(run_program("-m", module, *flags).splitlines()[-1])


def run_program(*argv: str, cwd: Path = ROOT) -> str:
    """Run one of our programs to its end, in the folder `cwd`; returns its standard output.

    Raises:
        UserError: it failed; the message includes the last lines of its errors.
    """
    command = [sys.executable, *argv]
    done = subprocess.run(command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise failed(command[1:], done.returncode, done.stderr)
    return done.stdout
