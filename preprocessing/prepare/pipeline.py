"""Raw log → prepared folder: partition once, fit and run the workflow, write Parquet and the spec."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.config import BY_DRAW, STATS_NAME, PrepareConfig
from preprocessing.fingerprint import FINGERPRINT, Fingerprint, encoding_hash, split_hash
from preprocessing.prepare.encoding import Encoding, check_kinds, find_encoding, missing_words
from preprocessing.prepare.memory import MAX_PARTITIONS, check_negatives, gpu_partitions, splits_of
from preprocessing.prepare.report import write_report
from preprocessing.prepare.resident import PartitionedLog
from preprocessing.prepare.row_filter import ITEM, TIME, USER
from preprocessing.prepare.user_features import UserFeatures
from preprocessing.prepare.writer import Writer, Written
from preprocessing.spec.feature_spec import Chunk, Feature, FeatureSpec, Metadata
from preprocessing.spec.titles import read_titles
from workflows.cluster import Cluster
from workflows.common.errors import UserError
from workflows.common.files import write_json
from workflows.common.progress import console, stage
from workflows.device.frames import FrameDevice
from workflows.merlin import Workflow, frame_dataset, merlin_client
from workflows.operators.item_statistics import ItemStatistics
from workflows.operators.leave_one_out import LeaveOneOut
from workflows.operators.saved import leave_one_out_workflow, save_workflow


def prepare(
    stored: PartitionedLog,
    config: PrepareConfig,
    device: FrameDevice,
    cluster: Cluster,
    folder: Path,
    known: Encoding | None = None,
    user_table: pa.Table | None = None,
) -> dict[str, Any]:
    """Write a complete prepared folder.

    Args:
        folder: a staging folder that the caller renames into place; all workers of a cluster must be able to access it.
        known: the encoding of another prepared folder, to reuse.
        user_table: side features of users (`id` and others), to write with each row.
    Returns:
        The content of `stats.json`.

    Raises:
        UserError: no rows are left of the log, or its ids and the known encoding differ in kind (text, integers).
    """
    if known is not None:
        check_kinds(known, stored)
    if not stored.rows:
        raise UserError(_nothing_left(_read_stats(stored)))
    with merlin_client(cluster.client):
        encoding, split, workflow, splits = _plan(stored, config, device, cluster, known)
        _note_missing_words(stored, encoding, known)
        side = None
        if user_table is not None:
            side = UserFeatures(user_table, encoding.originals[USER], device, folder, stored.folder)
        n_users, n_items = (len(encoding.originals[name]) for name in (USER, ITEM))
        series = 1 + config.test_negatives
        writer = Writer(folder, device, series, n_users, n_items, config.train_negatives, side.columns if side else {})
        total = _split(stored, config, workflow, writer, cluster, splits)
        save_workflow(folder, encoding.originals, split)
    stats = _stats(stored, config, total, encoding)
    if not total.counts["train_positives"]:
        raise UserError(_nothing_left(stats))
    _spec(config, total, encoding, side).write(folder)
    if stored.titles is not None:
        try:
            _write_titles(stored.titles, folder / "titles.parquet")
        except UserError as err:  # titles are only for display
            console.print(f"no titles.parquet: {err}")
    write_json(folder / STATS_NAME, stats)
    write_report(folder, stats, np.concatenate(total.user_counts), total.item_counts)
    return stats


def _plan(
    stored: PartitionedLog, config: PrepareConfig, device: FrameDevice, cluster: Cluster, known: Encoding | None
) -> tuple[Encoding, LeaveOneOut, Workflow, int]:
    """Returns (encoding, split operator, workflow to fit, parts to split each partition into)."""
    with stage("encode", stored.rows, "rows") as running:
        encoding, encoder = find_encoding(stored, _dataset(stored, 1, device), cluster, known)
        splits = 1
        users = min(stored.rows, len(encoding.originals[USER]))
        negatives = users * config.test_negatives + stored.rows * config.train_negatives
        if config.partitions is None:
            if device.on_cpu:
                limit = config.memory_limit_bytes
                splits = splits_of(stored.rows, negatives, stored.partitions, limit, cluster.workers)
            else:
                needed = gpu_partitions(stored.rows, negatives, device.free_bytes(), cluster.gpu_tasks)
                splits = -(-needed // stored.partitions)
        if device.on_cpu:
            check_negatives(negatives, stored.partitions * splits, stored.folder)
        sampling = config.sampling
        statistics = ItemStatistics(encoder, ITEM, TIME) if sampling.needs_statistics else None
        split = LeaveOneOut(
            encoder, USER, ITEM, TIME, config.test_negatives, config.train_negatives, sampling, statistics
        )
        running.advance(stored.rows)
    return encoding, split, leave_one_out_workflow(encoder, split), splits


def _note_missing_words(stored: PartitionedLog, encoding: Encoding, known: Encoding | None) -> None:
    for name, words in missing_words(encoding, known).items():
        if words:
            console.print(
                f"column {stored.names.by_role[name]!r}: {', '.join(map(repr, words))} taken as {name} ids; if they "
                "stand for missing values, leave these fields empty, and the rows are left out"
            )


def _split(
    stored: PartitionedLog, config: PrepareConfig, workflow: Workflow, writer: Writer, cluster: Cluster, splits: int
) -> _Total:
    """Fit and run the workflow and write its output; in smaller partitions if a GPU runs out of memory.

    Raises:
        UserError: a partition does not fit in the GPU's memory, and there can be no more of them.
    """
    while True:
        try:
            dataset = _dataset(stored, splits, writer.device)
            workflow.fit(dataset)
            return _write_rows(workflow.transform(dataset), writer, cluster, stored.rows)
        except MemoryError:
            if writer.device.on_cpu:
                raise
            partitions = stored.partitions * splits
            if config.partitions is not None or 2 * partitions > MAX_PARTITIONS:
                raise UserError(
                    f"one of {partitions:,} partitions does not fit in the GPU's memory; "
                    "choose more with --partitions, or run with --device cpu"
                ) from None
        splits *= 2
        console.print(f"a partition does not fit in the GPU's memory; splitting again, into {2 * partitions:,}")


def _dataset(stored: PartitionedLog, splits: int, device: FrameDevice) -> Any:
    """A Merlin dataset of the partitions, each split further."""
    load = stored.loader(device, splits)
    return frame_dataset(load, stored.partitions * splits, load(0).iloc[:0], cpu=device.on_cpu)


def _write_rows(transformed: Any, writer: Writer, cluster: Cluster, rows: int) -> _Total:
    """Run the workflow and write its output."""
    for name in ("train", "test"):
        shutil.rmtree(writer.folder / name, ignore_errors=True)  # of an attempt with larger partitions
        (writer.folder / name).mkdir()
    tasks = [dask.delayed(writer)(part, index) for index, part in enumerate(transformed.to_ddf().to_delayed())]
    total = _Total(writer.n_items)

    def written(part: Written) -> None:
        total.add(part)
        running.advance(part.train_positives + part.test_series)

    with stage("split", rows, "rows") as running:
        cluster.collect(tasks, written)
    for left in writer.folder.glob("t*/*.partial"):  # left by a worker that died
        left.unlink(missing_ok=True)
    return total


class _Total:
    """Totals over all partitions."""

    def __init__(self, n_items: int) -> None:
        self.counts = dict.fromkeys(_COUNTED, 0)
        self.files: dict[str, list[str]] = {"train": [], "test": []}
        self.user_counts: list[np.ndarray] = []
        self.item_counts = np.zeros(n_items, dtype=np.int64)
        self.rows_hash = 0

    def add(self, part: Written) -> None:
        for name in _COUNTED:
            self.counts[name] += getattr(part, name)
        for name, file in (("train", part.train_file), ("test", part.test_file)):
            self.files[name] += [file] if file else []
        self.user_counts.append(part.user_counts)
        self.item_counts += part.item_counts
        self.rows_hash += part.rows_hash

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


def _fingerprint(encoding: Encoding, config: PrepareConfig, total: _Total) -> Fingerprint:
    rows = {
        "train": total.counts["train_rows"],
        "test": total.counts["test_series"] * (1 + config.test_negatives),
    }
    return Fingerprint(encoding_hash(encoding.originals), split_hash(rows, total.rows_hash))


def _read_stats(stored: PartitionedLog) -> dict[str, int]:
    counts = stored.counts
    return {
        "rows_read": counts.rows_read,
        "rows_read_on_gpu": counts.on_gpu,
        "dropped_missing": counts.missing,
        "dropped_below_min_rating": counts.below_rating,
        "dropped_unknown": counts.unknown,
    }


def _nothing_left(read: dict[str, Any]) -> str:
    return (
        f"no rows are left to train on: of {read['rows_read']:,} rows, {read['dropped_missing']:,} lack a user, item "
        f"or time, {read['dropped_below_min_rating']:,} are rated below --min-rating, {read['dropped_unknown']:,} have "
        "ids that --workflow does not know"
    )


def _stats(stored: PartitionedLog, config: PrepareConfig, total: _Total, encoding: Encoding) -> dict[str, Any]:
    read = _read_stats(stored)
    dropped = sum(number for name, number in read.items() if name.startswith("dropped"))
    users = sum(len(counts) for counts in total.user_counts)
    return {
        "source": stored.source,
        **read,
        "dropped_duplicates": read["rows_read"] - dropped - total.interactions,
        "interactions": total.interactions,
        "users": users,
        "items": int(np.count_nonzero(total.item_counts)),
        "new_users": encoding.added[USER],
        "new_items": encoding.added[ITEM],
        **total.counts,
        "density": total.interactions / (len(encoding.originals[USER]) * len(encoding.originals[ITEM])),
        "order": config.order,
        "test_negatives": config.test_negatives,
        "train_negatives": config.train_negatives,
        "negatives": config.sampling.kind,
        "popularity_exponent": config.sampling.exponent if config.sampling.kind == "popularity" else None,
        "time_aware": config.sampling.time_aware,
        "seed": config.sampling.seed,
        "partitions": len(total.user_counts),
        FINGERPRINT: asdict(_fingerprint(encoding, config, total)),
    }


def _spec(config: PrepareConfig, total: _Total, encoding: Encoding, side: UserFeatures | None) -> FeatureSpec:
    ids = {name: Feature(dtype="int32", cardinality=len(encoding.originals[name])) for name in ("user", "item")}
    features = {**ids, "label": Feature(dtype="float32"), **(side.features if side else {})}
    channels = {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"], **(side.channels if side else {})}
    return FeatureSpec(
        channel_spec=channels,
        feature_spec=features,
        metadata=Metadata(
            test_samples_per_series=1 + config.test_negatives,
            train_negatives=config.train_negatives,
            time_ordered=config.order != BY_DRAW,
        ),
        source_spec={
            name: [Chunk(type="parquet", features=list(features), files=sorted(files))]
            for name, files in total.files.items()
            if files
        },
    )


def _write_titles(source: Path, target: Path) -> None:
    titles = read_titles(source)
    pq.write_table(pa.table({"item": list(titles), "title": list(titles.values())}), target)
