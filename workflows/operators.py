"""NVTabular operators for leave-one-out splits and negative sampling, usable in any workflow.

Except for `ItemStatistics`, they need ids encoded by `EncodeIds` and partitions that hold whole users.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from workflows.candidates import Candidates
from workflows.counters import stream_seed
from workflows.encode import EncodeIds
from workflows.interactions import Histories, count, histories, stable_order
from workflows.merlin import ColumnSchema, Operator
from workflows.negatives import row_negatives, series_negatives
from workflows.sampling import EXACT, KINDS, Sampling, line_of
from workflows.statistics import ItemStatistics

TRAIN, TEST = 0, 1
_TEST_STREAM, _TRAIN_STREAM = 1, 2
_OUTPUT = {"user": "int32", "item": "int32", "label": "float32", "split": "int8"}


class _Negatives(Operator):
    """Base class of the operators that draw negatives."""

    def __init__(self, encoder: EncodeIds, item: str, sampling: Sampling, statistics: ItemStatistics | None) -> None:
        super().__init__()
        if sampling.kind not in KINDS:
            raise ValueError(f"the kind of negatives should be one of {', '.join(KINDS)}, got {sampling.kind!r}")
        if sampling.needs_statistics and statistics is None:
            raise ValueError("popularity and time-aware negatives need ItemStatistics before them in the workflow")
        self.encoder, self.item, self.sampling, self.statistics = encoder, item, sampling, statistics
        self._line: Candidates | None = None

    @property
    def n_items(self) -> int:
        return len(self.encoder.categories[self.item])

    def _candidates(self, like) -> Candidates:
        if self._line is None or self._line.n_items != self.n_items:
            counts, since = (None, None) if self.statistics is None else (self.statistics.counts, self.statistics.since)
            self._line = line_of(self.n_items, self.sampling, counts, since, like)
        return self._line

    def _train_rows(self, users, items, times, per_positive: int) -> dict[str, Any]:
        """Each row followed by its negatives (none if the user has interacted with every item)."""
        xp = array_namespace(users, items)
        if not per_positive:
            return {"user": users, "item": items, "label": xp.ones(users.shape, dtype=xp.float32, device=device(users))}
        seed, exact = stream_seed(self.sampling.seed, _TRAIN_STREAM), self.sampling.kind != "uniform"
        users, items = xp.astype(users, xp.int64), xp.astype(items, xp.int64)
        negatives, exists = row_negatives(users, items, self._candidates(items), per_positive, seed, times, exact)
        samples = xp.concat([items[:, None], negatives], axis=1)
        labels = xp.broadcast_to(count(1 + per_positive, items)[None, :] == 0, samples.shape)
        keep = labels | exists[:, None]
        rows = xp.broadcast_to(users[:, None], labels.shape)
        return {"user": rows[keep], "item": samples[keep], "label": labels[keep]}

    def __getstate__(self):
        return {**self.__dict__, "_line": None}  # may hold device memory, so the receiver rebuilds it


class AppendNegatives(_Negatives):
    """Append negatives to each row: emits `user`, `item` (int32) and `label` (float32, 1 or 0) under the given names.

    Negatives are items that the user does not have in the partition (with `uniform`: any items). The output is sorted
    by user, stably; rows with an id unknown to the encoder (-1) are dropped.
    """

    def __init__(
        self,
        encoder: EncodeIds,
        user: str,
        item: str,
        per_positive: int = 4,
        sampling: Sampling = EXACT,
        statistics: ItemStatistics | None = None,
        time: str | None = None,
        label: str = "label",
    ) -> None:
        """
        Args:
            encoder: an operator fitted before this one; it defines the number of items.
            user, item, time: names of the input columns; time is needed only for time-aware negatives.
            per_positive: negatives per row.
            statistics: required if `sampling` needs them.
        """
        super().__init__(encoder, item, sampling, statistics)
        if sampling.time_aware and time is None:
            raise ValueError("time-aware negatives need the name of the time column")
        self.user, self.time, self.label_name, self.per_positive = user, time, label, per_positive

    def transform(self, col_selector, df):
        users, items = df[self.user].values, df[self.item].values
        times = users if self.time is None else df[self.time].values
        xp = array_namespace(users)
        known = xp.nonzero((users >= 0) & (items >= 0))[0]
        order = xp.take(known, stable_order(xp.take(users, known)))
        users, items, times = (xp.take(column, order) for column in (users, items, times))
        rows = self._train_rows(users, items, times, self.per_positive)
        names = {self.user: "user", self.item: "item", self.label_name: "label"}
        return type(df)({name: xp.astype(rows[role], getattr(xp, _OUTPUT[role])) for name, role in names.items()})

    def column_mapping(self, col_selector):
        return {name: list(col_selector.names) for name in (self.user, self.item, self.label_name)}

    def compute_column_schema(self, col_name, input_schema):
        return ColumnSchema(col_name, dtype=np.float32 if col_name == self.label_name else np.int32)


class LeaveOneOut(_Negatives):
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
        known = (users >= 0) & (items >= 0)
        xp = array_namespace(users)
        if not xp.all(known):
            users, items, times = users[known], items[known], times[known]
        history = histories(users, items, times)
        held_out, train = self._split(history)
        rows = xp.take(history.by_time, train)
        users = xp.take(xp.astype(history.users, xp.int32), xp.take(history.rows, train))
        items, times = xp.take(history.items, rows), xp.take(history.times, rows)
        parts = [self._train_rows(users, items, times, self.train_negatives), self._test_rows(history, held_out)]
        columns = {
            name: xp.concat([xp.astype(part[name], getattr(xp, _OUTPUT[name])) for part in parts]) for name in parts[0]
        }
        n_train = parts[0]["user"].shape[0]
        columns["split"] = xp.astype(count(columns["user"].shape[0], users) >= n_train, xp.int8)
        return type(df)(columns)

    def _split(self, history: Histories):
        """(indices of the users with a held-out interaction, positions of the train rows in time order)."""
        xp = array_namespace(history.users)
        has_test = (history.counts > 1) & (history.counts < self.n_items)
        position = count(history.rows.shape[0], history.rows)
        last = xp.where(has_test, history.starts + history.counts - 1, -1)
        return xp.nonzero(has_test)[0], position[xp.take(last, history.rows) != position]

    def _test_rows(self, history: Histories, held_out) -> dict[str, Any]:
        xp = array_namespace(history.users)
        last = xp.take(history.starts, held_out) + xp.take(history.counts, held_out) - 1
        positives = xp.astype(xp.take(history.items, xp.take(history.by_time, last)), xp.int64)
        seed, exact = stream_seed(self.sampling.seed, _TEST_STREAM), self.sampling.kind != "uniform"
        line = self._candidates(history.items)
        negatives = series_negatives(history, held_out, line, self.test_negatives, seed, exact)
        series = xp.concat([positives[:, None], negatives], axis=1)
        users = xp.broadcast_to(xp.take(history.users, held_out)[:, None], series.shape)
        labels = xp.broadcast_to(count(series.shape[1], positives)[None, :] == 0, series.shape)
        return {name: xp.reshape(rows, (-1,)) for name, rows in (("user", users), ("item", series), ("label", labels))}

    def column_mapping(self, col_selector):
        return {name: [self.user, self.item, self.time] for name in _OUTPUT}

    def compute_column_schema(self, col_name, input_schema):
        return ColumnSchema(col_name, dtype=getattr(np, _OUTPUT[col_name]))
