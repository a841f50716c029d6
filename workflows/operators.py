"""NVTabular operators that turn a log into a leave-one-out data set; usable in anyone's own workflow."""

from __future__ import annotations

from threading import Lock
from typing import Any

import dask
import numpy as np
import pandas as pd
from array_api_compat import array_namespace

from workflows.counters import stream_seed
from workflows.device import frames_of
from workflows.interactions import Histories, count, histories
from workflows.merlin import ColumnSchema, Operator, StatOperator
from workflows.negatives import row_negatives, series_negatives

TRAIN, TEST = 0, 1
_TEST_STREAM, _TRAIN_STREAM = 1, 2


class EncodeIds(StatOperator):
    """Replace ids by 0 .. n-1 in the order of the original ids (numbers by value, strings by code point).

    `fit` collects the distinct ids of all partitions, so the encoding does not depend on how rows are
    partitioned. An id that was not there in `fit` becomes -1.
    """

    def __init__(self, categories: dict[str, pd.Series] | None = None) -> None:
        """Args: categories: the sorted distinct ids of each column, where a fit is to be restored."""
        super().__init__()
        self.categories = dict(categories or {})
        self.fitted = categories is not None
        self._lookups: dict[str, Any] = {}
        self._building = Lock()

    def fit(self, col_selector, ddf):
        columns = list(col_selector.names)

        def distinct(df):
            return {name: _on_host(df[name].drop_duplicates()) for name in columns}

        def merge(parts):
            merged = {name: pd.concat([part[name] for part in parts]).drop_duplicates() for name in columns}
            return {name: ids.sort_values().reset_index(drop=True) for name, ids in merged.items()}

        return dask.delayed(merge)([dask.delayed(distinct)(part) for part in ddf.to_delayed()])

    def fit_finalize(self, dask_stats) -> None:
        self.categories = dask_stats
        self._lookups = {}

    def clear(self) -> None:
        self.categories, self._lookups, self.fitted = {}, {}, False

    def transform(self, col_selector, df):
        frames = frames_of(df)
        columns = {}
        for name in col_selector.names:
            with self._building:  # one thread builds the hash table, and shows it when it is whole
                if name not in self._lookups:
                    lookup = frames.Index(self.categories[name])
                    lookup.get_indexer(lookup[:1])
                    self._lookups[name] = lookup
            columns[name] = self._lookups[name].get_indexer(df[name]).astype("int32")
        return type(df)(columns)

    def compute_column_schema(self, col_name, input_schema):
        return super().compute_column_schema(col_name, input_schema).with_dtype(np.int32)

    def __getstate__(self):
        # Lookups are rebuilt where they are used: they may hold device memory.
        return {name: value for name, value in self.__dict__.items() if name not in ("_lookups", "_building")}

    def __setstate__(self, state):
        self.__dict__.update(state, _lookups={}, _building=Lock())


def _on_host(series) -> pd.Series:
    return series if isinstance(series, pd.Series) else series.to_pandas()


class LeaveOneOut(Operator):
    """Hold out each user's last interaction and draw the negatives it is ranked against.

    Takes encoded user, item and time columns whose partitions hold whole users, and emits rows of `user`,
    `item` (int32), `label` (float32) and `split` (int8): first the train rows (split 0), by user and time;
    then one series for each user with a held-out interaction (split 1), positive first.
    Of a pair that occurs again the earliest time counts; of equal times the greatest item is the last.
    A user with one interaction, or who has seen every item, is in train only; rows with an id that the encoder
    does not know (-1) are left out.
    """

    def __init__(
        self,
        encoder: EncodeIds,
        user: str,
        item: str,
        time: str,
        test_negatives: int = 100,
        train_negatives: int = 0,
        seed: int = 1,
    ) -> None:
        """
        Args:
            encoder: the fitted-before operator that knows how many items there are.
            user, item, time: names of the input columns.
            test_negatives: distinct negatives of each series, outside all of the user's interactions.
            train_negatives: negatives written after each train positive, outside the user's train
                interactions. The held-out item may be among them: a trainer must not know it.
            seed: same seed, same negatives, however the rows are partitioned.
        """
        super().__init__()
        self.encoder, self.user, self.item, self.time = encoder, user, item, time
        self.test_negatives, self.train_negatives, self.seed = test_negatives, train_negatives, seed

    def transform(self, col_selector, df):
        n_items = len(self.encoder.categories[self.item])
        users, items, times = (df[name].values for name in (self.user, self.item, self.time))
        known = (users >= 0) & (items >= 0)
        users, items, times = users[known], items[known], times[known]
        history = histories(users, items, times)
        train, test = self._split(history, n_items)
        parts = [
            self._train_rows(train[0], train[1], n_items),
            self._test_rows(history, test[0], test[1], n_items),
        ]
        xp = array_namespace(history.users)
        frame = {}
        for name, dtype in _OUTPUT.items():
            frame[name] = xp.concat([xp.astype(part[name], getattr(xp, dtype)) for part in parts])
        return type(df)(frame)

    def _split(self, history: Histories, n_items: int):
        """((users, items) of train rows, (rows of the S users, their last item) of the held-out ones)."""
        xp = array_namespace(history.users)
        has_test = (history.counts > 1) & (history.counts < n_items)
        held_out = xp.nonzero(has_test)[0]
        last = history.starts + history.counts - 1
        rows = history.rows
        keep = ~(xp.take(has_test, rows) & (xp.take(last, rows) == count(rows.shape[0], rows)))
        users = xp.take(history.users, rows)
        return (users[keep], history.by_time[keep]), (held_out, xp.take(history.by_time, xp.take(last, held_out)))

    def _train_rows(self, users, items, n_items: int) -> dict[str, Any]:
        xp = array_namespace(users, items)
        if not self.train_negatives:
            return {"user": users, "item": items, "label": xp.ones(users.shape), "split": xp.full(users.shape, TRAIN)}
        seed = stream_seed(self.seed, _TRAIN_STREAM)
        negatives, exists = row_negatives(users, items, n_items, self.train_negatives, seed)
        labels = xp.concat([xp.ones((users.shape[0], 1)), xp.zeros(negatives.shape)], axis=1)
        keep = (labels > 0) | exists[:, None]
        rows = xp.broadcast_to(users[:, None], labels.shape)[keep]
        samples = xp.concat([items[:, None], negatives], axis=1)[keep]
        return {"user": rows, "item": samples, "label": labels[keep], "split": xp.full(rows.shape, TRAIN)}

    def _test_rows(self, history: Histories, held_out, positives, n_items: int) -> dict[str, Any]:
        xp = array_namespace(history.users)
        seed = stream_seed(self.seed, _TEST_STREAM)
        negatives = series_negatives(history, held_out, n_items, self.test_negatives, seed)
        series = xp.concat([positives[:, None], negatives], axis=1)
        users = xp.broadcast_to(xp.take(history.users, held_out)[:, None], series.shape)
        labels = xp.concat([xp.ones((series.shape[0], 1)), xp.zeros(negatives.shape)], axis=1)
        flat = {"user": users, "item": series, "label": labels, "split": xp.full(series.shape, TEST)}
        return {name: xp.reshape(column, (-1,)) for name, column in flat.items()}

    def column_mapping(self, col_selector):
        return {name: [self.user, self.item, self.time] for name in _OUTPUT}

    def compute_column_schema(self, col_name, input_schema):
        return ColumnSchema(col_name, dtype=getattr(np, _OUTPUT[col_name]))


_OUTPUT = {"user": "int32", "item": "int32", "label": "float32", "split": "int8"}
