"""Evaluation over test rows, streamed: the model's metrics and those of the popularity baseline."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from model.columns import Columns
from model.data import Rows
from model.metrics import RankMeans, auc, full_ranks, positive_ranks, repeated
from model.neumf import NeuMF
from model.scoring import Scorer
from model.seen import Seen
from model.series import HeldOut
from model.world import World
from workflows.device import synchronize
from workflows.errors import UserError

# Rows are scored in pieces that do not depend on the number of ranks, so that any number gives the same scores.
_PIECE_ROWS = 1 << 17
_PIECE_PAIRS = 1 << 18  # of users with all items


class AnyScorer(Protocol):
    """See `model.scoring.Scorer`."""

    def __call__(self, users: Tensor, items: Tensor, *side: Tensor) -> Tensor: ...

    def all_items(self, users: Tensor, *side: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Scores:
    """Means over all series, or `auc` over all rows where they are no series (None: there is but one label).

    `loss` is binary cross-entropy on logits (NaN for scores that are none), `coverage` the share of all items that are
    among the first k of anybody.
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
        """What the best epoch is chosen by."""
        return self.auc if self.hit_rate is None else self.hit_rate

    def named(self, k: int) -> dict[str, float]:
        """The metrics that are compared, as far as they are known, by their names in logs."""
        known = {f"hr@{k}": self.hit_rate, f"ndcg@{k}": self.ndcg, "auc": self.auc}
        return {name: value for name, value in known.items() if value is not None}

    def all_named(self, k: int) -> dict[str, float]:
        """All metrics that are known, by their names in logs; with one positive each, recall is the hit rate."""
        more = {f"recall@{k}": self.hit_rate, "mrr": self.mrr, f"coverage@{k}": self.coverage}
        return self.named(k) | {name: value for name, value in more.items() if value is not None}

    def texts(self, k: int) -> list[str]:
        """The metrics that are compared, for people."""
        return [f"{name.upper()} {value:.4f}" for name, value in self.named(k).items()]


