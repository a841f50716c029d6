"""Fits a model, a peer's in the peer's environment, and reads back its figures."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.common.machine import commit
from benchmark.common.measure import CommandError, measure
from benchmark.peers.models import ADAPTERS
from workflows.common.errors import UserError, how_it_ended
from workflows.common.files import read_json, write_json

_FACTS = "figures.json"
_HOST = ADAPTERS / "host.py"
# A thread each: libraries differ in how many they take, and the machine may have other work.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "NUMBA_NUM_THREADS")
_FIRST = '{"import_s"'  # of the host's line


class OverLimitError(UserError):
    """The fit takes longer than allowed."""


@dataclass(frozen=True)
class Job:
    """What to fit.

    Attributes:
        adapter: a program with `fit(run)`, see `benchmark.peers.adapters.host`.
        split: an .npz file, see `benchmark.peers.split`.
        curve: also keep scores after some epochs.
        scores: keep scores in the end, and measure recommending.
        log: of raw interactions, for models that only load one.
    """

    adapter: str
    model: str
    split: str
    settings: dict[str, Any]
    seed: int
    threads: int = 1
    limit_s: float = 600.0
    curve: bool = False
    scores: bool = True
    log: str | None = None


def fit(python: Path, job: Job, folder: Path) -> dict[str, Any]:
    """Run a job with an interpreter, or reuse the figures of the same job: same programs, split and settings.

    `folder` receives `scores.npy`, float32 [n_users, n_items], and `epoch-N.npy`.

    Raises:
        OverLimitError: it took longer than the limit.
        UserError: it failed; the message includes the last lines of its output.
    """
    given = json.loads(json.dumps(asdict(job)))  # tuples become lists
    files = {"adapter": Path(job.adapter), "split": Path(job.split), "host": _HOST}
    known = given | {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    facts = folder / _FACTS
    found = read_json(facts)
    if found.get("job") == known:
        return found["figures"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path = folder / "job.json"
    write_json(path, {**given, "folder": str(folder), "began": time.time()})
    threads = [f"{name}={job.threads}" for name in _THREADS]
    here = commit()
    command = ["env", *threads, str(python), "-P", str(_HOST), str(path)]
    try:
        usage = measure(command, cwd=folder)
    except CommandError as error:
        if error.status == -signal.SIGALRM:  # its own
            raise OverLimitError(f"over {job.limit_s:g} s") from error
        said = [line.strip() for line in error.output.splitlines() if line.strip()][-1:]
        raise UserError(": ".join([how_it_ended(error.status), *said])) from error
    # A library may print more when it ends.
    figures = json.loads(next(line for line in reversed(usage.output.splitlines()) if line.startswith(_FIRST)))
    figures |= {
        "wall_s": usage.wall_s, "cpu_s": usage.cpu_s, "peak_rss_mib": usage.peak_rss_bytes / 2**20,
        "commit": here,
    }  # fmt: skip
    write_json(facts, {"job": known, "figures": figures})
    return figures


def load_scores(path: Path) -> np.ndarray:
    return np.load(path, mmap_mode="r")


def versions(python: Path) -> dict[str, str]:
    """The packages of an environment."""
    program = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    return json.loads(measure([str(python), "-c", program], cwd=Path(os.sep)).output.splitlines()[-1])
