"""Raw log → prepared folder: partition once, fit and run the workflow, write Parquet and the spec."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.feature_spec import Chunk, Feature, FeatureSpec, Metadata
from preprocessing.partition import ITEM, TIME, USER, Spill, common_schema, load_partition, spill_piece
from preprocessing.sources.log import Log
from preprocessing.titles import read_titles
from workflows.cluster import ThreadCluster
from workflows.device import FrameDevice
from workflows.errors import UserError
from workflows.folders import read_json, write_json
from workflows.merlin import frame_dataset
from workflows.operators import TEST, EncodeIds, LeaveOneOut
from workflows.progress import console, stage
from workflows.state import leave_one_out_workflow, save_workflow

_STATS_NAME = "stats.json"
_PARTITION_BYTES = 8 << 20
_MIN_PARTITIONS, _MAX_PARTITIONS = 8, 1024


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """How a log becomes train and test; nothing about where it lies or which device does it."""

    min_rating: float | None = None  # interactions rated lower are left out
    test_negatives: int = 100  # of each test series
    train_negatives: int = 0  # written after each train positive
    seed: int = 1
    partitions: int | None = None  # None: by the size of the log

    def __post_init__(self) -> None:
        for name in ("test_negatives", "train_negatives", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name.replace('_', '-')} should be 0 or more, got {getattr(self, name)}")
        if self.partitions is not None and not 0 < self.partitions <= 1 << 16:
            raise UserError(f"--partitions should be 1 .. {1 << 16}, got {self.partitions}")


def is_prepared_folder(folder: Path) -> bool:
    """Whether a folder was written by `prepare`."""
    return {"rows_read", "test_negatives"} <= read_json(folder / _STATS_NAME).keys()


@dataclass(frozen=True)
class _PartStats:
    """What one partition came to, counted from its output."""

    users: int
    train_positives: int
    train_rows: int
    test_series: int
    users_with_one_interaction: int
    users_with_all_items: int
    series_with_repeated_negatives: int


def prepare(
    log: Log, config: PrepareConfig, device: FrameDevice, cluster: ThreadCluster, folder: Path
) -> dict[str, Any]:
    """Write a whole prepared folder.

    Args:
        folder: empty; the caller renames it into place.
    Returns:
        What `stats.json` holds.

    Raises:
        UserError: the log is not what it should be, or nothing is left of it.
    """
    scratch = folder / ".spill"
    scratch.mkdir()
    spills = _partition(log, config, cluster, scratch)
    schema = common_schema(spills)
    partitions = len(spills[0].offsets) - 1
    load = partial(load_partition, spills=spills, schema=schema, device=device)
    # NVTabular transforms partition 0 once more to see the dtypes; every partition has the same ones.
    meta = device.from_arrow(schema.empty_table())
    dataset = frame_dataset(load, partitions, meta, cpu=device.on_cpu)

    encoder = EncodeIds()
    split = LeaveOneOut(encoder, USER, ITEM, TIME, config.test_negatives, config.train_negatives, config.seed)
    workflow = leave_one_out_workflow(encoder, split)
    kept = sum(int(spill.offsets[-1]) for spill in spills)
    with stage("encode", kept, "rows") as running:
        workflow.fit(dataset)
        running.advance(kept)
    save_workflow(folder, encoder, split)
    n_items = len(encoder.categories[ITEM])

    for name in ("train", "test"):
        (folder / name).mkdir()

    def write(df: Any, index: int) -> _PartStats:
        result = _write_partition(df, index, folder, device, n_items, 1 + config.test_negatives)
        running.advance(result.train_positives + result.test_series)
        return result

    parts = workflow.transform(dataset).to_ddf().to_delayed()
    with stage("split", kept, "rows") as running:
        tasks = [dask.delayed(write)(part, index) for index, part in enumerate(parts)]
        results = [future.result() for future in cluster.compute(tasks)]
    shutil.rmtree(scratch)

    stats = _stats(log, config, spills, results, encoder)
    if not stats["train_positives"]:
        raise UserError(
            f"nothing is left to train on of {stats['rows_read']:,} rows: {stats['dropped_missing']:,} lack a user, "
            f"item or time, {stats['dropped_below_min_rating']:,} are rated below --min-rating"
        )
    _spec(folder, config, stats).write(folder)
    if log.titles is not None:
        try:
            _write_titles(log.titles, folder / "titles.parquet")
        except UserError as err:  # titles are for people only
            console.print(f"no titles.parquet: {err}")
    write_json(folder / _STATS_NAME, stats)
    return stats


def _partition(log: Log, config: PrepareConfig, cluster: ThreadCluster, scratch: Path) -> list[Spill]:
    size_bytes = log.size_bytes
    partitions = config.partitions or min(_MAX_PARTITIONS, max(_MIN_PARTITIONS, size_bytes // _PARTITION_BYTES))

    def spill(numbered: tuple[int, Any]) -> Spill:
        index, piece = numbered
        path = scratch / f"{index:05d}.arrow"
        result = spill_piece(piece, log.columns, config.min_rating, partitions, path)
        running.advance(piece.size_bytes)
        return result

    with stage("read", size_bytes, "bytes") as running:
        return cluster.map(spill, enumerate(log.pieces))


def _write_partition(df: Any, index: int, folder: Path, device: FrameDevice, n_items: int, series: int) -> _PartStats:
    """Write the train and test part of one partition (no file for rows that are not there)."""
    table = device.to_arrow(df)
    split = table.column("split").to_numpy()
    n_train = int(np.searchsorted(split, TEST))
    table = table.drop_columns("split")
    train, test = table.slice(0, n_train), table.slice(n_train)
    for name, part in (("train", train), ("test", test)):
        if part.num_rows:
            pq.write_table(part, folder / name / f"part-{index:05d}.parquet", use_dictionary=["label"])
    positives = train.column("user").to_numpy()[train.column("label").to_numpy() > 0]
    users, counts = np.unique(positives, return_counts=True)
    held_out = np.isin(users, test.column("user").to_numpy()[::series])
    alone = ~held_out & (counts == 1)
    unseen = n_items - counts - 1
    return _PartStats(
        users=len(users),
        train_positives=len(positives),
        train_rows=n_train,
        test_series=test.num_rows // series,
        users_with_one_interaction=int(alone.sum()),
        users_with_all_items=int((~held_out & ~alone).sum()),
        series_with_repeated_negatives=int((held_out & (unseen < series - 1)).sum()),
    )


def _stats(log: Log, config: PrepareConfig, spills: Sequence[Spill], parts: Sequence[_PartStats], encoder: EncodeIds):
    total = {name: sum(getattr(part, name) for part in parts) for name in asdict(parts[0])}
    read, missing, low = (sum(getattr(s, n) for s in spills) for n in ("rows_read", "missing", "below_rating"))
    interactions = total["train_positives"] + total["test_series"]
    n_items = len(encoder.categories[ITEM])
    return {
        "source": log.name,
        "rows_read": read,
        "dropped_missing": missing,
        "dropped_below_min_rating": low,
        "dropped_duplicates": read - missing - low - interactions,
        "interactions": interactions,
        "items": n_items,
        **total,
        "density": interactions / (total["users"] * n_items) if interactions else 0.0,
        "test_negatives": config.test_negatives,
        "train_negatives": config.train_negatives,
        "seed": config.seed,
        "partitions": len(parts),
    }


def _spec(folder: Path, config: PrepareConfig, stats: dict[str, Any]) -> FeatureSpec:
    features = ["user", "item", "label"]
    files = {name: sorted(f"{name}/{path.name}" for path in (folder / name).iterdir()) for name in ("train", "test")}
    ids = {"user": stats["users"], "item": stats["items"]}
    return FeatureSpec(
        channel_spec={"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"]},
        feature_spec={
            **{name: Feature(dtype="int32", cardinality=cardinality) for name, cardinality in ids.items()},
            "label": Feature(dtype="float32"),
        },
        metadata=Metadata(
            test_samples_per_series=1 + config.test_negatives,
            train_negatives=config.train_negatives,
            time_ordered=True,
        ),
        source_spec={
            name: [Chunk(type="parquet", features=features, files=parts)] for name, parts in files.items() if parts
        },
    )


def _write_titles(source: Path, target: Path) -> None:
    titles = read_titles(source)
    pq.write_table(pa.table({"item": list(titles), "title": list(titles.values())}), target)
