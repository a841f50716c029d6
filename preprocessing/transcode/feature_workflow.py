"""The NVTabular workflow for transcoding: encode text as ids, scale numbers to mean 0 and standard deviation 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import feather

from preprocessing.spec.values import Kind
from workflows.common.errors import UserError
from workflows.common.files import write_json
from workflows.device.frames import FrameDevice
from workflows.merlin import Normalize, Workflow, frame_dataset
from workflows.operators.encode import EncodeIds
from workflows.operators.saved import write_categories

_FORMAT = 1


@dataclass(frozen=True)
class Part:
    """Consecutive rows of a mapping, spilled to an Arrow file with `part_schema`."""

    path: Path
    rows: int


def part_schema(kinds: Mapping[str, Kind]) -> pa.Schema:
    """The columns of a part."""
    types = {"id": pa.int32(), "text": pa.large_string(), "number": pa.float64(), "label": pa.float32()}
    return pa.schema([(name, types[kind]) for name, kind in kinds.items()])


class FeatureWorkflow:
    """Encodes text by its sorted distinct values in all mappings and normalises numbers by train statistics.

    Ids and labels pass through unchanged.

    Attributes:
        encoder: the fitted operator; its `categories` are the text values in id order.
    """

    def __init__(self, kinds: Mapping[str, Kind], ranges: Mapping[str, tuple[float, float]], device: FrameDevice):
        """
        Args:
            kinds: kind of each column.
            ranges: minimum and maximum of each number in train.
        """
        self._kinds, self._device = dict(kinds), device
        self._texts = [name for name, kind in kinds.items() if kind == "text"]
        self._numbers = [name for name, kind in kinds.items() if kind == "number"]
        # Normalize computes the variance as mean of squares - square of mean, which loses all precision for values far
        # from 0 (years, house prices) and is nonzero for a constant; so values are first centred on their range.
        self._middle = {name: low / 2 + high / 2 for name, (low, high) in ranges.items()}
        self._varies = {name: float(low < high) for name, (low, high) in ranges.items()}
        self.encoder = EncodeIds()
        self._normalize = Normalize(np.float32)

    def fit(self, train: Sequence[Part], everything: Sequence[Part]) -> None:
        if self._texts:
            Workflow(self._texts >> self.encoder).fit(self._dataset(everything))
        if self._numbers:
            Workflow(self._numbers >> self._normalize).fit(self._dataset(train))

    def transform(self, parts: Sequence[Part]) -> list[Any]:
        """Delayed dataframes of the transformed parts, in order: int32 ids, float32 numbers and labels."""
        dataset = self._dataset(parts)
        branches = [self._texts >> self.encoder] * bool(self._texts)
        branches += [self._numbers >> self._normalize] * bool(self._numbers)
        if branches:
            rest = [name for name in self._kinds if name not in self._texts + self._numbers]
            workflow = Workflow(reduce(add, [*branches, rest]))
            dataset = workflow.fit_schema(dataset.schema).transform(dataset)
        return dataset.to_ddf().to_delayed()

    def save(self, folder: Path) -> None:
        """Write `categories/<feature>.parquet` (id, original) and `workflow/normalize.json` (mean, std)."""
        for name, originals in self.encoder.categories.items():
            save_categories(folder, name, originals)
        if self._numbers:
            (folder / "workflow").mkdir(exist_ok=True)
            write_json(folder / "workflow" / "normalize.json", {"format": _FORMAT, "features": self.moments})

    @property
    def moments(self) -> dict[str, dict[str, float]]:
        """Train mean and standard deviation of each number; std 0 means constant, which is normalised to 0."""
        spread = {name: self._varies[name] and self._normalize.stds[name] for name in self._numbers}
        return {
            name: {"mean": self._middle[name] + self._normalize.means[name], "std": spread[name]}
            for name in self._numbers
        }

    def _dataset(self, parts: Sequence[Part]) -> Any:
        meta = self._device.from_arrow(part_schema(self._kinds).empty_table())

        def load(index: int) -> Any:
            df = self._device.from_arrow(feather.read_table(parts[index].path, memory_map=True))
            return df.assign(**{n: (df[n] - self._middle[n]) * self._varies[n] for n in self._numbers})

        return frame_dataset(load, len(parts), meta, self._device.on_cpu)


def save_categories(folder: Path, name: str, originals: pd.Series) -> None:
    """Write the original value of each id of a feature.

    Raises:
        UserError: the feature's name is not a valid file name.
    """
    if not is_file_name(name):
        raise UserError(f"feature {name!r} cannot be the name of a file in categories/; rename it in the feature spec")
    write_categories(folder, name, originals)


def is_file_name(name: str) -> bool:
    """Whether a name denotes a file directly inside a folder."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name
