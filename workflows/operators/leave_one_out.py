"""The operator that holds out each user's last interaction for test and draws its negatives."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace

from workflows.device.kernels import gpu_kernels
from workflows.merlin import ColumnSchema
from workflows.operators.append_negatives import ROW_DTYPES, DrawsNegatives
from workflows.operators.encode import EncodeIds
from workflows.operators.item_statistics import ItemStatistics
from workflows.sampling.config import EXACT, Sampling
from workflows.sampling.interactions import Histories, count, histories
from workflows.sampling.negatives import series_negatives

TRAIN, TEST = 0, 1
_OUTPUT = {**ROW_DTYPES, "split": "int8"}


class LeaveOneOut(DrawsNegatives):
    """Hold out each user's last interaction and draw the negatives it is ranked against.

    Takes encoded user and item columns and a time column, in partitions that hold whole users, and emits rows of
    `user`, `item` (int32), `label` (float32) and `split` (int8): first the train rows (split 0), by user and time; then
    one series per user with a held-out interaction (split 1), positive first.
    Repeated pairs keep their earliest time; ties in time are broken by item, the largest last. Users with one
    interaction, and users who have seen every item, are in train only; rows with an id unknown to the encoder (-1) are
    dropped.
    """

    def __init__(
        self,
        encoder: EncodeIds,
        user: str,
        item: str,
        time: str,
        test_negatives: int = 100,
        train_negatives: int = 0,
        sampling: Sampling = EXACT,
        statistics: ItemStatistics | None = None,
    ) -> None:
        """
        Args:
            encoder: an operator fitted before this one; it defines the number of items.
            user, item, time: names of the input columns.
            test_negatives: negatives per series, distinct and not among any of the user's interactions (with
                `uniform`: any items).
            train_negatives: negatives after each train positive, not among the user's train interactions. The
                held-out item may be one of them: training must not know it.
            statistics: required if `sampling` needs them.
        """
        super().__init__(encoder, item, sampling, statistics)
        self.user, self.time = user, time
        self.test_negatives, self.train_negatives = test_negatives, train_negatives

    def transform(self, col_selector, df):
        users, items, times = (df[name].values for name in (self.user, self.item, self.time))
        xp = array_namespace(users)
        history = histories(users, items, times, drop_negative=True)
        held_out = xp.nonzero((history.counts > 1) & (history.counts < self.n_items))[0]  # host sync: once
        kernels = gpu_kernels(users)
        if kernels is not None:
            given = (history, held_out, self.candidates(history.users), self.seeds)
            return type(df)(kernels.split_rows(*given, self.test_negatives, self.train_negatives, self.exact))
        last = xp.take(history.starts, held_out) + xp.take(history.counts, held_out) - 1
        parts = [self._train_part(history, last), self._test_part(history, held_out, last)]
        columns = {
            name: xp.concat([xp.astype(part[name], getattr(xp, _OUTPUT[name]), copy=False) for part in parts])
            for name in parts[0]
        }
        n_train = parts[0]["user"].shape[0]
        columns["split"] = xp.astype(count(columns["user"].shape[0], users) >= n_train, xp.int8)
        return type(df)(columns)

    def _train_part(self, history: Histories, last) -> dict[str, Any]:
        """Args: last: ascending positions, in time order, of the held-out interactions."""
        xp = array_namespace(history.users)
        train = count(history.rows.shape[0] - last.shape[0], last)
        train = train + xp.searchsorted(last - count(last.shape[0], last), train, side="right")
        rows = xp.take(history.by_time, train)
        users = xp.take(xp.astype(history.users, xp.int32), xp.take(history.rows, train))
        times = xp.take(history.times, rows) if self.train_negatives and self.sampling.time_aware else None
        return self.train_rows(users, xp.take(history.items, rows), times, self.train_negatives)

    def _test_part(self, history: Histories, held_out, last) -> dict[str, Any]:
        xp = array_namespace(history.users)
        positives = xp.astype(xp.take(history.items, xp.take(history.by_time, last)), xp.int64)
        seed, candidates = self.seeds[1], self.candidates(history.items)
        negatives = series_negatives(history, held_out, candidates, self.test_negatives, seed, self.exact)
        series = xp.concat([positives[:, None], negatives], axis=1)
        users = xp.broadcast_to(xp.take(history.users, held_out)[:, None], series.shape)
        labels = xp.broadcast_to(count(series.shape[1], positives)[None, :] == 0, series.shape)
        return {name: xp.reshape(rows, (-1,)) for name, rows in (("user", users), ("item", series), ("label", labels))}

    def column_mapping(self, col_selector):
        return {name: [self.user, self.item, self.time] for name in _OUTPUT}

    def compute_column_schema(self, col_name, input_schema):
        return ColumnSchema(col_name, dtype=getattr(np, _OUTPUT[col_name]))
