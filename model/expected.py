"""What HR@k and NDCG@k come to on average over all draws of the negatives, instead of in one draw.

With N items to draw from, a of which score as high as the positive or higher, and n of them drawn without repeats, the
positive's rank is hypergeometric: P(rank = r) = C(a, r) C(N - a, n - r) / C(N, n). Of the noise of a sampled metric
only that of the users is left.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def expected_means(ahead: Tensor, others: Tensor, drawn: int, k: int) -> tuple[float, float]:
    """HR@k and NDCG@k as expected over the draws, the means over all users. See `expected`."""
    hits, gains = expected(ahead, others, drawn, k)
    return float(hits.mean()), float(gains.mean())


def expected(ahead: Tensor, others: Tensor, drawn: int, k: int) -> tuple[Tensor, Tensor]:
    """HR@k and NDCG@k of each user as expected over the draws, float64, of the shape of `ahead`.

    Args:
        ahead: of each user how many of the items that could be drawn score as high as the positive or higher.
        others: how many could be drawn, positive left out; of the same shape.
        drawn: how many are; all, where there are not so many.
    """
    a, n_others = ahead.double(), others.double()
    n = n_others.clamp(max=float(drawn))
    hits, gains = torch.zeros_like(a), torch.zeros_like(a)
    for rank in range(k):
        chance = (_log_choose(a, rank) + _log_choose(n_others - a, n - rank) - _log_choose(n_others, n)).exp()
        hits += chance
        gains += chance / math.log2(rank + 2.0)
    return hits, gains


def _log_choose(total: Tensor, chosen: Tensor | float) -> Tensor:
    """log C(total, chosen); -inf where there is no such choice."""
    chosen = torch.as_tensor(chosen, dtype=total.dtype, device=total.device).expand_as(total)
    possible = (chosen >= 0) & (chosen <= total)
    inside = torch.where(possible, chosen, 0.0)
    logs = torch.lgamma(total + 1.0) - torch.lgamma(inside + 1.0) - torch.lgamma(total - inside + 1.0)
    return torch.where(possible, logs, -torch.inf)
