"""Writers for transcoding: Parquet parts, or the tensors that NVIDIA's own scripts load."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.spec.feature_spec import Chunk, FeatureSpec
from preprocessing.spec.features import FeatureRoles
from preprocessing.spec.reader import required, save_tensor
from preprocessing.spec.values import Kind
from workflows.cluster import ThreadCluster
from workflows.device.frames import FrameDevice

_SCRATCH = ".tensors"


@dataclass(frozen=True)
class Target:
    """Destination of the rows, and what writes them.

    Attributes:
        folder: the new folder.
        kinds: kind of each feature, in column order.
        roles: role of each feature in the network.
        advance: called in this thread with the row count of each part written.
    """

    folder: Path
    kinds: Mapping[str, Kind]
    roles: FeatureRoles
    device: FrameDevice
    cluster: ThreadCluster
    advance: Callable[[int], None]

    def is_id(self, name: str) -> bool:
        return self.kinds[name] in ("id", "text")

    def each(self, write: Callable[[int, pa.Table], None], frames: Sequence[Any]) -> None:
        """Call `write(index, rows)` for each frame, one task per frame."""

        def task(index: int, df: Any) -> int:
            table = self.device.to_arrow(df)
            write(index, table)
            return table.num_rows

        self.cluster.collect([dask.delayed(task)(index, df) for index, df in enumerate(frames)], self.advance)


def write_parquet(target: Target, mapping: str, frames: Sequence[Any], rows: Sequence[int]) -> list[Chunk]:
    """Write a mapping as one chunk of Parquet parts: int32 ids, float32 numbers and labels.

    Args:
        frames: delayed dataframes, in order.
        rows: row count of each dataframe.
    """
    schema = pa.schema([(name, pa.int32() if target.is_id(name) else pa.float32()) for name in target.kinds])
    files = [f"{mapping}/part-{index:05d}.parquet" for index in range(len(rows))]
    (target.folder / mapping).mkdir()

    def write(index: int, table: pa.Table) -> None:
        table = required(table.select(schema.names).cast(schema))
        pq.write_table(table, target.folder / files[index], use_dictionary=False)

    target.each(write, frames)
    return [Chunk(type="parquet", features=schema.names, files=files)]


def write_tensors(target: Target, mapping: str, frames: Sequence[Any], rows: Sequence[int]) -> list[Chunk]:
    """Write a mapping as NVIDIA's `transcode.py` does: int64 [N, 2] users and items, float32 [N, 1] labels.

    Any side features follow: int64 [N, C] ids, float32 [N, M] numbers. Takes the same arguments as `write_parquet`.
    The matrices are filled on disk, so they need not fit in memory.
    """
    roles = target.roles
    side = [name for name in target.kinds if name not in (roles.user, roles.item, roles.label)]
    ids = [name for name in side if target.is_id(name)]
    numbers = [name for name in side if not target.is_id(name)]
    columns = [names for names in ([roles.user, roles.item], [roles.label], ids, numbers) if names]
    chunks = [
        Chunk(type="torch_tensor", features=names, files=[f"{mapping}_data_{index}.pt"])
        for index, names in enumerate(columns)
    ]
    scratch = target.folder / _SCRATCH
    scratch.mkdir()
    offsets = np.cumsum([0, *rows])
    shapes = [(int(offsets[-1]), len(chunk.features)) for chunk in chunks]
    dtypes = [np.int64 if target.is_id(chunk.features[0]) else np.float32 for chunk in chunks]
    matrices = [
        _matrix_on_disk(scratch / chunk.files[0], shape, dtype)
        for chunk, shape, dtype in zip(chunks, shapes, dtypes, strict=True)
    ]

    def write(index: int, table: pa.Table) -> None:
        for chunk, matrix in zip(chunks, matrices, strict=True):
            for column, name in enumerate(chunk.features):
                matrix[offsets[index] : offsets[index + 1], column] = table.column(name).to_numpy()

    target.each(write, frames)
    for chunk, matrix in zip(chunks, matrices, strict=True):
        save_tensor(target.folder / chunk.files[0], matrix)
        (scratch / chunk.files[0]).unlink()
    scratch.rmdir()
    return chunks


def _matrix_on_disk(path: Path, shape: tuple[int, int], dtype: type[np.generic]) -> np.ndarray:
    """A matrix in a file. Its space is reserved: without, a full disk would end the process by SIGBUS."""
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    with path.open("wb") as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):  # not on macOS
            os.posix_fallocate(file.fileno(), 0, size)
    return np.memmap(path, dtype=dtype, mode="r+", shape=shape)


def parquet_spec(spec: FeatureSpec, target: Target, chunks: dict[str, list[Chunk]]) -> FeatureSpec:
    """The spec of a Parquet folder.

    Args:
        spec: the source's spec, with all cardinalities.
    """
    return _emitted_spec(spec, target, chunks, "int32", "float32")


def tensor_spec(spec: FeatureSpec, target: Target, chunks: dict[str, list[Chunk]]) -> FeatureSpec:
    """The spec of a tensor folder, with the channels NVIDIA's scripts need. Arguments as for `parquet_spec`."""
    roles = target.roles
    channels = {"user_ch": [roles.user], "item_ch": [roles.item], "label_ch": [roles.label]}
    spec = spec.model_copy(update={"channel_spec": spec.channel_spec | channels})
    return _emitted_spec(spec, target, chunks, "torch.int64", "torch.float32")


def _emitted_spec(spec: FeatureSpec, target: Target, chunks: dict[str, list[Chunk]], ids: str, numbers: str):
    features = {
        name: spec.feature_spec[name].model_copy(update={"dtype": ids if target.is_id(name) else numbers})
        for name in target.kinds
    }
    return spec.model_copy(update={"feature_spec": features, "source_spec": chunks})
