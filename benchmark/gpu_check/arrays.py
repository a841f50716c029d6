"""Checks that data preparation gives the same results on GPU and CPU: array code, training samples, whole folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmark.gpu_check.findings import Findings, NotPossibleError, Settings, need, prepare_log, run_check
from preprocessing.synthetic.log import write_log
from preprocessing.synthetic.rows import row_blocks
from workflows.common.errors import UserError
from workflows.common.files import read_json
from workflows.device.frames import FrameDevice, frame_device, to_host
from workflows.sampling import counter_rng
from workflows.sampling.config import Sampling, build_candidates
from workflows.sampling.interactions import histories
from workflows.sampling.negatives import row_negatives, series_negatives

_SEED = counter_rng.stream_seed(4, 5)
_KINDS = {
    "exact": Sampling(),
    "popularity": Sampling(kind="popularity"),
    "time-aware": Sampling(time_aware=True),
    "popularity, time-aware": Sampling(kind="popularity", time_aware=True),
}
_PER_ROW, _LENGTH = 4, 100
_PREPARED = {"exact": (), "popularity": ("--negatives", "popularity", "--time-aware")}


def arrays(settings: Settings, found: Findings) -> None:
    """Splits, test and train negatives, ids: array code on CuPy against NumPy (NumPy itself in a rehearsal)."""
    if not settings.rehearsal:
        need("cupy", "CuPy")
    xp = FrameDevice(on_cpu=settings.rehearsal).arrays
    found.facts |= {"arrays": f"{xp.__name__} {xp.__version__}"}
    if settings.rehearsal:
        found.left_out["CuPy"] = "NumPy stands in"
    log = _log(settings)
    _compare_all(found, log, xp.asarray)
    if find_spec("nvtabular") is None:
        found.left_out["numbers of ids"] = "NVTabular, which the encoding needs, is not installed"
    else:
        _compare_numbers(found, log, xp.asarray)


def sampling(settings: Settings, found: Findings) -> None:
    """Training negatives: array code on torch tensors against NumPy."""
    import torch

    from workflows.device.torch_device import torch_device

    device = torch_device(settings.device, None)
    found.facts |= {"arrays": f"torch {torch.__version__} on {device}"}
    log = _log(settings)

    def there(values: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(values).to(device)

    for name, kind in _KINDS.items():
        for (what, here), (_, other) in zip(
            _row_negatives(log, kind, np.asarray), _row_negatives(log, kind, there), strict=True
        ):
            found.equal(f"{name}: {what}", other.cpu().numpy(), here)


def _log(settings: Settings) -> dict[str, np.ndarray]:
    """int64 users, items and times of a log, sorted by user; one pair in ten has a second row."""
    shape = settings.scale.parity_shape
    rows = np.concatenate(list(row_blocks(shape.users, shape.items, shape.rows, 2)))
    rows = np.sort(np.concatenate([rows, rows[::10]]), order="user", kind="stable")
    return {name: rows[name].astype(np.int64) for name in ("user", "item", "time")}


def _compare_all(found: Findings, log: dict[str, np.ndarray], there: Callable[[np.ndarray], Any]) -> None:
    here, other = (histories(*(to(log[name]) for name in ("user", "item", "time"))) for to in (np.asarray, there))
    for each in fields(here):
        found.equal(f"histories: {each.name}", to_host(getattr(other, each.name)), getattr(here, each.name))
    for name, kind in _KINDS.items():
        results = []
        for history, to in ((here, np.asarray), (other, there)):
            users = to(np.arange(here.users.shape[0]))
            results.append(series_negatives(history, users, _candidates(log, kind, to), _LENGTH, _SEED))
        found.equal(f"{name}: test negatives", to_host(results[1]), results[0])
        for (what, one), (_, two) in zip(
            _row_negatives(log, kind, np.asarray), _row_negatives(log, kind, there), strict=True
        ):
            found.equal(f"{name}: {what}", to_host(two), one)


def _row_negatives(
    log: dict[str, np.ndarray], kind: Sampling, to: Callable[[np.ndarray], Any]
) -> Iterator[tuple[str, Any]]:
    users, items, times = (to(log[name]) for name in ("user", "item", "time"))
    negatives, exists = row_negatives(users, items, _candidates(log, kind, to), _PER_ROW, _SEED, times)
    yield "train negatives", negatives
    yield "whether there are any", exists


def _candidates(log: dict[str, np.ndarray], kind: Sampling, to: Callable[[np.ndarray], Any]) -> Any:
    n_items = int(log["item"].max()) + 1
    since = np.full(n_items, np.iinfo(np.int64).max)
    np.minimum.at(since, log["item"], log["time"])
    return build_candidates(n_items, kind, np.bincount(log["item"], minlength=n_items), since, to(log["user"][:1]))


def _compare_numbers(found: Findings, log: dict[str, np.ndarray], there: Callable[[np.ndarray], Any]) -> None:
    """Compare codes of known and unknown original ids, using the encoding's lookup table for dense ids."""
    import pandas as pd

    from workflows.operators.encode import IdTable

    ids = np.unique(log["item"])[::2] * 3
    asked = np.concatenate([log["item"] * 3, [-1, 2**40]])
    here, other = (IdTable(pd.Series(ids)).numbers(SimpleNamespace(values=to(asked))) for to in (np.asarray, there))
    found.equal("numbers of ids", to_host(other), here)


def preprocessing(settings: Settings, found: Findings) -> None:
    """A log prepared on both devices gives the same split, ids and negatives, file by file."""
    need("nvtabular", "NVTabular")
    try:
        frames = frame_device(settings.device)
    except UserError as err:
        raise NotPossibleError(str(err).partition(";")[0]) from None
    import pyarrow.parquet as pq

    found.facts |= {"frames": frames.frames.__name__}
    if settings.rehearsal:
        found.left_out["cuDF"] = "pandas stands in"
    log = settings.work / "log.csv"
    write_log(settings.scale.parity_shape, log, 2)
    for kind, flags in _PREPARED.items():
        here, other = (settings.work / f"{kind}-{number}" for number in range(2))
        for folder, device in ((here, "cpu"), (other, settings.device)):
            prepare_log(log, folder, device, "--partitions", "3", "--train-negatives", "2", *flags)
        names = sorted(path.relative_to(here) for path in here.rglob("*.parquet"))
        there = sorted(path.relative_to(other) for path in other.rglob("*.parquet"))
        found.close(f"{kind}: Parquet files of the same names", len(set(names) ^ set(there)), 0, 0.0)
        for name in (name for name in names if name in there):
            tables = pq.read_table(here / name), pq.read_table(other / name)
            found.close(f"{kind}: {name}, columns that differ", _differing(*tables), 0, 0.0)
        stats = [read_json(folder / "stats.json") for folder in (here, other)]
        changed = [key for key in stats[0] | stats[1] if stats[0].get(key) != stats[1].get(key)]
        found.close(f"{kind}: entries of stats.json that differ", len(changed), 0, 0.0)
        spec = [(folder / "feature_spec.yaml").read_bytes() for folder in (here, other)]
        found.close(f"{kind}: feature_spec.yaml differs", int(spec[0] != spec[1]), 0, 0.0)


def _differing(one: Any, other: Any) -> int:
    """Number of columns of two Arrow tables that differ in values or type."""
    if one.column_names != other.column_names:
        return max(one.num_columns, other.num_columns)
    return sum(not one.column(name).equals(other.column(name)) for name in one.column_names)


if __name__ == "__main__":
    run_check({"arrays": arrays, "sampling": sampling, "preprocessing": preprocessing})
