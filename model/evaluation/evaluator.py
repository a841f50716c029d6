"""Streaming evaluation of test rows: metrics of the model and of the popularity baseline."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from model.data.test_set import TestSet
from model.data.user_items import UserItems
from model.distributed.process_group import ProcessGroup
from model.evaluation.metrics import EvalMetrics, RankMeans, all_hit, auc, full_ranks, positive_ranks, repeated
from workflows.common.errors import UserError
from workflows.device.torch_device import synchronize

# The pieces in which rows are scored do not depend on the number of ranks, so neither do the scores.
_PIECE_ROWS = 1 << 17
_PIECE_PAIRS = 1 << 18  # user-item pairs in all-items scoring


class AnyScorer(Protocol):
    """See `model.scoring.scorer.Scorer`."""

    def __call__(self, users: Tensor, items: Tensor, *side: Tensor) -> Tensor: ...

    def all_items(self, users: Tensor, *side: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class EvaluatorConfig:
    """How test rows are scored and ranked.

    Attributes:
        k: of HR@k and the other metrics.
        batch_size: maximum number of rows scored at a time; rounded down to whole series.
        in_memory: keep the rows to rank on the device after the first evaluation, instead of streaming them each time.
    """

    k: int
    batch_size: int
    in_memory: bool = False


class Evaluator:
    """Evaluates scorers on test rows. Each rank scores a part; all ranks get the same metrics."""

    def __init__(
        self, test: TestSet, config: EvaluatorConfig, world: ProcessGroup, exclude: UserItems | None = None
    ) -> None:
        """
        Args:
            test: series or labelled rows, whose columns have the roles that the network uses.
            exclude: rank each positive against all items that are not the user's here, instead of its series.
        """
        unused = {test.rows.columns.label} if test.length is not None else set()
        self.rows = test.rows.only([name for name in test.rows.columns.streamed if name not in unused])
        self.length, self.config, self.world, self._exclude = test.length, config, world, exclude
        self._resident: list[Sequence[Tensor]] | None = None

    @torch.inference_mode()
    def check_topk(self) -> None:
        """Raise UserError if every scorer would hit, since no series has more than k distinct candidates."""
        most = 0
        with closing(self._candidate_counts()) as counts:
            for of_series in counts:
                most = max(most, int(of_series.max()))  # host sync: once per piece, of which one is usually enough
                if most > self.config.k:
                    break
        most = max(int(of_rank) for of_rank in self.world.gather(torch.tensor([most])))
        if 0 < most <= self.config.k:
            raise UserError(all_hit(self.config.k, most))

    @torch.inference_mode()
    def evaluate(self, build: Callable[[], AnyScorer]) -> EvalMetrics:
        """Rank the test rows by a scorer.

        Args:
            build: returns the scorer; the time this takes is part of `seconds`.

        Raises:
            UserError: no series has more than k distinct candidates, or none has a positive.
        """
        started, scorer = time.perf_counter(), build()
        if self._exclude is not None:
            return self._rank(self._rank_all(scorer, self._exclude), self.rows.columns.n_items, started)
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
        n_items = self.rows.columns.n_items
        recommended = torch.zeros(n_items + 1, dtype=torch.float64, device=device)  # the last one is no item
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        for ranked in measured:
            counted = ranked.candidates > self.config.k  # every scorer hits in the others
            counts.scatter_add_(0, ranked.ranks, counted.double())
            listed = ranked.is_first & counted[:, None]
            recommended.index_fill_(0, torch.where(listed, ranked.first_items, n_items).view(-1).long(), 1.0)
            sums += torch.stack((ranked.loss_sum.double(), ranked.samples.double(), (~counted).sum().double()))
        for tensor in (counts, recommended, sums):
            self.world.sum(tensor)
        loss_sum, samples, left_out = sums.tolist()  # host sync: once per evaluation
        if not counts.any():  # host sync: once per evaluation
            if left_out:
                self.check_topk()
            raise UserError("the test rows contain no positive, so there is nothing to rank")
        means = RankMeans.from_counts(counts.tolist(), self.config.k)  # host sync: once per evaluation
        coverage = float((recommended[:-1] > 0).double().mean())
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
            series_left_out=int(left_out),
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
            best = torch.where(is_duplicate, -torch.inf, logits).topk(min(self.config.k, length), dim=1)
            first, samples = items.gather(1, best.indices), torch.full_like(loss, logits.numel(), dtype=torch.float64)
            ranks = positive_ranks(logits, items, is_duplicate)
            yield _Ranked(ranks, (~is_duplicate).sum(dim=1), first, best.values > -torch.inf, loss, samples)

    def _rank_all(self, scorer: AnyScorer, exclude: UserItems) -> Iterator[_Ranked]:
        """Rank each positive against all items but the excluded ones."""
        n_items = self.rows.columns.n_items
        for users, positives, side in self._positives(self._piece_users):
            scores = scorer.all_items(users, *side).float()
            owners, others = exclude.pairs(users)
            ranks, own = full_ranks(scores, positives, owners, others), scores.gather(1, positives[:, None])
            ranked = self._candidates(positives, owners, others)
            scores.masked_fill_(~ranked, -torch.inf)  # excluded from the loss and from recommendations
            best = scores.topk(min(self.config.k, n_items), dim=1)
            # The cross-entropy is softplus(score), minus the score itself for a positive.
            loss = nn.functional.softplus(scores).sum() - own.sum()
            yield _Ranked(ranks, ranked.sum(dim=1), best.indices, best.values > -torch.inf, loss, ranked.sum())

    def _candidates(self, positives: Tensor, owners: Tensor, others: Tensor) -> Tensor:
        """Whether each item is ranked for a user, bool [U, n_items]; other arguments as of `full_ranks`."""
        ranked = torch.ones(len(positives), self.rows.columns.n_items, dtype=torch.bool, device=positives.device)
        ranked[owners, others] = False
        return ranked.scatter_(1, positives[:, None], True)

    def _candidate_counts(self) -> Generator[Tensor, None, None]:
        """Number of distinct candidates of this rank's series, int64 [S] a piece."""
        if self._exclude is not None:
            for users, positives, _ in self._positives(self._piece_users):
                yield self._candidates(positives, *self._exclude.pairs(users)).sum(dim=1)
        elif self.length is not None:
            for _, items, *_ in self._pieces(self.length):
                yield (~repeated(items.reshape(-1, self.length))).sum(dim=1)

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
        return min(self.config.batch_size, _PIECE_ROWS)

    @property
    def _piece_users(self) -> int:
        return max(1, min(self.config.batch_size, _PIECE_PAIRS) // self.rows.columns.n_items)

    def _pieces(self, length: int) -> Iterable[Sequence[Tensor]]:
        """This rank's share of the rows, in pieces of whole series of `length`."""
        if self._resident is not None:
            return (_expanded(piece) for piece in self._resident)
        rows, n_rows, world = max(1, self._piece_rows // length) * length, self.rows.n_rows, self.world
        own = world.share(-(-n_rows // rows))
        if own.start == own.stop:
            pieces: Iterable[Sequence[Tensor]] = ()
        elif world.size == 1:
            pieces = self.rows.stream(rows, world.device)
        else:
            pieces = self.rows.between(own.start * rows, min(n_rows, own.stop * rows), rows, world.device)
        if not self.config.in_memory:
            return pieces
        self._resident = [_compact(piece, length) for piece in pieces]
        return self._pieces(length)


def _compact(piece: Sequence[Tensor], length: int) -> Sequence[Tensor]:
    """A piece with one user per series."""
    users, *others = piece
    each = users[::length]
    same = bool((users.view(-1, length) == each[:, None]).all())  # host sync: once per piece and run
    return [each.clone() if same else users, *others]


def _expanded(piece: Sequence[Tensor]) -> Sequence[Tensor]:
    """Inverse of `_compact`."""
    users, items, *others = piece
    return [users[:, None].expand(-1, len(items) // len(users)).reshape(-1), items, *others]


class PopularityScorer:
    """Scores an item by its number of train positives, for every user alike; exact up to 2**24.

    See `model.scoring.scorer.Scorer`.
    """

    def __init__(self, item_counts: Tensor) -> None:
        self._scores = item_counts.float()

    def __call__(self, users: Tensor, items: Tensor, *side: Tensor) -> Tensor:
        return self._scores[items]

    def all_items(self, users: Tensor, *side: Tensor) -> Tensor:
        return self._scores.repeat(len(users), 1)


@dataclass(frozen=True)
class _Ranked:
    """Some ranked series.

    Attributes:
        ranks: int64 [S], the rank of each positive.
        candidates: int64 [S], the number of distinct items of each series.
        first_items, is_first: the items in the top k, with repeats, and whether each counts: equal shapes.
        loss_sum, samples: scalars, summed loss and number of all ranked pairs.
    """

    ranks: Tensor
    candidates: Tensor
    first_items: Tensor
    is_first: Tensor
    loss_sum: Tensor
    samples: Tensor
