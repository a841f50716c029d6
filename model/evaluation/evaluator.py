"""Streaming evaluation of test rows: metrics of the model and of the popularity baseline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from model.data.dataset import Rows
from model.data.popularity import item_popularity
from model.data.test_set import TestSet
from model.data.user_items import UserItems
from model.distributed.process_group import ProcessGroup
from model.evaluation.metrics import RankMeans, auc, full_ranks, positive_ranks, repeated
from model.network.neumf import NeuMF
from model.scoring.scorer import Scorer
from preprocessing.spec.columns import FeatureColumns
from workflows.common.errors import UserError
from workflows.device import synchronize

# The pieces in which rows are scored do not depend on the number of ranks, so neither do the scores.
_PIECE_ROWS = 1 << 17
_PIECE_PAIRS = 1 << 18  # user-item pairs in all-items scoring


class AnyScorer(Protocol):
    """See `model.scoring.scorer.Scorer`."""

    def __call__(self, users: Tensor, items: Tensor, *side: Tensor) -> Tensor: ...

    def all_items(self, users: Tensor, *side: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class EvalMetrics:
    """Means over all series, or `auc` over all rows if they are not series (None if there is only one label).

    `loss` is binary cross-entropy on logits (NaN for NaN scores), `coverage` the share of all items that are in at
    least one top k.
    """

    hit_rate: float | None
    ndcg: float | None
    loss: float
    seconds: float
    samples_per_s: float
    auc: float | None = None
    mrr: float | None = None
    coverage: float | None = None

    @property
    def quality(self) -> float | None:
        """The metric that selects the best epoch."""
        return self.auc if self.hit_rate is None else self.hit_rate

    def named(self, k: int) -> dict[str, float]:
        """The metrics used in comparisons, if known, by their names in logs."""
        known = {f"hr@{k}": self.hit_rate, f"ndcg@{k}": self.ndcg, "auc": self.auc}
        return {name: value for name, value in known.items() if value is not None}

    def all_named(self, k: int) -> dict[str, float]:
        """All known metrics by their names in logs; with one positive per series, recall equals the hit rate."""
        more = {f"recall@{k}": self.hit_rate, "mrr": self.mrr, f"coverage@{k}": self.coverage}
        return self.named(k) | {name: value for name, value in more.items() if value is not None}

    def texts(self, k: int) -> list[str]:
        """The metrics used in comparisons, formatted for people."""
        return [f"{name.upper()} {value:.4f}" for name, value in self.named(k).items()]


class Evaluator:
    """Evaluates on a run's test rows. Each rank scores a part; all ranks get the same metrics."""

    def __init__(
        self,
        rows: Rows,
        length: int | None,
        k: int,
        batch_size: int,
        world: ProcessGroup,
        seen: UserItems | None = None,
        in_memory: bool = False,
    ) -> None:
        """
        Args:
            rows: user, item, label if `length` is None, side features of the row: series of `length`, positive first,
                or any labelled rows.
            length: rows per series; None if the rows are not series.
            batch_size: maximum number of rows scored at a time; rounded down to whole series.
            seen: rank each positive against all items not in this user history, instead of its series.
            in_memory: keep the rows to rank on the device after the first evaluation, instead of streaming them each
                time.
        """
        self.rows, self.length, self.k, self.batch_size, self.world, self.seen = (
            rows, length, k, batch_size, world, seen,
        )  # fmt: skip
        self._in_memory = in_memory
        self._resident: list[Sequence[Tensor]] | None = None

    @staticmethod
    def from_test_set(
        test: TestSet,
        columns: FeatureColumns,
        k: int,
        batch_size: int,
        world: ProcessGroup,
        seen: UserItems | None = None,
        in_memory: bool = False,
    ) -> Evaluator:
        """
        Args:
            columns: feature roles, as used by the network.
        """
        unused = {columns.label} if test.length is not None else set()
        rows = test.rows.only([name for name in columns.streamed if name not in unused])
        return Evaluator(rows, test.length, k, batch_size, world, seen, in_memory)

    @torch.inference_mode()
    def __call__(self, model: nn.Module) -> EvalMetrics:
        """Evaluate a network without dropout and in full precision; its training mode is restored."""
        training, started = model.training, time.perf_counter()
        model.eval()
        try:
            scorer: AnyScorer = Scorer(model) if isinstance(model, NeuMF) else self._pairwise(model)
            return self.measure(scorer, started)
        finally:
            model.train(training)

    @torch.inference_mode()
    def popularity(self, train: Rows) -> EvalMetrics:
        """Evaluate the baseline that ranks the same candidates by number of train interactions."""
        counts = item_popularity(train, self.world).float()  # exact up to 2**24
        return self.measure(self._pairwise(lambda _, items, *side: counts[items]), time.perf_counter())

    def _pairwise(self, score: Callable[..., Tensor]) -> _Pairwise:
        return _Pairwise(score, self.rows.columns.n_items, self._piece_rows)

    def measure(self, scorer: AnyScorer, started: float) -> EvalMetrics:
        """Measure a scorer on the test rows.

        Args:
            started: `time.perf_counter()` at the start.
        """
        if self.seen is not None:
            return self._rank(self._rank_all(scorer, self.seen), self.rows.columns.n_items, started)
        if self.length is not None:
            return self._rank(self._rank_series(scorer, self.length), self.length, started)
        return self._measure_rows(scorer, started)

    def _rank(self, measured: Iterator[_Ranked], n_ranks: int, started: float) -> EvalMetrics:
        """Means over the series of all processes.

        Args:
            n_ranks: number of possible ranks of a positive.
        """
        device = self.world.device
        counts = torch.zeros(n_ranks, dtype=torch.float64, device=device)
        recommended = torch.zeros(self.rows.columns.n_items, dtype=torch.float64, device=device)
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        for ranked in measured:
            counts.scatter_add_(0, ranked.ranks, torch.ones_like(ranked.ranks, dtype=torch.float64))
            recommended[ranked.first_items] = 1.0
            sums += torch.stack((ranked.loss_sum.double(), ranked.samples.double()))
        for tensor in (counts, recommended, sums):
            self.world.sum(tensor)
        if not counts.any():  # host sync: once per evaluation
            raise UserError("the test rows contain no positive, so there is nothing to rank")
        means = RankMeans.from_counts(counts.tolist(), self.k)  # host sync: once per evaluation
        loss_sum, samples = sums.tolist()
        coverage = float((recommended > 0).double().mean())
        synchronize(device)
        seconds = time.perf_counter() - started
        return EvalMetrics(
            means.hit_rate,
            means.ndcg,
            loss_sum / samples,
            seconds,
            samples / seconds,
            mrr=means.mrr,
            coverage=coverage,
        )

    def _rank_series(self, scorer: AnyScorer, length: int) -> Iterator[_Ranked]:
        for users, items, *side in self._pieces(length):
            logits = scorer(users, items, *side).float().reshape(-1, length)
            items = items.reshape(-1, length)
            labels = torch.zeros_like(logits)
            labels[:, 0] = 1.0
            loss = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
            # Each item once; NaN comes first, as for the ranks, and is never recommended.
            is_duplicate = repeated(items)
            best = torch.where(is_duplicate, -torch.inf, logits).topk(min(self.k, length), dim=1)
            first = items.gather(1, best.indices)[best.values > -torch.inf]
            samples = torch.tensor(logits.numel())
            yield _Ranked(positive_ranks(logits, items, is_duplicate), first, loss, samples.to(loss.device))

    def _rank_all(self, scorer: AnyScorer, seen: UserItems) -> Iterator[_Ranked]:
        """Rank each positive against all items its user has not seen."""
        n_items = self.rows.columns.n_items
        for users, positives, side in self._positives(max(1, min(self.batch_size, _PIECE_PAIRS) // n_items)):
            scores, column = scorer.all_items(users, *side).float(), positives[:, None]
            owners, others = seen.of_users(users)
            ranks, own = full_ranks(scores, positives, owners, others), scores.gather(1, column)
            ranked = torch.ones_like(scores, dtype=torch.bool)
            ranked[owners, others] = False
            ranked.scatter_(1, column, True)
            scores.masked_fill_(~ranked, -torch.inf)  # excluded from the loss and from recommendations
            best = scores.topk(min(self.k, n_items), dim=1)
            first = best.indices[best.values > -torch.inf]
            # The cross-entropy is softplus(score), minus the score itself for a positive.
            yield _Ranked(ranks, first, nn.functional.softplus(scores).sum() - own.sum(), ranked.sum())

    def _positives(self, n_users: int) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
        """This rank's positives, `n_users` at a time: user, item, side features of the row."""
        for users, items, *rest in self._pieces(self.length or 1):
            if self.length is None:
                labels, *side = rest
                index = (labels > 0).nonzero().squeeze(1)  # host sync: once per piece
            else:
                index, side = torch.arange(0, len(users), self.length, device=users.device), rest
            for part in index.split(n_users) if len(index) else ():
                yield users[part], items[part].long(), [column[part] for column in side]

    def _measure_rows(self, scorer: AnyScorer, started: float) -> EvalMetrics:
        """Loss and AUC over rows that are not series; every rank measures all rows and holds a score (4 bytes) and a
        label for each in memory."""
        loss, all_scores, positive = torch.zeros((), dtype=torch.float64, device=self.world.device), [], []
        for users, items, labels, *side in self.rows.stream(self._piece_rows, self.world.device):
            logits = scorer(users, items, *side).float()
            loss += nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
            all_scores.append(logits)
            positive.append(labels > 0)
        area = auc(torch.cat(all_scores), torch.cat(positive))
        mean_loss = float(loss) / self.rows.n_rows  # host sync: once per evaluation
        seconds = time.perf_counter() - started
        return EvalMetrics(None, None, mean_loss, seconds, self.rows.n_rows / seconds, area)

    @property
    def _piece_rows(self) -> int:
        return min(self.batch_size, _PIECE_ROWS)

    def _pieces(self, length: int) -> Iterable[Sequence[Tensor]]:
        """This rank's share of the rows, in pieces of whole series of `length`."""
        if self._resident is not None:
            return self._resident
        pieces = self.rows.stream(max(1, self._piece_rows // length) * length, self.world.device)
        own = (piece for number, piece in enumerate(pieces) if number % self.world.size == self.world.rank)
        if not self._in_memory:
            return own
        self._resident = list(own)
        return self._resident


@dataclass(frozen=True)
class _Pairwise:
    """Adapts any function of user-item pairs to a scorer.

    Attributes:
        score: (users [B], items [B], side features of the row, each [B]) -> scores [B].
        piece_rows: maximum number of pairs per call.
    """

    score: Callable[..., Tensor]
    n_items: int
    piece_rows: int

    def __call__(self, users: Tensor, items: Tensor, *side: Tensor) -> Tensor:
        return self.score(users, items, *side)

    def all_items(self, users: Tensor, *side: Tensor) -> Tensor:
        """Scores of some users for all items, [U, n_items]."""
        all_items, parts = torch.arange(self.n_items, dtype=torch.int32, device=users.device), []
        for part in all_items.split(max(1, self.piece_rows // len(users))):
            pairs = [column.repeat_interleave(len(part)) for column in (users, *side)]
            parts.append(self.score(pairs[0], part.repeat(len(users)), *pairs[1:]).view(len(users), -1))
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class _Ranked:
    """Some ranked series.

    Attributes:
        ranks: int64 [S], the rank of each positive.
        first_items: the items in the top k, in any shape, with repeats.
        loss_sum, samples: scalars, summed loss and number of all ranked pairs.
    """

    ranks: Tensor
    first_items: Tensor
    loss_sum: Tensor
    samples: Tensor
