"""Runs an adapter with a peer's interpreter: `python -P host.py JOB.json`. It needs NumPy and nothing of this project.

An adapter is a file with `fit(run) -> scores`, where `scores(users)` gives the scores of users for all items. It calls
`run.loaded()` between loading and training and `run.epoch(samples, scores)` after each epoch, if there are epochs.

Shapes: N train rows, U users, I items, B users of a block.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

_BLOCK_USERS, _K = 256, 10
_SCORED = {round(1.25**power) for power in range(40)}  # epochs of the curve


class Run:
    """What an adapter is asked to do, and the clock that it reports to.

    Attributes:
        users, items: int32 [N], the train rows in the order of the prepared folder; distinct pairs.
        held_out: int32 [U], each user's validation item, -1 for none; None when fitting to all of train.
        settings: of the model, named as the peer names them.
        chosen: settings that the peer chose by itself on validation, for example by early stopping.
    """

    def __init__(self, job: dict[str, Any]) -> None:
        split = np.load(job["split"])
        self.users, self.items = split["users"], split["items"]
        self.n_users, self.n_items = int(split["n_users"]), int(split["n_items"])
        self.held_out = split["held_out"] if "held_out" in split.files else None
        self.model: str = job["model"]
        self.settings: dict[str, Any] = job["settings"]
        self.seed: int = job["seed"]
        self.threads: int = job["threads"]
        self.folder = Path(job["folder"])
        self.log: str | None = job.get("log")
        self.chosen: dict[str, Any] = {}
        self.samples = 0
        self.epochs: list[dict[str, Any]] = []
        self._curve: bool = job["curve"]
        self._began: float = job["began"]  # when the driver started this process, seconds since the epoch
        self._paused = np.zeros(2)
        self.marks = {"start": self.elapsed()}

    def elapsed(self) -> np.ndarray:
        """Wall-clock and CPU seconds since the process was started, without the scoring of the curve."""
        return np.array([time.time() - self._began, time.process_time()]) - self._paused

    def mark(self, name: str) -> None:
        self.marks[name] = self.elapsed()

    def between(self, name: str, first: str, last: str) -> dict[str, float]:
        wall_s, cpu_s = self.marks[last] - self.marks[first]
        return {f"{name}_s": wall_s, f"{name}_cpu_s": cpu_s}

    def loaded(self) -> None:
        """The peer's own data set is ready; training begins."""
        self.mark("loaded")

    def epoch(self, samples: int, scores: Any) -> None:
        """An epoch has ended; `scores` are computed off the clock if the curve is wanted."""
        self.samples += samples
        wall_s, cpu_s = paused = self.elapsed()
        self.epochs.append({"wall_s": wall_s, "cpu_s": cpu_s})
        number = len(self.epochs)
        if self._curve and number in _SCORED:
            self.write_scores(scores, self.folder / f"epoch-{number}.npy")
            self._paused += self.elapsed() - paused

    def write_scores(self, scores: Any, path: Path) -> None:
        """Scores of all users for all items, float32 [U, I]."""
        found = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(self.n_users, self.n_items))
        for start in range(0, self.n_users, _BLOCK_USERS):
            block = np.arange(start, min(start + _BLOCK_USERS, self.n_users))
            found[block] = scores(block)
        found.flush()

    def place(self, scores: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Scores for all items [B, I] from those of the items the peer knows, [B, len(items)]; others come last."""
        found = np.repeat(scores.min(axis=1, keepdims=True) - 1.0, self.n_items, axis=1).astype(np.float32)
        found[:, items] = scores
        return found


def top_items(scores: Any, users: np.ndarray, items: np.ndarray, n_users: int) -> np.ndarray:
    """Each user's best items without a train interaction, best first, [U, K]: what recommending comes down to."""
    order = np.argsort(users, kind="stable")
    ends, items = np.searchsorted(users[order], np.arange(n_users + 1)), items[order]
    rows = []
    for start in range(0, n_users, _BLOCK_USERS):
        block = np.arange(start, min(start + _BLOCK_USERS, n_users))
        found = np.array(scores(block), dtype=np.float32)
        for row, user in enumerate(block):
            found[row, items[ends[user] : ends[user + 1]]] = -np.inf
        best = np.argpartition(-found, min(_K, found.shape[1]) - 1, axis=1)[:, :_K]
        rows.append(np.take_along_axis(best, np.argsort(-np.take_along_axis(found, best, axis=1), axis=1), axis=1))
    return np.concatenate(rows)


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    signal.alarm(max(1, round(job["limit_s"] - (time.time() - job["began"]))))  # ends the process
    run = Run(job)
    spec = importlib.util.spec_from_file_location("adapter", job["adapter"])
    assert spec is not None
    assert spec.loader is not None
    adapter = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(adapter)
    run.mark("imported")
    scores = adapter.fit(run)
    run.mark("trained")
    figures = {
        **run.between("import", "start", "imported"),
        **run.between("load", "imported", "loaded"),
        **run.between("train", "loaded", "trained"),
        "total_s": run.marks["trained"][0],
        "total_cpu_s": run.marks["trained"][1],
        "samples": run.samples,
        "epochs": run.epochs,
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "chosen": run.chosen,
    }
    if job["scores"]:
        top_items(scores, run.users, run.items, run.n_users)
        run.mark("recommended")
        figures |= run.between("recommend", "trained", "recommended")
        run.write_scores(scores, run.folder / "scores.npy")
    print("\n" + json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
