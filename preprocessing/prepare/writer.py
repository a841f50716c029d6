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

from preprocessing.spec.reader import required
from workflows.device.frames import FrameDevice, host_integers, to_host
from workflows.operators.leave_one_out import TEST, TRAIN
from workflows.sampling.interactions import count, run_lengths, run_starts

Array = Any  # of NumPy or CuPy

# Item ids barely compress.
_COMPRESSION = {"user": "snappy", "label": "snappy", "item": "none"}
_ROW_GROUP_ROWS = 1 << 20  # as pyarrow writes them


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
        return self._from_host(df, index) if self.device.on_cpu else self._from_gpu(df, index)

    def _from_gpu(self, df: Any, index: int) -> Written:
        """Count and write without the rows leaving the GPU, except for the files' bytes."""
        users, items, labels, split = (df[name].values for name in ("user", "item", "label", "split"))
        xp = array_namespace(users)
        ones = xp.sum(xp.astype(split == TRAIN, xp.int64))
        starts = xp.astype(run_starts(users) & (split == TRAIN), xp.int64)
        n_train, n_users = host_integers(ones, xp.sum(starts))
        n_series = (users.shape[0] - n_train) // self.series
        counted = partition_counts(users, items, labels, starts, n_train, n_users, self.series, self.n_items)
        counts = to_host(counted)
        alone, seen_all, repeated, positives = counts[:4].tolist()
        columns = {name: df[name] for name in ("user", "item", "label")}
        for name, values in self.user_features.items():
            columns[name] = xp.take(xp.asarray(values, device=device_of(users)), users)
        rows = self.device.frames.DataFrame(columns)
        return Written(
            index=index,
            train_file=self._write_gpu(rows.iloc[:n_train], "train", index),
            test_file=self._write_gpu(rows.iloc[n_train:], "test", index),
            train_positives=positives,
            train_rows=n_train,
            test_series=n_series,
            users_with_one_interaction=alone,
            users_with_all_items=seen_all,
            series_with_repeated_negatives=repeated,
            user_counts=counts[4 : 4 + n_users],
            item_counts=counts[4 + n_users :],
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


def partition_counts(
    users: Array,
    items: Array,
    labels: Array,
    starts: Array,
    n_train: int,
    n_users: int,
    series: int,
    n_items: int,
) -> Array:
    """The counts of a partition in one array, so that a GPU is waited for once.

    Args:
        users, items, labels: [N], output rows of `LeaveOneOut`, of which the first `n_train` are train rows.
        starts: int64 [N], 1 at the first train row of each of the `n_users` users.
    Returns:
        int64 [4 + n_users + n_items]: users with one interaction, users with all items, series with repeated
        negatives, train positives; interactions of each user; interactions of each item.
    """
    xp = array_namespace(users)
    zero = xp.zeros(1, dtype=xp.int64, device=device_of(users))
    positive = xp.astype(labels[:n_train] > 0, xp.int64)
    before = xp.concat([zero, xp.cumulative_sum(positive)])  # train positives before each row
    firsts = xp.searchsorted(xp.cumulative_sum(starts), count(n_users, users) + 1, side="left")
    edges = xp.concat([firsts, zero + n_train])
    counts = xp.take(before, edges[1:]) - xp.take(before, edges[:-1])
    tested = xp.reshape(items[n_train:], (-1, series))
    test_users = users[n_train::series]
    own = xp.take(users, firsts)
    held_out = xp.searchsorted(test_users, own, side="right") - xp.searchsorted(test_users, own, side="left")
    alone = (held_out == 0) & (counts == 1)
    seen_all = (held_out == 0) & (counts != 1)
    repeated = xp.any(tested[:, min(2, series) :] == tested[:, 1 : max(1, series - 1)], axis=1)
    # Negatives count as an item past the last one.
    trained = xp.where(labels[:n_train] > 0, xp.astype(items[:n_train], xp.int64), n_items)
    interacted = xp.sort(xp.concat([trained, xp.astype(tested[:, 0], xp.int64)]))
    places = xp.searchsorted(interacted, count(n_items + 1, users), side="left")
    totals = [xp.sum(xp.astype(flags, xp.int64)) for flags in (alone, seen_all, repeated)] + [before[-1]]
    return xp.concat([xp.stack(totals), counts + held_out, places[1:] - places[:-1]])
