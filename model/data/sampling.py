"""How the negatives of training are drawn: the settings, and the draws."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from workflows.sampling import counter_rng
from workflows.sampling.candidates import Candidates
from workflows.sampling.negatives import row_negatives

_NEGATIVE_STREAM = 4


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the samples of an epoch are drawn.

    Attributes:
        batch_size: samples per step over all ranks, including negatives.
        per_positive: negatives per positive.
        kind: "exact" (never one of the user's train positives), "popularity" (the same, weighted by interactions),
            "uniform" (any item, as in the reference) or "static" (none drawn; labels as stored on disk).
        in_memory: read all rows once and shuffle across all of them, instead of block by block.
        seed: equal seeds give equal epochs.
    """

    batch_size: int
    per_positive: int
    kind: str
    in_memory: bool
    seed: int

    @property
    def draws(self) -> bool:
        """Whether negatives are drawn."""
        return self.kind != "static" and self.per_positive > 0

    @property
    def group_size(self) -> int:
        """Samples of a positive with its negatives."""
        return 1 + self.per_positive if self.draws else 1

    def negative_seed(self, epoch: int) -> int:
        """Seed of an epoch's negatives."""
        return counter_rng.stream_seed(self.seed, _NEGATIVE_STREAM, epoch)


def draw_negatives(
    users: Tensor, items: Tensor, config: SamplingConfig, candidates: Candidates, epoch: int
) -> tuple[Tensor, Tensor | None]:
    """Fresh negatives of positives: ids with the items' dtype, shape [N, per_positive].

    Args:
        users, items: [N], each user's positives consecutive and complete.
    Returns:
        the negatives, and bool [N]: False where there is none, because the user has all items (None: never).
    """
    seed = config.negative_seed(epoch)
    if config.kind != "uniform":
        return row_negatives(users, items, candidates, config.per_positive, seed)
    # From all items, as the reference does: a function of (seed, user, item, number).
    key = counter_rng.keys(seed, users.long() * candidates.n_items + items)[:, None]
    number = torch.arange(config.per_positive, device=users.device)
    drawn = counter_rng.below(counter_rng.draws(key, number), candidates.n_items)
    return drawn.to(items.dtype), None
