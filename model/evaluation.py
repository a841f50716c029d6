"""Evaluation over test series, streamed: the model's metrics and those of the popularity baseline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.data import Rows
from model.metrics import hit_rate, ndcg, positive_ranks
from workflows.device import synchronize

Scorer = Callable[[Tensor, Tensor], Tensor]  # (users [B], items [B]) -> scores [B]


@dataclass(frozen=True)
class Scores:
    """Means over all series; `loss` is binary cross-entropy on logits (NaN for scores that are none)."""

    hit_rate: float
    ndcg: float
    loss: float
    seconds: float
    samples_per_s: float


@torch.inference_mode()
def evaluate(score: Scorer, rows: Rows, length: int, k: int, batch_size: int, device: torch.device) -> Scores:
    """Rank the positive of every series.

    Args:
        rows: test rows (user, item): series of `length`, positive first.
        batch_size: rows scored at a time, rounded down to whole series.
    """
    started = time.perf_counter()
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    n_series = 0
    for users, items in rows.stream(max(1, batch_size // length) * length, device):
        logits = score(users, items).float().reshape(-1, length)
        ranks = positive_ranks(logits, items.reshape(-1, length))
        labels = torch.zeros_like(logits)
        labels[:, 0] = 1.0
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        sums += torch.stack((hit_rate(ranks, k).sum(), ndcg(ranks, k).sum(), loss.double()))
        n_series += logits.shape[0]
    hits, gains, loss_sum = sums.tolist()  # host sync: once per evaluation
    synchronize(device)
    seconds = time.perf_counter() - started
    samples = n_series * length
    return Scores(hits / n_series, gains / n_series, loss_sum / samples, seconds, samples / seconds)


@dataclass(frozen=True)
class Evaluation:
    """The test series of a run: `length` rows each, positive first, ranked for HR@k and NDCG@k."""

    rows: Rows
    length: int
    k: int
    batch_size: int
    device: torch.device

    def __call__(self, model: nn.Module) -> Scores:
        """Evaluate a network without dropout, in full precision; its training mode is restored."""
        training = model.training
        model.eval()
        try:
            return evaluate(model, self.rows, self.length, self.k, self.batch_size, self.device)
        finally:
            model.train(training)

    def popularity(self, train: Rows) -> Scores:
        """Evaluate the baseline that ranks the same candidates by their train interactions."""
        counts = item_popularity(train, self.device)
        return evaluate(lambda _, items: counts[items], self.rows, self.length, self.k, self.batch_size, self.device)


def item_popularity(rows: Rows, device: torch.device, block_rows: int = 1 << 20) -> Tensor:
    """Train positives of each item, float32 [n_items] (exact up to 2**24)."""
    counts = torch.zeros(rows.columns.n_items, dtype=torch.int64, device=device)
    for _, items, labels in rows.stream(block_rows, device):
        counts += torch.bincount(items[labels > 0], minlength=counts.shape[0])
    return counts.float()
