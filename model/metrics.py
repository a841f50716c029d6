"""Ranking metrics of leave-one-out series: HR@k and NDCG@k (He et al. 2017, section 4.1)."""

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
