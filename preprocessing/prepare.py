"""Raw log → prepared folder: partition once, fit and run the workflow, write Parquet and the spec."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.encoding import Encoding, find_encoding, known_tables
from preprocessing.feature_spec import Chunk, Feature, FeatureSpec, Metadata
from preprocessing.memory import Plan
from preprocessing.partition import ITEM, TIME, USER, Selection, Spill, load_partition, spill_piece, write_index
from preprocessing.report import write_report
from preprocessing.sources.log import Log
from preprocessing.titles import read_titles
from preprocessing.write import Writer, Written
from workflows.cluster import Cluster
from workflows.device import FrameDevice
from workflows.errors import UserError
from workflows.folders import read_json, write_json
from workflows.merlin import frame_dataset
from workflows.operators import LeaveOneOut
from workflows.progress import console, stage
from workflows.sampling import ItemStatistics, Sampling
from workflows.state import leave_one_out_workflow, save_workflow

_STATS_NAME = "stats.json"


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How a log becomes train and test; nothing about where it lies or which device does it."""

    min_rating: float | None = None  # interactions rated lower are left out
    strict: bool = False  # a row with a missing value is an error
    test_negatives: int = 100  # of each test series
    train_negatives: int = 0  # written after each train positive
    sampling: Sampling = field(default_factory=Sampling)
    partitions: int | None = None  # None: by the size of the log and the memory limit
    memory_limit_bytes: int | None = None

    def __post_init__(self) -> None:
        numbers = {"test-negatives": self.test_negatives, "train-negatives": self.train_negatives}
        for name, number in {**numbers, "seed": self.sampling.seed}.items():
            if number < 0:
                raise UserError(f"--{name} should be 0 or more, got {number}")
        if self.partitions is not None and not 0 < self.partitions <= 1 << 16:
            raise UserError(f"--partitions should be 1 .. {1 << 16}, got {self.partitions}")
        if not 0.0 <= self.sampling.exponent <= 10.0:
            raise UserError(f"--popularity-exponent should be 0 .. 10, got {self.sampling.exponent}")


def is_prepared_folder(folder: Path) -> bool:
    """Whether a folder was written by `prepare`."""
    return {"rows_read", "test_negatives"} <= read_json(folder / _STATS_NAME).keys()


def prepare(
    log: Log,
    config: PrepareConfig,
    device: FrameDevice,
    cluster: Cluster,
    folder: Path,
    known: Encoding | None = None,
) -> dict[str, Any]:
    """Write a whole prepared folder.

    Args:
        folder: empty; the caller renames it into place. On a cluster, all its workers must see it.
        known: the encoding of another prepared folder, to be used again.
    Returns:
        What `stats.json` holds.

    Raises:
        UserError: the log is not what it should be, or nothing is left of it.
    """
    folder = folder.absolute()
    scratch = folder / ".spill"
    scratch.mkdir()
    plan = Plan.of(log.size_bytes, config.partitions, config.memory_limit_bytes, cluster.workers)
    spills = _spill(log, config, plan, cluster, scratch, known)
    kept = sum(int(spill.offsets[-1]) for spill in spills)
    if not kept:
        raise UserError(_nothing_left(_read_stats(spills)))
    write_index(scratch, spills)
    load = partial(load_partition, folder=scratch, device=device)
    # NVTabular transforms partition 0 once more to see the dtypes; every partition has the same ones.
    dataset = frame_dataset(load, plan.partitions, load(0).iloc[:0], cpu=device.on_cpu)

    with stage("encode", kept, "rows") as running:
        encoding, encoder = find_encoding(dataset, spills, plan.partitions, scratch, cluster, known)
        sampling = config.sampling
        statistics = ItemStatistics(encoder, ITEM, TIME) if sampling.needs_statistics else None
        split = LeaveOneOut(
            encoder, USER, ITEM, TIME, config.test_negatives, config.train_negatives, sampling, statistics
        )
        workflow = leave_one_out_workflow(encoder, split)
        workflow.fit(dataset)
        running.advance(kept)
    save_workflow(folder, encoding.originals, split)

    for name in ("train", "test"):
        (folder / name).mkdir()
    writer = Writer(folder, device, 1 + config.test_negatives, len(encoding.originals[ITEM]), config.train_negatives)
    tasks = [
        dask.delayed(writer)(part, index)
        for index, part in enumerate(workflow.transform(dataset).to_ddf().to_delayed())
    ]
    total = _Total(len(encoding.originals[ITEM]))

    def written(part: Written) -> None:
        total.add(part)
        running.advance(part.train_positives + part.test_series)

    with stage("split", kept, "rows") as running:
        cluster.collect(tasks, written)
    shutil.rmtree(scratch)
    stats = _stats(log, config, _read_stats(spills), total, encoding)
    if not total.train_positives:
        raise UserError(_nothing_left(stats))
    _spec(config, total, encoding).write(folder)
    if log.titles is not None:
        try:
            _write_titles(log.titles, folder / "titles.parquet")
        except UserError as err:  # titles are for people only
            console.print(f"no titles.parquet: {err}")
    write_json(folder / _STATS_NAME, stats)
    write_report(folder, stats, np.concatenate(total.user_counts), total.item_counts)
    return stats


