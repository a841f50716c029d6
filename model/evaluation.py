"""Evaluation over test rows, streamed: the model's metrics and those of the popularity baseline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.columns import Columns
from model.data import Rows
from model.metrics import auc, hit_rate, ndcg, positive_ranks
from model.series import HeldOut
from workflows.device import synchronize

Scorer = Callable[..., Tensor]  # (users [B], items [B], side features of the row, each [B]) -> scores [B]


@dataclass(frozen=True)
class Scores:
    """Means over all series, or `auc` over all rows where they are no series (None: there is but one label).

    `loss` is binary cross-entropy on logits (NaN for scores that are none).
    """

    hit_rate: float | None
    ndcg: float | None
    loss: float
    seconds: float
    samples_per_s: float
    auc: float | None = None

    @property
    def quality(self) -> float | None:
        """What the best epoch is chosen by."""
        return self.auc if self.hit_rate is None else self.hit_rate

    def named(self, k: int) -> dict[str, float]:
        """The metrics that are known, by their names in logs."""
        known = {f"hr@{k}": self.hit_rate, f"ndcg@{k}": self.ndcg, "auc": self.auc}
        return {name: value for name, value in known.items() if value is not None}

    def texts(self, k: int) -> list[str]:
        """The metrics that are known, for people."""
        return [f"{name.upper()} {value:.4f}" for name, value in self.named(k).items()]


@torch.inference_mode()
def evaluate(score: Scorer, rows: Rows, length: int, k: int, batch_size: int, device: torch.device) -> Scores:
    """Rank the positive of every series.

    Args:
        rows: test rows (user, item, side features of the row): series of `length`, positive first.
        batch_size: rows scored at a time, rounded down to whole series.
    """
    started = time.perf_counter()
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    n_series = 0
    for users, items, *side in rows.stream(max(1, batch_size // length) * length, device):
        logits = score(users, items, *side).float().reshape(-1, length)
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


@torch.inference_mode()
def evaluate_rows(score: Scorer, rows: Rows, batch_size: int, device: torch.device) -> Scores:
    """Loss and AUC over rows that are no series; a score (4 bytes) and a label for each are held in memory.

    Args:
        rows: test rows (user, item, label, side features of the row).
    """
    started = time.perf_counter()
    loss, all_scores, positive = torch.zeros((), dtype=torch.float64, device=device), [], []
    for users, items, labels, *side in rows.stream(batch_size, device):
        logits = score(users, items, *side).float()
        loss += nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
        all_scores.append(logits)
        positive.append(labels > 0)
    area = auc(torch.cat(all_scores), torch.cat(positive))
    mean_loss = float(loss) / rows.n_rows  # host sync: once per evaluation
    seconds = time.perf_counter() - started
    return Scores(None, None, mean_loss, seconds, rows.n_rows / seconds, area)


@dataclass(frozen=True)
class Evaluation:
    """The test rows of a run, and how they are measured.

    Attributes:
        rows: as `evaluate` takes them, or without a length as `evaluate_rows` does.
        length: rows of each series, positive first; None where the rows are no series.
    """

    rows: Rows
    length: int | None
    k: int
    batch_size: int
    device: torch.device

    @staticmethod
    def of(test: HeldOut, columns: Columns, k: int, batch_size: int, device: torch.device) -> Evaluation:
        """
        Args:
            columns: the roles of the features, as the network takes them.
        """
        unused = {columns.label} if test.length is not None else set()
        rows = test.rows.only([name for name in columns.streamed if name not in unused])
        return Evaluation(rows, test.length, k, batch_size, device)

    def __call__(self, model: nn.Module) -> Scores:
        """Evaluate a network without dropout, in full precision; its training mode is restored."""
        training = model.training
        model.eval()
        try:
            return self._measure(model)
        finally:
            model.train(training)

    def popularity(self, train: Rows) -> Scores:
        """Evaluate the baseline that ranks the same candidates by their train interactions."""
        counts = item_popularity(train, self.device)
        return self._measure(lambda _, items, *side: counts[items])

    def _measure(self, score: Scorer) -> Scores:
        if self.length is None:
            return evaluate_rows(score, self.rows, self.batch_size, self.device)
        return evaluate(score, self.rows, self.length, self.k, self.batch_size, self.device)


def item_popularity(rows: Rows, device: torch.device, block_rows: int = 1 << 20) -> Tensor:
    """Train positives of each item, float32 [n_items] (exact up to 2**24)."""
    columns = rows.columns
    counts = torch.zeros(columns.n_items, dtype=torch.int64, device=device)
    for _, items, labels in rows.only((columns.user, columns.item, columns.label)).stream(block_rows, device):
        counts += torch.bincount(items[labels > 0], minlength=counts.shape[0])
    return counts.float()
