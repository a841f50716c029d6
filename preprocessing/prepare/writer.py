"""Write the train and test rows of one partition, and count them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from preprocessing.spec.reader import required
from workflows.device.frames import FrameDevice
from workflows.operators.leave_one_out import TEST
from workflows.sampling.interactions import run_lengths, run_starts

# Item ids barely compress.
_COMPRESSION = {"user": "snappy", "label": "snappy", "item": "none"}


@dataclass(frozen=True, kw_only=True)
class Written:
    """Files and counts of one partition.

    Attributes:
        train_file, test_file: relative to the folder; None if there are no such rows.
        user_counts: int64, interactions (train and held-out) of each user in the partition.
        item_counts: int64 [n_items], interactions of each item.
    """

    index: int
    train_file: str | None
    test_file: str | None
    train_positives: int
    train_rows: int
    test_series: int
    users_with_one_interaction: int
    users_with_all_items: int
    series_with_repeated_negatives: int
    user_counts: np.ndarray
    item_counts: np.ndarray


@dataclass(frozen=True)
class Writer:
    """Writes partitions into a prepared folder.

    Attributes:
        series: rows per test series.
        n_items: total number of items.
        train_negatives: negatives after each train positive.
        user_features: values by encoded user id, per side feature.
    """

    folder: Path
    device: FrameDevice
    series: int
    n_items: int
    train_negatives: int
    user_features: dict[str, np.ndarray]

    def __call__(self, df: Any, index: int) -> Written:
        """Args: df: output rows of `LeaveOneOut` for one partition."""
        table = self.device.to_arrow(df)
        n_train = int(np.searchsorted(table.column("split").to_numpy(), TEST))
        table = table.drop_columns("split")
        for name, values in self.user_features.items():
            table = table.append_column(name, pa.array(values[table.column("user").to_numpy()]))
        train, test = table.slice(0, n_train), table.slice(n_train)
        users, items = (train.column(name).to_numpy() for name in ("user", "item"))
        if self.train_negatives:
            positive = train.column("label").to_numpy() > 0
            users, items = users[positive], items[positive]
        starts = np.flatnonzero(run_starts(users))
        counts = run_lengths(starts, len(users))
        series = test.column("item").to_numpy().reshape(-1, self.series)
        held_out = np.zeros(len(counts), dtype=bool)
        held_out[np.searchsorted(users[starts], test.column("user").to_numpy()[:: self.series])] = True
        alone = ~held_out & (counts == 1)
        return Written(
            index=index,
            train_file=self._write(train, "train", index),
            test_file=self._write(test, "test", index),
            train_positives=len(users),
            train_rows=n_train,
            test_series=len(series),
            users_with_one_interaction=int(alone.sum()),
            users_with_all_items=int((~held_out & ~alone).sum()),
            series_with_repeated_negatives=int((series[:, 2:] == series[:, 1:-1]).any(axis=1).sum()),
            user_counts=counts + held_out,
            item_counts=np.bincount(items, minlength=self.n_items) + np.bincount(series[:, 0], minlength=self.n_items),
        )

    def _write(self, part: pa.Table, name: str, index: int) -> str | None:
        if not part.num_rows:
            return None
        file = f"{name}/part-{index:05d}.parquet"
        # A worker presumed dead may still write the same part: each writes its own file, and the last one wins.
        partial = self.folder / f"{file}.{os.getpid()}.partial"
        pq.write_table(required(part), partial, use_dictionary=False, compression=_COMPRESSION)
        partial.replace(self.folder / file)
        return file