class Evaluation:
    """The test rows of a run, and how they are measured. Each rank scores a part; all come to the same metrics."""

    def __init__(
        self,
        rows: Rows,
        length: int | None,
        k: int,
        batch_size: int,
        world: World,
        seen: Seen | None = None,
        in_memory: bool = False,
    ) -> None:
        """
        Args:
            rows: user, item, label where there is no length, side features of the row: series of `length`, positive
                first, or any labelled rows.
            length: rows of each series; None where the rows are no series.
            batch_size: rows scored at a time, at most; rounded down to whole series.
            seen: rank each positive against all items that are not among these, instead of its series.
            in_memory: hold the rows to rank on the device from the first evaluation on, instead of streaming them each
                time.
        """
        self.rows, self.length, self.k, self.batch_size, self.world, self.seen = (
            rows, length, k, batch_size, world, seen,
        )  # fmt: skip
        self._in_memory = in_memory
        self._resident: list[Sequence[Tensor]] | None = None

    @staticmethod
    def of(
        test: HeldOut,
        columns: Columns,
        k: int,
        batch_size: int,
        world: World,
        seen: Seen | None = None,
        in_memory: bool = False,
    ) -> Evaluation:
        """
        Args:
            columns: the roles of the features, as the network takes them.
        """
        unused = {columns.label} if test.length is not None else set()
        rows = test.rows.only([name for name in columns.streamed if name not in unused])
        return Evaluation(rows, test.length, k, batch_size, world, seen, in_memory)

    @torch.inference_mode()
    def __call__(self, model: nn.Module) -> Scores:
        """Evaluate a network without dropout, in full precision; its training mode is restored."""
        training, started = model.training, time.perf_counter()
        model.eval()
        try:
            scorer: AnyScorer = Scorer(model) if isinstance(model, NeuMF) else self._pairwise(model)
            return self.measure(scorer, started)
        finally:
            model.train(training)

    @torch.inference_mode()
    def popularity(self, train: Rows) -> Scores:
        """Evaluate the baseline that ranks the same candidates by their train interactions."""
        counts = item_popularity(train, self.world).float()  # exact up to 2**24
        return self.measure(self._pairwise(lambda _, items, *side: counts[items]), time.perf_counter())

    def _pairwise(self, score: Callable[..., Tensor]) -> _Pairwise:
        return _Pairwise(score, self.rows.columns.n_items, self._piece_rows)

    def measure(self, scorer: AnyScorer, started: float) -> Scores:
        """Measure what a scorer makes of the test rows.

        Args:
            started: what `time.perf_counter` said then.
        """
        if self.seen is not None:
            return self._rank(self._rank_all(scorer, self.seen), self.rows.columns.n_items, started)
        if self.length is not None:
            return self._rank(self._rank_series(scorer, self.length), self.length, started)
        return self._measure_rows(scorer, started)

    def _rank(self, measured: Iterator[_Ranked], n_ranks: int, started: float) -> Scores:
        """Means of what all ranks have ranked.

        Args:
            n_ranks: how many ranks a positive may have.
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
            raise UserError("there is no positive among the test rows, so there is nothing to rank")
        means = RankMeans.of(counts.tolist(), self.k)  # host sync: once per evaluation
        loss_sum, samples = sums.tolist()
        coverage = float((recommended > 0).double().mean())
        synchronize(device)
        seconds = time.perf_counter() - started
        return Scores(
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
            # Each item once; what cannot be compared comes first, as for the ranks, and is no recommendation.
            again = repeated(items)
            best = torch.where(again, -torch.inf, logits).topk(min(self.k, length), dim=1)
            first = items.gather(1, best.indices)[best.values > -torch.inf]
            samples = torch.tensor(logits.numel())
            yield _Ranked(positive_ranks(logits, items, again), first, loss, samples.to(loss.device))

    def _rank_all(self, scorer: AnyScorer, seen: Seen) -> Iterator[_Ranked]:
        """Rank each positive against all items its user has not seen."""
        n_items = self.rows.columns.n_items
        for users, positives, side in self._positives(max(1, min(self.batch_size, _PIECE_PAIRS) // n_items)):
            scores, column = scorer.all_items(users, *side).float(), positives[:, None]
            owners, others = seen.of_users(users)
            ranks, own = full_ranks(scores, positives, owners, others), scores.gather(1, column)
            ranked = torch.ones_like(scores, dtype=torch.bool)
            ranked[owners, others] = False
            ranked.scatter_(1, column, True)
            scores.masked_fill_(~ranked, -torch.inf)  # no loss, and no recommendation
            best = scores.topk(min(self.k, n_items), dim=1)
            first = best.indices[best.values > -torch.inf]
            # The cross-entropy is softplus(score) of a negative, less the score itself of a positive.
            yield _Ranked(ranks, first, nn.functional.softplus(scores).sum() - own.sum(), ranked.sum())

    def _positives(self, n_users: int) -> Iterator[tuple[Tensor, Tensor, list[Tensor]]]:
        """The positives of this rank's rows, of `n_users` at a time: user, item, side features of the row."""
        for users, items, *rest in self._pieces(self.length or 1):
            if self.length is None:
                labels, *side = rest
                which = (labels > 0).nonzero().squeeze(1)  # host sync: once per piece
            else:
                which, side = torch.arange(0, len(users), self.length, device=users.device), rest
            for part in which.split(n_users) if len(which) else ():
                yield users[part], items[part].long(), [column[part] for column in side]

    def _measure_rows(self, scorer: AnyScorer, started: float) -> Scores:
        """Loss and AUC over rows that are no series; a score (4 bytes) and a label for each are held in memory, and
        every rank measures all of them."""
        loss, all_scores, positive = torch.zeros((), dtype=torch.float64, device=self.world.device), [], []
        for users, items, labels, *side in self.rows.stream(self._piece_rows, self.world.device):
            logits = scorer(users, items, *side).float()
            loss += nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum")
            all_scores.append(logits)
            positive.append(labels > 0)
        area = auc(torch.cat(all_scores), torch.cat(positive))
        mean_loss = float(loss) / self.rows.n_rows  # host sync: once per evaluation
        seconds = time.perf_counter() - started
        return Scores(None, None, mean_loss, seconds, self.rows.n_rows / seconds, area)

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
    """Any function of pairs as a scorer.

    Attributes:
        score: (users [B], items [B], side features of the row, each [B]) -> scores [B].
        piece_rows: pairs given to it at a time, at most.
    """

    score: Callable[..., Tensor]
    n_items: int
    piece_rows: int

    def __call__(self, users: Tensor, items: Tensor, *side: Tensor) -> Tensor:
        return self.score(users, items, *side)

    def all_items(self, users: Tensor, *side: Tensor) -> Tensor:
        """Scores of each of some users with all items, [U, n_items]."""
        all_items, parts = torch.arange(self.n_items, dtype=torch.int32, device=users.device), []
        for part in all_items.split(max(1, self.piece_rows // len(users))):
            pairs = [column.repeat_interleave(len(part)) for column in (users, *side)]
            parts.append(self.score(pairs[0], part.repeat(len(users)), *pairs[1:]).view(len(users), -1))
        return torch.cat(parts, dim=1)


@dataclass(frozen=True)
class _Ranked:
    """Some series, ranked.

    Attributes:
        ranks: int64 [S], of each positive.
        first_items: which items are among the first k, in any shape, with repeats.
        loss_sum, samples: scalars, of and over all pairs that were ranked.
    """

    ranks: Tensor
    first_items: Tensor
    loss_sum: Tensor
    samples: Tensor


def item_popularity(rows: Rows, world: World, held_out: Tensor | None = None, block_rows: int = 1 << 20) -> Tensor:
    """Train positives of each item over all ranks, int64 [n_items]; each rank counts a part of the partitions.

    Args:
        held_out: int32 [n_users], an item of each user that is not counted, -1 for none.
    """
    columns = rows.columns
    counts = torch.zeros(columns.n_items, dtype=torch.int64, device=world.device)
    own = range(world.rank, rows.n_partitions, world.size)
    pairs = rows.only((columns.user, columns.item, columns.label))
    for users, items, labels in pairs.stream(block_rows, world.device, own):
        counted = labels > 0
        if held_out is not None:
            counted &= held_out[users] != items
        counts += torch.bincount(items[counted], minlength=counts.shape[0])
    return world.sum(counts)
