"""Expected HR@k and NDCG@k over all draws of the negatives, instead of a single draw.

With N candidate items, a of which score at least as high as the positive, and n drawn without replacement, the
positive's rank is hypergeometric: P(rank = r) = C(a, r) C(N - a, n - r) / C(N, n). This removes the noise of drawing
the negatives; only the noise of the sample of users remains.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def expected_means(ahead: Tensor, others: Tensor, drawn: int, k: int) -> tuple[float, float]:
    """Expected HR@k and NDCG@k over the draws, averaged over the users who are `comparable`. See `expected`."""
    hits, gains = expected(ahead, others, drawn, k)
    counted = comparable(others, drawn, k)
    return float(hits[counted].mean()), float(gains[counted].mean())


def comparable(others: Tensor, drawn: int, k: int) -> Tensor:
    """Whether a user's series has more than `k` distinct items: with fewer, any model hits; bool, as `others`."""
    return others.clamp(max=drawn) >= k


def expected(ahead: Tensor, others: Tensor, drawn: int, k: int) -> tuple[Tensor, Tensor]:
    """Each user's expected HR@k and NDCG@k over the draws, float64, in the shape of `ahead`.

    Args:
        ahead: per user, the number of candidates that score at least as high as the positive.
        others: number of candidates, excluding the positive; same shape.
        drawn: number of negatives drawn; all candidates if there are fewer.
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
    """log C(total, chosen); -inf if there is no such choice."""
    chosen = torch.as_tensor(chosen, dtype=total.dtype, device=total.device).expand_as(total)
    possible = (chosen >= 0) & (chosen <= total)
    inside = torch.where(possible, chosen, 0.0)
    logs = torch.lgamma(total + 1.0) - torch.lgamma(inside + 1.0) - torch.lgamma(total - inside + 1.0)
    return torch.where(possible, logs, -torch.inf)
