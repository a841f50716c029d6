"""The operator that computes the count and first occurrence of each item."""

from __future__ import annotations

from typing import Any

import dask
import numpy as np
from array_api_compat import array_namespace

from workflows.device.frames import to_host
from workflows.merlin import StatOperator
from workflows.operators.encode import EncodeIds
from workflows.sampling.interactions import count, stable_order


class ItemStatistics(StatOperator):
    """Computes the count and first occurrence of each encoded item; passes its columns through unchanged.

    Attributes:
        counts: int64 [n_items], rows per item.
        since: int64 [n_items], earliest time of each item; the int64 maximum if it does not occur.
    """

    def __init__(self, encoder: EncodeIds, item: str, time: str) -> None:
        """Args: encoder: an operator fitted before this one; it defines the number of items."""
        super().__init__()
        self.encoder, self.item, self.time = encoder, item, time
        self.counts = self.since = np.zeros(0, dtype=np.int64)

    def fit(self, col_selector, ddf):
        parts = [dask.delayed(_item_statistics)(part, self.item, self.time, self._n_items) for part in ddf.to_delayed()]
        return dask.delayed(_merged_statistics)(parts, self._n_items)

    @property
    def _n_items(self) -> int:
        return len(self.encoder.categories[self.item])

    def fit_finalize(self, dask_stats) -> None:
        self.counts, self.since = dask_stats

    def clear(self) -> None:
        self.counts, self.since, self.fitted = self.counts[:0], self.since[:0], False

    def transform(self, col_selector, df):
        return df[col_selector.names]


def _item_statistics(df: Any, item: str, time: str, n_items: int) -> tuple[np.ndarray, ...]:
    """(items, their row counts, their earliest times) of a partition, on the host."""
    items, times = df[item].values, df[time].values
    xp = array_namespace(items)
    if not items.shape[0]:
        return (np.zeros(0, dtype=np.int64),) * 3
    order = stable_order(times, items)
    items, times = xp.take(items, order), xp.take(times, order)
    bounds = xp.searchsorted(items, count(n_items + 1, items))  # unknown items, -1, come first
    first = xp.where(bounds[:-1] < items.shape[0], bounds[:-1], 0)
    counts, since = to_host(xp.stack([bounds[1:] - bounds[:-1], xp.take(xp.astype(times, xp.int64), first)]))
    found = np.flatnonzero(counts)
    return found, counts[found], since[found]


def _merged_statistics(parts: list[tuple[np.ndarray, ...]], n_items: int) -> tuple[np.ndarray, np.ndarray]:
    counts = np.zeros(n_items, dtype=np.int64)
    since = np.full(n_items, np.iinfo(np.int64).max)
    for items, rows, times in parts:
        counts[items] += rows
        since[items] = np.minimum(since[items], times)
    return counts, since
