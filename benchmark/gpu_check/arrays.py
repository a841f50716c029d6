"""Checks that array code gives the same values on GPU and CPU: histories, negatives, numbers of ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from benchmark.gpu_check.findings import Findings, Settings, need, run_check
from preprocessing.synthetic.rows import row_blocks
from workflows.device.frames import FrameDevice, to_host
from workflows.sampling import counter_rng
from workflows.sampling.candidates import Candidates
from workflows.sampling.config import Sampling, build_candidates
from workflows.sampling.interactions import histories
from workflows.sampling.negatives import row_negatives, series_negatives

_SEED = counter_rng.stream_seed(4, 5)
_KINDS = {
    "exact": Sampling(),
    "popularity": Sampling(kind="popularity"),
    "uniform": Sampling(kind="uniform"),
    "time-aware": Sampling(time_aware=True),
    "popularity, time-aware": Sampling(kind="popularity", time_aware=True),
}
_PER_ROW, _LENGTH = 4, 100
_CROWDED_ITEMS = 40  # fewer than _LENGTH

There = Callable[[np.ndarray], Any]  # moves an array to the device


@dataclass(frozen=True)
class _Log:
    """int64 users, items and times of whole users, sorted by user; one pair in ten has a second row."""

    name: str
    users: np.ndarray
    items: np.ndarray
    times: np.ndarray
    n_items: int


def arrays(settings: Settings, found: Findings) -> None:
    """Splits, test and train negatives, ids: array code on CuPy against NumPy (NumPy itself in a rehearsal)."""
    if not settings.rehearsal:
        need("cupy", "CuPy")
    xp = FrameDevice(on_cpu=settings.rehearsal).arrays
    found.facts |= {"arrays": f"{xp.__name__} {xp.__version__}"}
    if settings.rehearsal:
        found.left_out["CuPy"] = "NumPy stands in"
    for log in _logs(settings):
        with found.attempt(f"{log.name}: histories"):
            here, other = (histories(*map(to, (log.users, log.items, log.times))) for to in (np.asarray, xp.asarray))
            for each in fields(here):
                found.equal(
                    f"{log.name}: histories: {each.name}", to_host(getattr(other, each.name)), getattr(here, each.name)
                )
        _compare_negatives(found, log, xp.asarray, to_host)
    for name, ids in (("dense", np.arange(0, 5_000, 3)), ("64-bit", np.arange(-2_000, 2_000) * (1 << 51) + 7)):
        with found.attempt(f"numbers of {name} ids"):
            _compare_numbers(found, f"numbers of {name} ids", ids, settings)


def sampling(settings: Settings, found: Findings) -> None:
    """Test and train negatives: array code on torch tensors against NumPy."""
    import torch

    from workflows.device.torch_device import torch_device

    device = torch_device(settings.device, None)
    found.facts |= {"arrays": f"torch {torch.__version__} on {device}"}
    for log in _logs(settings):
        _compare_negatives(
            found, log, lambda values: torch.from_numpy(values).to(device), lambda tensor: tensor.cpu().numpy()
        )


def _logs(settings: Settings) -> Iterator[_Log]:
    """The log, one whose users have seen almost every item (one of them all, another a single one), and no rows."""
    shape = settings.scale.parity_shape
    rows = np.concatenate(list(row_blocks(shape.users, shape.items, shape.rows, 2)))
    rows = np.sort(np.concatenate([rows, rows[::10]]), order="user", kind="stable")
    users, items, times = (rows[name].astype(np.int64) for name in ("user", "item", "time"))
    log = _Log("log", users, items, times, shape.items)
    yield log
    random = np.random.default_rng(6)
    seen = np.concatenate([[_CROWDED_ITEMS, 1], random.integers(_CROWDED_ITEMS - 8, _CROWDED_ITEMS, 30)])
    items = np.concatenate([random.permutation(_CROWDED_ITEMS)[:number] for number in seen])
    users, times = np.arange(len(seen)).repeat(seen), random.integers(0, 20, len(items))  # with ties
    yield _Log("few unseen items", users, items, times, _CROWDED_ITEMS)
    yield replace(log, name="no rows", users=users[:0], items=items[:0], times=times[:0])


def _compare_negatives(found: Findings, log: _Log, there: There, back: Callable[[Any], np.ndarray]) -> None:
    for name, kind in _KINDS.items():
        with found.attempt(f"{log.name}, {name}"):
            for (what, here), (_, other) in zip(_drawn(log, kind, np.asarray), _drawn(log, kind, there), strict=True):
                found.equal(f"{log.name}, {name}: {what}", back(other), here)


def _drawn(log: _Log, kind: Sampling, to: There) -> Iterator[tuple[str, Any]]:
    """Negatives of the last interactions, and of all rows, from NumPy's histories."""
    candidates, exact = _candidates(log, kind, to), kind.kind != "uniform"
    history = histories(log.users, log.items, log.times)
    selected = np.flatnonzero(history.counts < log.n_items)  # the others have no negative
    moved = replace(history, **{each.name: to(getattr(history, each.name)) for each in fields(history)})
    yield "test negatives", series_negatives(moved, to(selected), candidates, _LENGTH, _SEED, exact)
    columns = to(log.users), to(log.items)
    negatives, exists = row_negatives(*columns, candidates, _PER_ROW, _SEED, to(log.times), exact)
    yield "train negatives", negatives
    yield "whether there are any", exists


def _candidates(log: _Log, kind: Sampling, to: There) -> Candidates:
    since = np.full(log.n_items, np.iinfo(np.int64).max)
    np.minimum.at(since, log.items, log.times)
    counts = np.maximum(np.bincount(log.items, minlength=log.n_items), 1)
    return build_candidates(log.n_items, kind, counts, since, to(log.users[:1]))


def _compare_numbers(found: Findings, what: str, ids: np.ndarray, settings: Settings) -> None:
    """Compare codes of known and unknown original ids."""
    need("nvtabular", "NVTabular, which the encoding needs,")
    if not settings.rehearsal:
        need("cudf", "cuDF")
    import pandas as pd

    from workflows.operators.encode import IdTable

    asked = np.concatenate([ids, ids[::-7], [-1, 1 << 40]])
    frames = FrameDevice(on_cpu=settings.rehearsal).frames
    columns = pd.Series(asked), frames.Series(asked)
    here, other = (to_host(IdTable(pd.Series(ids[::2])).numbers(column)) for column in columns)
    found.equal(what, other, here)


if __name__ == "__main__":
    run_check({"arrays": arrays, "sampling": sampling})
