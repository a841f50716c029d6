"""Write the train and test rows of one partition, and count them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from array_api_compat import array_namespace
from array_api_compat import device as device_of

from preprocessing.fingerprint import rows_hash
from preprocessing.spec.reader import required
from workflows.device.frames import FrameDevice, to_host
from workflows.device.kernels import launch
from workflows.operators.leave_one_out import TEST
from workflows.sampling.interactions import run_lengths, run_starts

# Item ids barely compress.
_COMPRESSION = {"user": "snappy", "label": "snappy", "item": "none"}
_ROW_GROUP_ROWS = 1 << 20  # as pyarrow writes them


@dataclass(frozen=True, kw_only=True)
class Written:
    """Files and counts of one partition.

    Attributes:
        train_file, test_file: relative to the folder; None if there are no such rows.
        rows_hash: of train and test, see `fingerprint.rows_hash`.
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
    rows_hash: int
    user_counts: np.ndarray
    item_counts: np.ndarray


@dataclass(frozen=True)
class Writer:
    """Writes partitions into a prepared folder.

    Attributes:
        series: rows per test series.
        n_users, n_items: total numbers of users and items.
        train_negatives: negatives after each train positive.
        user_features: values by encoded user id, per side feature.
    """

    folder: Path
    device: FrameDevice
    series: int
    n_users: int
    n_items: int
    train_negatives: int
    user_features: dict[str, np.ndarray]

    def __call__(self, df: Any, index: int) -> Written:
        """Args: df: output rows of `LeaveOneOut` for one partition."""
        return self._from_host(df, index) if self.device.on_cpu else self._from_gpu(df, index)

    def _from_gpu(self, df: Any, index: int) -> Written:
        """Count and write without the rows leaving the GPU, except for the files' bytes."""
        users, items, labels, split = (df[name].values for name in ("user", "item", "label", "split"))
        xp = array_namespace(users)
        counts = xp.zeros(self.n_users + self.n_items + 2, dtype=xp.int64, device=device_of(users))
        sizes = (self.series, self.n_users, self.n_items)
        hashes = xp.empty(users.shape[0], dtype=xp.int64, device=device_of(users))
        launch("count_rows", users.shape[0], users.shape[0], users, items, labels, split, *sizes, counts, hashes)
        counts[-1] = xp.sum(hashes)
        of_users, of_items, (repeated, hashed) = np.split(to_host(counts), [self.n_users, self.n_users + self.n_items])
        trained, held_out = of_users & (2**32 - 1), of_users >> 32
        n_series = int(held_out.sum())
        n_train = users.shape[0] - n_series * self.series
        alone = (held_out == 0) & (trained == 1)
        columns = {name: df[name] for name in ("user", "item", "label")}
        for name, values in self.user_features.items():
            columns[name] = xp.take(xp.asarray(values, device=device_of(users)), users)
        rows = self.device.frames.DataFrame(columns)
        return Written(
            index=index,
            train_file=self._write_gpu(rows.iloc[:n_train], "train", index),
            test_file=self._write_gpu(rows.iloc[n_train:], "test", index),
            train_positives=int(trained.sum()),
            train_rows=n_train,
            test_series=n_series,
            users_with_one_interaction=int(alone.sum()),
            users_with_all_items=int(((held_out == 0) & (trained > 1)).sum()),
            series_with_repeated_negatives=int(repeated),
            rows_hash=int(hashed),
            user_counts=(trained + held_out)[of_users > 0],
            item_counts=of_items,
        )

    def _write_gpu(self, rows: Any, name: str, index: int) -> str | None:
        def write(partial: Path) -> None:
            rows.to_parquet(
                str(partial),
                compression="snappy",
                index=False,
                use_dictionary=False,
                skip_compression={"item"},
                row_group_size_rows=_ROW_GROUP_ROWS,
            )

        return self._file(len(rows), name, index, write)

    def _from_host(self, df: Any, index: int) -> Written:
        table = self.device.to_arrow(df)
        columns = [table.column(name).to_numpy() for name in ("user", "item", "label", "split")]
        n_train = int(np.searchsorted(columns[-1], TEST))
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
            rows_hash=rows_hash(*columns),
            series_with_repeated_negatives=int((series[:, 2:] == series[:, 1:-1]).any(axis=1).sum()),
            user_counts=counts + held_out,
            item_counts=np.bincount(items, minlength=self.n_items) + np.bincount(series[:, 0], minlength=self.n_items),
        )

    def _write(self, part: pa.Table, name: str, index: int) -> str | None:
        def write(partial: Path) -> None:
            pq.write_table(required(part), partial, use_dictionary=False, compression=_COMPRESSION)

        return self._file(part.num_rows, name, index, write)

    def _file(self, rows: int, name: str, index: int, write: Callable[[Path], None]) -> str | None:
        if not rows:
            return None
        file = f"{name}/part-{index:05d}.parquet"
        # A worker presumed dead may still write the same part: each writes its own file, and the last one wins.
        partial = self.folder / f"{file}.{os.getpid()}.partial"
        write(partial)
        partial.replace(self.folder / file)
        return file
