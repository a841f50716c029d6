"""Ranking metrics: HR@k and NDCG@k of leave-one-out series (He et al. 2017, section 4.1), AUC of labelled rows."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def positive_ranks(scores: Tensor, items: Tensor) -> Tensor:
    """Rank of the positive (column 0) of each series, from 0.

    An item that occurs again counts once. A negative that ties with the positive ranks before it, and so does
    anything that cannot be compared (NaN), so that a constant or broken model never scores.

    Args:
        scores: float, shape [S, L].
        items: integer ids of the same shape.
    Returns:
        int64, shape [S]: how many other distinct items score at least as high as the positive.
    """
    ahead = ~(scores < scores[:, :1])
    ordered, place = items.sort(dim=1, stable=True)
    repeated = torch.zeros_like(ahead)
    repeated.scatter_(1, place[:, 1:], ordered[:, 1:] == ordered[:, :-1])
    # Of equal items the first position counts; the positive stands first, so its copies are left out.
    return (ahead & ~repeated)[:, 1:].sum(dim=1)


def hit_rate(ranks: Tensor, k: int) -> Tensor:
    """1 for each positive within the first k, shape of `ranks`, float64."""
    return (ranks < k).double()


def ndcg(ranks: Tensor, k: int) -> Tensor:
    """Discounted gain of each series with its one positive: log 2 / log(rank + 2) within the first k, float64."""
    gain = math.log(2.0) / torch.log(ranks.double() + 2.0)
    return torch.where(ranks < k, gain, torch.zeros_like(gain))


def auc(scores: Tensor, positive: Tensor) -> float | None:
    """How often a positive scores above a negative, ties counting half; None where one of the two kinds is missing.

    Exact: the Mann-Whitney statistic of the ranks, equal scores having their mean rank. A score that is no number
    counts against its sample.

    Args:
        scores: float, shape [N].
        positive: bool, shape [N].
    """
    n_positive = int(positive.sum())
    n_pairs = n_positive * (len(positive) - n_positive)
    if not n_pairs:
        return None
    worst = torch.where(positive, -torch.inf, torch.inf).to(scores.dtype)
    _, place, counts = torch.where(scores.isnan(), worst, scores).unique(return_inverse=True, return_counts=True)
    mean_ranks = counts.cumsum(0) - (counts - 1) / 2.0
    rank_sum = float(mean_ranks.double()[place[positive]].sum())
    return (rank_sum - n_positive * (n_positive + 1) / 2.0) / n_pairs
