"""A log whose rows stay in the memory of a GPU from reading to writing, and the choice between that and spilling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
from array_api_compat import array_namespace

from preprocessing.config import BY_FILE
from preprocessing.prepare.gpu_rows import KeptRows, read_rows
from preprocessing.prepare.memory import fits_gpu
from preprocessing.prepare.partition import SpilledLog, grouped, narrow, spill_log
from preprocessing.prepare.row_filter import COLUMNS, TIME, USER, ReadCounts, Selection
from preprocessing.prepare.text_ids import KEY, TEXT, bucket_of, distinct_texts
from preprocessing.sources.log import Log, LogColumns, Piece
from workflows.cluster import Cluster, ThreadCluster
from workflows.common.errors import UserError
from workflows.common.progress import console, stage
from workflows.device.frames import FrameDevice, host_integers, to_host

Array = Any  # of CuPy


@dataclass(frozen=True)
class ResidentLog:
    """A log in the memory of a GPU, partitioned by user like a `SpilledLog`.

    Attributes:
        source, titles, names: name, titles file and column names of the log.
        folder: for small files that other steps share.
        partitions: number of partitions.
        columns: `user`, `item` and `time`, int32 or int64 [N], grouped by partition; the keys of text ids.
        offsets: int64 [P + 1]; partition p is rows offsets[p] : offsets[p + 1].
        texts: dataframe of `key` and `text` of each text column, distinct and sorted by text.
        counts: rows read and dropped.
    """

    source: str
    titles: Path | None
    names: LogColumns
    folder: Path
    partitions: int
    columns: dict[str, Array]
    offsets: np.ndarray
    texts: dict[str, Any]
    counts: ReadCounts
    device: FrameDevice

    @property
    def rows(self) -> int:
        """Rows kept."""
        return int(self.offsets[-1])

    @property
    def text(self) -> frozenset[str]:
        """The id columns that hold text."""
        return frozenset(self.texts)

    def distinct(self, name: str, cluster: Cluster) -> pa.Array:
        """The distinct ids of a column, sorted (host sync: they are written with the output).

        Raises:
            UserError: two texts have the same key.
        """
        if name in self.texts:
            xp, keys = array_namespace(self.columns[name]), self.texts[name][KEY].values
            keys = xp.sort(keys)
            if host_integers(xp.sum(xp.astype(keys[1:] == keys[:-1], xp.int64)))[0]:
                distinct_texts(self.device.to_arrow(self.texts[name]))  # raises
            ids = self.device.to_arrow(self.texts[name][[TEXT]]).column(TEXT)
            return ids.cast(pa.large_string()).combine_chunks()
        return pa.array(to_host(array_namespace(self.columns[name]).unique_values(self.columns[name])))

    def loader(self, device: FrameDevice, splits: int) -> Callable[[int], Any]:
        """See `SpilledLog.loader`."""
        return partial(self._load, splits=splits)

    def _load(self, partition: int, splits: int) -> Any:
        part = slice(int(self.offsets[partition // splits]), int(self.offsets[partition // splits + 1]))
        columns = {name: values[part] for name, values in self.columns.items()}
        if splits > 1:
            xp = array_namespace(columns[USER])
            own = xp.nonzero(bucket_of(columns[USER], splits * self.partitions) == partition)[0]
            columns = {name: xp.take(values, own) for name, values in columns.items()}
        return self.device.from_columns(columns)


PartitionedLog = SpilledLog | ResidentLog


def partition_log(
    log: Log, selection: Selection, partitions: int, cluster: Cluster, folder: Path, device: FrameDevice
) -> PartitionedLog:
    """Read a log once and gather each user's rows: in the memory of a GPU if they fit, otherwise in files.

    Raises:
        UserError: the log is malformed, or a piece of it does not fit in the GPU's memory.
    """
    here = not device.on_cpu and isinstance(cluster, ThreadCluster)  # other processes cannot share device memory
    if here and fits_gpu(log.rows_estimate, device.free_bytes()):
        try:
            return read_resident(log, selection, partitions, cluster, folder, device)
        except MemoryError:
            console.print(
                "the log does not fit in the GPU's memory; reading it again, through files in the output folder"
            )
    try:
        return spill_log(log, selection, partitions, cluster, folder, device)
    except MemoryError:
        if device.on_cpu:
            raise
        raise UserError("a piece of the log does not fit in the GPU's memory; run with --device cpu") from None


def read_resident(
    log: Log, selection: Selection, partitions: int, cluster: Cluster, folder: Path, device: FrameDevice
) -> ResidentLog:
    """Read a log into the memory of a GPU.

    Raises:
        UserError: the log is malformed.
        MemoryError: it does not fit.
    """
    tasks = [dask.delayed(_read)(piece, number, selection, device) for number, piece in enumerate(log.pieces)]
    by_piece: dict[int, list[KeptRows]] = {}

    def read(found: tuple[int, list[KeptRows]]) -> None:
        by_piece[found[0]] = found[1]
        running.advance(sum(part.counts.rows_read for part in found[1]))

    with stage("read", log.rows_estimate, "rows") as running:
        cluster.collect(tasks, read)
    parts = [part for number in range(len(log.pieces)) for part in by_piece.pop(number)]
    if selection.order == BY_FILE:
        rows_before = 0
        for part in parts:
            part.columns[TIME] = part.columns[TIME] + rows_before
            rows_before += part.counts.rows_read
    counts = ReadCounts.total(part.counts for part in parts)
    texts = {name: _distinct([part.texts[name] for part in parts], device) for name in parts[0].texts}
    xp = array_namespace(parts[0].columns[USER])
    columns = {}
    for name in COLUMNS:
        whole = xp.concat([part.columns.pop(name) for part in parts])  # popped: each column is freed once it is joined
        columns[name] = narrow(whole)
    columns, offsets = grouped(columns, partitions)
    source = (log.name, log.titles, log.columns)
    return ResidentLog(*source, folder, partitions, columns, to_host(offsets), texts, counts, device)


def _read(piece: Piece, number: int, selection: Selection, device: FrameDevice) -> tuple[int, list[KeptRows]]:
    return number, list(read_rows(piece, selection, device))


def _distinct(parts: list[Any], device: FrameDevice) -> Any:
    """The distinct pairs of key and text of all parts, sorted by code point."""
    frame = device.frames.concat(parts, ignore_index=True).drop_duplicates(ignore_index=True)
    return frame.sort_values(TEXT, ignore_index=True)  # by UTF-8 bytes, which sort by code point
