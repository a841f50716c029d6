"""Recommendations in original ids, and top-k selection with a fixed order of ties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, overload

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from model.data.vocabulary import Id

Basis = Literal["model", "popularity"]
Scale = Literal["probability", "logit"]  # of the model's scores
_BASES: tuple[Basis, Basis] = ("model", "popularity")


@dataclass(frozen=True)
class Ranking:
    """Recommendations for one user, best first.

    Attributes:
        basis: "model", or "popularity" for users unknown to the model.
        items: original ids; fewer than requested if no more are left.
        scores: the model's (see `Recommender.scale`), or for popularity the share of users who interacted with the item
            in train.
    """

    user: Id
    basis: Basis
    items: list[Id]
    scores: list[float]


@dataclass(frozen=True, eq=False)
class Recommendations(Sequence[Ranking]):
    """A ranking per requested user, in request order, stored as columns.

    Attributes:
        users: original ids, int64 or text [U].
        is_popularity: whether a ranking is based on popularity instead of the model, bool [U].
        starts: offsets, int64 [U + 1]; user i has `items[starts[i] : starts[i + 1]]`.
        items: original ids, int64 or text [N].
        scores: float32 [N].
    """

    users: np.ndarray
    is_popularity: np.ndarray
    starts: np.ndarray
    items: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.users)

    @overload
    def __getitem__(self, index: int) -> Ranking: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Ranking]: ...
    def __getitem__(self, index: int | slice) -> Ranking | Sequence[Ranking]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        own = slice(*self.starts[number : number + 2])
        basis = _BASES[int(self.is_popularity[number])]
        return Ranking(
            self.users[number : number + 1].tolist()[0], basis, self.items[own].tolist(), self.scores[own].tolist()
        )

    def to_table(self) -> pa.Table:
        """One row per recommendation: user, rank (from 1, int32), item, score (float32), basis."""
        counts = np.diff(self.starts)
        rank = np.arange(len(self.items)) - np.repeat(self.starts[:-1], counts) + 1
        return pa.table(
            {
                "user": _ids(np.repeat(self.users, counts)),
                "rank": pa.array(rank, pa.int32()),
                "item": _ids(self.items),
                "score": pa.array(self.scores, pa.float32()),
                "basis": pa.array(np.take(_BASES, np.repeat(self.is_popularity, counts).astype(int)), pa.string()),
            }
        )


def _ids(values: np.ndarray) -> pa.Array:
    return pa.array(values, None if values.dtype.kind in "iu" else pa.string())


def best(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The `k` best columns of each row (all if fewer), best first; ties are ordered by column.

    Args:
        scores: shape [R, N]; NaN counts as the largest.
    Returns:
        (scores, columns), each [R, min(k, N)].
    """
    n_columns = scores.shape[1]
    k = min(k, n_columns)
    found, columns = scores.topk(min(k + 1, n_columns))
    tied: list[int] = []  # rows in which topk chose between equal scores
    if n_columns > k:
        tied = ((found[:, k - 1] == found[:, k]) & (found[:, k] > -torch.inf)).nonzero().squeeze(1).tolist()
    columns, order = columns[:, :k].sort(dim=1)
    found, order = found[:, :k].gather(1, order).sort(dim=1, descending=True, stable=True)
    columns = columns.gather(1, order)
    for row in tied:
        ordered, order_of_row = scores[row].sort(descending=True, stable=True)
        found[row], columns[row] = ordered[:k], order_of_row[:k]
    return found, columns
