"""The operator that appends negatives to each row, and the base class of operators that draw negatives."""

from __future__ import annotations

from typing import Any

import numpy as np
from array_api_compat import array_namespace, device

from workflows.merlin import ColumnSchema, Operator
from workflows.operators.encode import EncodeIds
from workflows.operators.item_statistics import ItemStatistics
from workflows.sampling.candidates import Candidates
from workflows.sampling.config import EXACT, KINDS, Sampling, build_candidates
from workflows.sampling.counter_rng import stream_seed
from workflows.sampling.interactions import count, stable_order
from workflows.sampling.negatives import row_negatives

_TEST_STREAM, _TRAIN_STREAM = 1, 2
ROW_DTYPES = {"user": "int32", "item": "int32", "label": "float32"}


class DrawsNegatives(Operator):
    """Base class of the operators that draw negatives."""

    def __init__(self, encoder: EncodeIds, item: str, sampling: Sampling, statistics: ItemStatistics | None) -> None:
        super().__init__()
        if sampling.kind not in KINDS:
            raise ValueError(f"the kind of negatives should be one of {', '.join(KINDS)}, got {sampling.kind!r}")
        if sampling.needs_statistics and statistics is None:
            raise ValueError("popularity and time-aware negatives need ItemStatistics before them in the workflow")
        self.encoder, self.item, self.sampling, self.statistics = encoder, item, sampling, statistics
        self._candidates: Candidates | None = None

    @property
    def n_items(self) -> int:
        return len(self.encoder.categories[self.item])

    @property
    def exact(self) -> bool:
        """Whether negatives are never among the user's own items."""
        return self.sampling.kind != "uniform"

    @property
    def seeds(self) -> tuple[int, int]:
        """Of the training and of the test negatives."""
        return stream_seed(self.sampling.seed, _TRAIN_STREAM), stream_seed(self.sampling.seed, _TEST_STREAM)

    def candidates(self, like) -> Candidates:
        if self._candidates is None or self._candidates.n_items != self.n_items:
            counts, since = (None, None) if self.statistics is None else (self.statistics.counts, self.statistics.since)
            self._candidates = build_candidates(self.n_items, self.sampling, counts, since, like)
        return self._candidates

    def train_rows(self, users, items, times, per_positive: int) -> dict[str, Any]:
        """Each row followed by its negatives (none if the user has interacted with every item)."""
        xp = array_namespace(users, items)
        if not per_positive:
            return {"user": users, "item": items, "label": xp.ones(users.shape, dtype=xp.float32, device=device(users))}
        users, items = xp.astype(users, xp.int64), xp.astype(items, xp.int64)
        negatives, exists = row_negatives(
            users, items, self.candidates(items), per_positive, self.seeds[0], times, self.exact
        )
        samples = xp.concat([items[:, None], negatives], axis=1)
        labels = xp.broadcast_to(count(1 + per_positive, items)[None, :] == 0, samples.shape)
        keep = labels | exists[:, None]
        rows = xp.broadcast_to(users[:, None], labels.shape)
        return {"user": rows[keep], "item": samples[keep], "label": labels[keep]}

    def __getstate__(self):
        return {**self.__dict__, "_candidates": None}  # may hold device memory, so the receiver rebuilds it


class AppendNegatives(DrawsNegatives):
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
        rows = self.train_rows(users, items, times, self.per_positive)
        names = {self.user: "user", self.item: "item", self.label_name: "label"}
        return type(df)({name: xp.astype(rows[role], getattr(xp, ROW_DTYPES[role])) for name, role in names.items()})

    def column_mapping(self, col_selector):
        return {name: list(col_selector.names) for name in (self.user, self.item, self.label_name)}

    def compute_column_schema(self, col_name, input_schema):
        return ColumnSchema(col_name, dtype=np.float32 if col_name == self.label_name else np.int32)
