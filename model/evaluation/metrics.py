"""Ranking metrics: ranks of the positives in leave-one-out series and their means; AUC of labelled rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def positive_ranks(scores: Tensor, items: Tensor, is_duplicate: Tensor | None = None) -> Tensor:
    """Rank of the positive (column 0) of each series, from 0.

    Duplicate items count once. Ties and NaN rank before the positive, so a constant or broken model never scores.

    Args:
        scores: float, shape [S, L].
        items: integer ids of the same shape.
        is_duplicate: `repeated(items)`, if already computed.
    Returns:
        int64, shape [S]: number of other distinct items that score at least as high as the positive.
    """
    # The positive comes first, so only its copies are marked and left out.
    is_duplicate = repeated(items) if is_duplicate is None else is_duplicate
    return (~(scores < scores[:, :1]) & ~is_duplicate)[:, 1:].sum(dim=1)


def repeated(items: Tensor) -> Tensor:
    """Whether an item already occurs earlier in its series: bool, the shape of `items` [S, L]."""
    ordered, element = items.sort(dim=1, stable=True)
    is_duplicate = torch.zeros_like(items, dtype=torch.bool)
    is_duplicate.scatter_(1, element[:, 1:], ordered[:, 1:] == ordered[:, :-1])
    return is_duplicate


def full_ranks(scores: Tensor, positives: Tensor, owners: Tensor, seen: Tensor) -> Tensor:
    """Rank of each user's positive among all items the user has not seen, from 0; ties rank before it.

    Args:
        scores: float, shape [U, n_items].
        positives: the item of each user, int64, shape [U].
        owners, seen: int64, shape [M]: row of a user and an item that user has seen (may include the positive).
    Returns:
        int64, shape [U].
    """
    ahead = ~(scores < scores.gather(1, positives[:, None]))
    ahead[owners, seen] = False
    ahead.scatter_(1, positives[:, None], False)
    return ahead.sum(dim=1)


@dataclass(frozen=True)
class RankMeans:
    """Means over series with one positive each.

    Attributes:
        hit_rate: HR@k, the share of positives within the first k; the same as recall@k, as there is one positive.
        ndcg: NDCG@k: log 2 / log(rank + 2) within the first k (He et al. 2017, section 4.1).
        mrr: mean reciprocal rank, 1 / (rank + 1), of the whole series.
    """

    hit_rate: float
    ndcg: float
    mrr: float

    @staticmethod
    def from_counts(counts: Sequence[float], k: int) -> RankMeans:
        """Means from the number of positives at each rank, from 0 (whole numbers).

        Equal counts give bit-identical means, however they were collected.
        """
        total = math.fsum(counts)
        first = counts[:k]
        return RankMeans(
            math.fsum(first) / total,
            math.fsum(count * (math.log(2.0) / math.log(rank + 2.0)) for rank, count in enumerate(first)) / total,
            math.fsum(count / (rank + 1.0) for rank, count in enumerate(counts)) / total,
        )


def auc(scores: Tensor, positive: Tensor) -> float | None:
    """Probability that a positive scores above a negative, ties counting half; None if either class is missing.

    Exact: the Mann-Whitney statistic, with mean ranks for ties. A NaN score counts against its sample.

    Args:
        scores: float, shape [N].
        positive: bool, shape [N].
    """
    n_positive = int(positive.sum())
    n_pairs = n_positive * (len(positive) - n_positive)
    if not n_pairs:
        return None
    worst = torch.where(positive, -torch.inf, torch.inf).to(scores.dtype)
    _, element, counts = torch.where(scores.isnan(), worst, scores).unique(return_inverse=True, return_counts=True)
    mean_ranks = counts.cumsum(0) - (counts - 1) / 2.0
    rank_sum = float(mean_ranks.double()[element[positive]].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2.0) / n_pairs


@dataclass(frozen=True)
class EvalMetrics:
    """Means over all series, or `auc` over all rows if they are not series (None if there is only one label).

    `loss` is binary cross-entropy on logits (NaN for NaN scores), `coverage` the share of all items that are in at
    least one top k. `series_left_out` of the means (but not of the loss) are series with k distinct items or fewer, in
    which any model hits; None if the rows are not series.
    """

    hit_rate: float | None
    ndcg: float | None
    loss: float
    seconds: float
    samples_per_s: float
    auc: float | None = None
    mrr: float | None = None
    coverage: float | None = None
    series_left_out: int | None = None

    @property
    def is_finite(self) -> bool:
        """Whether no score was NaN or infinite."""
        return math.isfinite(self.loss)

    @property
    def quality(self) -> float | None:
        """The metric that selects the best epoch."""
        return self.auc if self.hit_rate is None else self.hit_rate

    def to_dict(self, k: int) -> dict[str, float | None]:
        """The ranking metrics by name; with one positive per series, recall is the hit rate."""
        names = (f"hr@{k}", f"ndcg@{k}", f"recall@{k}", "mrr", f"coverage@{k}", "auc")
        values = (self.hit_rate, self.ndcg, self.hit_rate, self.mrr, self.coverage, self.auc)
        return dict(zip(names, values, strict=True))

    def known(self, k: int) -> dict[str, float]:
        """The metrics of `to_dict` that were measured."""
        return {name: value for name, value in self.to_dict(k).items() if value is not None}

    def compared(self, k: int) -> dict[str, float]:
        """The measured metrics that models are compared by: HR and NDCG, or AUC."""
        known = self.known(k)
        return {name: known[name] for name in compared_names(k) if name in known}

    def texts(self, k: int) -> list[str]:
        """The metrics that models are compared by, formatted for people."""
        return [f"{name.upper()} {value:.4f}" for name, value in self.compared(k).items()]


UNKNOWN = EvalMetrics(hit_rate=None, ndcg=None, loss=math.nan, seconds=0.0, samples_per_s=0.0)


def compared_names(k: int) -> tuple[str, ...]:
    """The names of the metrics that models are compared by."""
    return (f"hr@{k}", f"ndcg@{k}", "auc")


def all_hit(k: int, most: int) -> str:
    """The error for series that have at most `most` distinct items each, `k` or fewer."""
    lower = f"lower it to {most - 1} or less, or " if most > 1 else ""
    items = f"{most} distinct item{'s' if most > 1 else ''}"
    return (
        f"--topk {k}: no series has more than {items}, so every model would hit; {lower}prepare the data "
        "with more --test-negatives or more items"
    )