def _spill(
    log: Log, config: PrepareConfig, plan: Plan, cluster: Cluster, scratch: Path, known: Encoding | None
) -> list[Spill]:
    """Partition the log on disk; the spills are in the order of the pieces."""
    tables = known_tables(known, scratch) if known is not None and not known.extend else None
    selection = Selection(columns=log.columns, min_rating=config.min_rating, strict=config.strict, known=tables)
    tasks = [
        dask.delayed(spill_piece)(piece, number, selection, plan.partitions, scratch)
        for number, piece in enumerate(log.pieces)
    ]
    spills: list[Spill] = []

    def spilled(spill: Spill) -> None:
        spills.append(spill)
        running.advance(spill.size_bytes)

    with stage("read", log.size_bytes, "bytes") as running:
        cluster.collect(tasks, spilled)
    return sorted(spills, key=lambda spill: spill.number)


class _Total:
    """What all partitions came to."""

    def __init__(self, n_items: int) -> None:
        self.counts = dict.fromkeys(_COUNTED, 0)
        self.files: dict[str, list[str]] = {"train": [], "test": []}
        self.user_counts: list[np.ndarray] = []
        self.item_counts = np.zeros(n_items, dtype=np.int64)

    def add(self, part: Written) -> None:
        for name in _COUNTED:
            self.counts[name] += getattr(part, name)
        for name, file in (("train", part.train_file), ("test", part.test_file)):
            self.files[name] += [file] if file else []
        self.user_counts.append(part.user_counts)
        self.item_counts += part.item_counts

    @property
    def train_positives(self) -> int:
        return self.counts["train_positives"]

    @property
    def interactions(self) -> int:
        return self.counts["train_positives"] + self.counts["test_series"]


_COUNTED = (
    "train_positives",
    "train_rows",
    "test_series",
    "users_with_one_interaction",
    "users_with_all_items",
    "series_with_repeated_negatives",
)


def _read_stats(spills: Sequence[Spill]) -> dict[str, int]:
    return {
        "rows_read": sum(spill.rows_read for spill in spills),
        "dropped_missing": sum(spill.missing for spill in spills),
        "dropped_below_min_rating": sum(spill.below_rating for spill in spills),
        "dropped_unknown": sum(spill.unknown for spill in spills),
    }


def _nothing_left(read: dict[str, Any]) -> str:
    return (
        f"nothing is left to train on of {read['rows_read']:,} rows: {read['dropped_missing']:,} lack a user, item or "
        f"time, {read['dropped_below_min_rating']:,} are rated below --min-rating, {read['dropped_unknown']:,} have "
        "ids that --workflow does not know"
    )


def _stats(log: Log, config: PrepareConfig, read: dict[str, int], total: _Total, encoding: Encoding) -> dict[str, Any]:
    dropped = sum(number for name, number in read.items() if name.startswith("dropped"))
    users = sum(len(counts) for counts in total.user_counts)
    return {
        "source": log.name,
        **read,
        "dropped_duplicates": read["rows_read"] - dropped - total.interactions,
        "interactions": total.interactions,
        "users": users,
        "items": int(np.count_nonzero(total.item_counts)),
        "new_users": encoding.added[USER],
        "new_items": encoding.added[ITEM],
        **total.counts,
        "density": total.interactions / (len(encoding.originals[USER]) * len(encoding.originals[ITEM])),
        "test_negatives": config.test_negatives,
        "train_negatives": config.train_negatives,
        "negatives": config.sampling.kind,
        "popularity_exponent": config.sampling.exponent if config.sampling.kind == "popularity" else None,
        "time_aware": config.sampling.time_aware,
        "seed": config.sampling.seed,
        "partitions": len(total.user_counts),
    }


def _spec(config: PrepareConfig, total: _Total, encoding: Encoding) -> FeatureSpec:
    features = ["user", "item", "label"]
    ids = {name: Feature(dtype="int32", cardinality=len(encoding.originals[name])) for name in ("user", "item")}
    return FeatureSpec(
        channel_spec={"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"]},
        feature_spec={**ids, "label": Feature(dtype="float32")},
        metadata=Metadata(
            test_samples_per_series=1 + config.test_negatives,
            train_negatives=config.train_negatives,
            time_ordered=True,
        ),
        source_spec={
            name: [Chunk(type="parquet", features=features, files=sorted(files))]
            for name, files in total.files.items()
            if files
        },
    )


def _write_titles(source: Path, target: Path) -> None:
    titles = read_titles(source)
    pq.write_table(pa.table({"item": list(titles), "title": list(titles.values())}), target)
