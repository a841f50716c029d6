"""A prepared folder opened for training: its rows stream through the Merlin Loader as torch tensors."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from model.data.partitions import FilePartitions, Partitions, TablePartitions
from preprocessing.spec.consistency import whole_rows
from preprocessing.spec.feature_columns import FeatureColumns
from preprocessing.spec.feature_spec import FeatureSpec, chunk_files
from preprocessing.spec.reader import read_mapping
from workflows.common.errors import UserError
from workflows.device.frames import FrameDevice
from workflows.device.torch_device import frames_beside, to_device
from workflows.merlin import frame_dataset, loader_class


@dataclass(frozen=True)
class Rows:
    """Some columns of a Merlin dataset's rows; nothing is read before `stream`.

    Attributes:
        columns: roles and cardinalities.
        names: the streamed columns, in order.
    """

    columns: FeatureColumns
    names: tuple[str, ...]
    source: Partitions = field(repr=False)
    frames: FrameDevice = field(repr=False)

    def only(self, names: Sequence[str]) -> Rows:
        """The same rows with only the given columns, in that order."""
        return Rows(self.columns, tuple(names), self.source, self.frames)

    def stream(
        self, rows: int, device: torch.device, order: Sequence[int] | None = None
    ) -> Generator[list[Tensor], None, None]:
        """The rows in blocks of `rows` (the last one shorter), one tensor per column.

        Args:
            order: the partitions in reading order; None: their own order.
        Yields:
            int32 ids and float32 numbers on `device`, shape [rows].

        Raises:
            UserError: an id is outside its cardinality, a label outside [0, 1], or a number is not finite.
        """
        # Load about one block of parts at once: part by part, the loader would copy the partial block each time.
        parts = max(1, rows // max(self.source.part_rows))
        self.frames.use()  # this thread slices what the Loader's thread has read
        with loader_class()(
            self.dataset, batch_size=rows, shuffle=False, parts_per_chunk=parts, device=self.frames.index
        ) as loader:
            if order is not None:
                loader.indices = np.asarray(order)
            for columns, _ in loader:
                block = [to_device(columns[name].reshape(-1), device) for name in self.names]
                bounds = torch.stack([bound.double() for values in block for bound in torch.aminmax(values)])
                for name, (low, high) in zip(self.names, bounds.view(-1, 2).tolist(), strict=True):  # host sync: once
                    _check_range(self.columns, name, low, high)
                yield block
        self.frames.trim()

    def whole_users(
        self, rows: int, device: torch.device, order: Sequence[int] | None = None
    ) -> Generator[list[Tensor], None, None]:
        """As `stream`, in blocks of about `rows` that never split a user; the first column should be the user's."""
        held: list[Tensor] | None = None  # a block's last user may continue in the next one
        with closing(self.stream(rows, device, order)) as blocks:
            for block in blocks:
                if held is not None:
                    block = [torch.cat(pair) for pair in zip(held, block, strict=True)]
                whole = whole_rows(block[0])  # host sync: once per block
                if whole:
                    yield [column[:whole] for column in block]
                held = [column[whole:] for column in block]
        if held is not None:
            yield held

    def between(self, start: int, stop: int, rows: int, device: torch.device) -> Generator[list[Tensor], None, None]:
        """Rows start … stop - 1 as `stream` yields them, in blocks of `rows` from `start` on; other parts are not
        read."""
        ends = np.cumsum(self.source.part_rows)
        first, last = np.searchsorted(ends, [start, stop - 1], side="right").tolist()
        skipped, left, held = start - int(ends[first] - self.source.part_rows[first]), stop - start, None
        with closing(self.stream(rows, device, range(first, last + 1))) as blocks:
            for block in blocks:
                here = min(skipped, len(block[0]))
                block, skipped = [column[here:] for column in block], skipped - here
                held = block if held is None else [torch.cat(pair) for pair in zip(held, block, strict=True)]
                while len(held[0]) >= min(rows, left) > 0:
                    size = min(rows, left)
                    yield [column[:size] for column in held]
                    held, left = [column[size:] for column in held], left - size

    def on_host(self, names: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
        """Some columns, one partition after the other; raises as `stream`."""
        for index in range(self.n_partitions):
            table = self.source.load(index, names)
            block = {name: table.column(name).to_numpy() for name in names}
            for name, values in block.items():
                _check_range(self.columns, name, values.min(), values.max())
            yield block

    @cached_property
    def dataset(self) -> Any:
        """The rows as a Merlin dataset whose partitions are the parts of the source."""
        meta = self.frames.from_arrow(self.columns.schema(self.names).empty_table())
        load = _Load(self.source, self.names, self.frames)
        return frame_dataset(load, self.source.n_parts, meta, self.frames.on_cpu)

    @property
    def n_rows(self) -> int:
        return self.source.n_rows

    @property
    def n_partitions(self) -> int:
        return self.source.n_parts


@dataclass(frozen=True, eq=False, repr=False)
class _Load:
    """Reads a partition as a dataframe."""

    source: Partitions
    names: tuple[str, ...]
    frames: FrameDevice

    def __call__(self, index: int) -> Any:
        self.frames.use()
        return self.source.frame(index, self.names, self.frames)

    def __dask_tokenize__(self) -> tuple[int, tuple[str, ...]]:
        """Unique during its lifetime; Dask would otherwise pickle a whole in-memory table."""
        return id(self.source), self.names


def _check_range(columns: FeatureColumns, name: str, low: Any, high: Any) -> None:
    """Raise UserError for an id outside its cardinality, a label outside [0, 1] or a non-finite number."""
    valid = columns.valid_range(name)
    wrong = [bound for bound in (float(low), float(high)) if not valid.contains(bound)]  # host sync: once per block
    if wrong:
        raise UserError(f"feature {name!r} holds {wrong[0]:.10g}, expected {valid.expected}; {valid.remedy}")


def open_train(folder: Path, spec: FeatureSpec, device: torch.device, columns: FeatureColumns | None = None) -> Rows:
    """Open the train rows, (user, item, label) and all side features, with each user's rows consecutive.

    A folder that does not guarantee that order (`metadata.time_ordered`) is read into memory and sorted.

    Args:
        columns: feature roles; None to derive them from the spec.

    Raises:
        UserError: a file is missing or does not match the spec, or there are no rows.
    """
    columns = columns or FeatureColumns.from_spec(spec)
    names = (columns.user, columns.item, columns.label, *(feature.name for feature in columns.side))
    return open_mapping(folder, spec, "train", columns, names, device)


def open_mapping(
    folder: Path, spec: FeatureSpec, mapping: str, columns: FeatureColumns, names: tuple[str, ...], device: torch.device
) -> Rows:
    """Open some columns of a mapping; train is sorted by user unless its order is guaranteed.

    Raises:
        UserError: as `open_train`.
    """
    frames = frames_beside(device)
    chunks = spec.chunks(mapping)
    promised = mapping != "train" or spec.metadata.time_ordered
    source: Partitions
    if promised and len(chunks) == 1 and chunks[0].type == "parquet":
        source = FilePartitions.open(columns, chunk_files(folder, chunks[0]), names)
    else:
        table = columns.cast(read_mapping(folder, spec, mapping, names), str(folder))
        if mapping == "train":
            table = table.take(pa.array(np.argsort(table.column(columns.user).to_numpy(), kind="stable")))
        source = TablePartitions.from_table(columns, table)
    if not source.n_rows:
        raise UserError(f"{folder}: {mapping} has no rows")
    return Rows(columns, names, source, frames)
