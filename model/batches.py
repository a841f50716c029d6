"""Training batches: rows stream in blocks of whole users, get fresh negatives on the device, are shuffled, and cut.

A positive and the negatives drawn for it stay together, so that what belongs to their user is computed once.

One block is in memory at a time. Its users are whole, so that negatives are exact without an index of all
positives; the order of partitions and the order within a block are new every epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.world import World
from workflows import counters
from workflows.candidates import Candidates
from workflows.device import torch_generator
from workflows.errors import UserError
from workflows.negatives import row_negatives

if TYPE_CHECKING:  # a step on batches from elsewhere needs no Merlin
    from model.data import Rows

_BLOCK_ROWS = 1 << 20
_SHUFFLE_STREAM, _NEGATIVE_STREAM = 3, 4


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """What one epoch consists of.

    Attributes:
        batch_size: samples of a step over all ranks, negatives included.
        per_positive: negatives drawn for each positive.
        kind: "exact" (never one of the user's train positives), "popularity" (such ones, by their interactions),
            "uniform" (any item, as in the reference) or "static" (none are drawn; labels as they are on disk).
        in_memory: read all rows once and shuffle across all of them, instead of block by block.
        seed: same seed, same epochs.
    """

    batch_size: int
    per_positive: int
    kind: str
    in_memory: bool
    seed: int

    @property
    def draws(self) -> bool:
        """Whether there are negatives to draw."""
        return self.kind != "static" and self.per_positive > 0


@dataclass(frozen=True)
class Batch:
    """Samples of one step, each column of shape [B].

    Attributes:
        users, items: int32 or int64 ids.
        labels: float32.
        side: the side features that go with the row, int32 ids or float32 numbers.
        group: so many samples in a row are a positive and the negatives drawn for it, of one user; 1: in no order.
    """

    users: Tensor
    items: Tensor
    labels: Tensor
    side: tuple[Tensor, ...] = ()
    group: int = 1

    @staticmethod
    def of(columns: Iterable[Tensor], group: int = 1) -> Batch:
        users, items, labels, *side = columns
        return Batch(users, items, labels, tuple(side), group)

    @property
    def columns(self) -> tuple[Tensor, ...]:
        return (self.users, self.items, self.labels, *self.side)

    def __len__(self) -> int:
        return self.labels.shape[0]

    def cut(self, start: int, stop: int) -> Batch:
        """Samples start … stop - 1, which should be whole groups."""
        return Batch.of((column[start:stop] for column in self.columns), self.group)

    def take(self, which: Tensor) -> Batch:
        """Samples by their numbers."""
        return Batch.of(column[which] for column in self.columns)

    def take_groups(self, which: Tensor) -> Batch:
        """Groups by their numbers."""
        groups = (column.view(-1, self.group)[which].view(-1) for column in self.columns)
        return Batch.of(groups, self.group)

    def followed_by(self, other: Batch) -> Batch:
        group = self.group if self.group == other.group else 1
        return Batch.of(map(torch.cat, zip(self.columns, other.columns, strict=True)), group)


class EpochBatches:
    """The batches of each epoch over a set of rows, as far as they are this rank's.

    From memory, every rank cuts its share out of the same global batches. Streamed, each rank goes through its own
    partitions, so that ranks may have different numbers of batches (`World.aligned` goes through them in step).
    """

    def __init__(
        self,
        rows: Rows,
        config: SamplingConfig,
        world: World,
        candidates: Candidates | None = None,
        held_out: Tensor | None = None,
    ) -> None:
        """
        Args:
            rows: with the columns of a `Batch`, in its order.
            candidates: what negatives are drawn from, on the device; None: all items, equally likely.
            held_out: int32 [n_users], an item of each user that is not trained on (`model.validation`), -1 for none.
        """
        self.rows, self.config, self.world, self.device = rows, config, world, world.device
        # A small set is streamed like a large one: never more than a quarter of it is held at once.
        self.block_rows = min(_BLOCK_ROWS, max(1, rows.n_rows // 4))
        self._candidates = candidates or Candidates(rows.columns.n_items)
        self._held_out = held_out
        self._resident: Batch | None = None

    def epoch(self, number: int) -> Iterator[Batch]:
        """This rank's batches of an epoch (counted from 0): every row once, with `per_positive` fresh negatives.

        The last batches may be smaller, or empty where others have more; nothing is dropped.
        """
        shuffle_seed = counters.stream_seed(self.config.seed, _SHUFFLE_STREAM, number)
        if self.config.in_memory:
            for batch in self._batches(self._all_rows(), number, self.config.batch_size, shuffle_seed):
                own = self.world.share(len(batch) // batch.group)
                yield batch.cut(own.start * batch.group, own.stop * batch.group)
            return
        size = self.world.share(self.config.batch_size)
        # Ranks shuffle their own blocks; the order of partitions is the same for all.
        own_seed = counters.stream_seed(shuffle_seed, self.world.rank) if self.world.rank else shuffle_seed
        yield from self._batches(self._streamed(shuffle_seed), number, size.stop - size.start, own_seed)

    @property
    def _few_users(self) -> bool:
        """Whether a batch holds most users anyway: groups would save nothing, and single samples mix better."""
        return self.rows.columns.n_users * 8 <= self.config.batch_size

    def samples_per_epoch(self) -> int:
        """How many samples an epoch has over all ranks where all rows are positives (for progress only)."""
        held_out = 0 if self._held_out is None else int((self._held_out >= 0).sum())
        return (self.rows.n_rows - held_out) * (1 + self.config.per_positive if self.config.draws else 1)

    def _batches(self, blocks: Iterable[Batch], epoch: int, size: int, seed: int) -> Iterator[Batch]:
        """The samples of some blocks, their groups shuffled within each, in batches of `size`, or a little less so that
        they are whole groups."""
        generator = torch_generator(seed, self.device)
        rest: Batch | None = None
        for block in blocks:
            samples = self._samples(block, epoch)
            if size < samples.group or self._few_users:
                samples = replace(samples, group=1)
            order = torch.randperm(len(samples) // samples.group, generator=generator, device=self.device)
            samples = samples.take_groups(order)
            if rest is not None:
                samples = rest.followed_by(samples)
            step = size // samples.group * samples.group
            whole = len(samples) // step * step
            for start in range(0, whole, step):
                yield samples.cut(start, start + step)
            rest = samples.cut(whole, len(samples)) if whole < len(samples) else None
        if rest is not None:
            yield rest

    def _all_rows(self) -> Iterator[Batch]:
        if self._resident is None:
            blocks = self.rows.stream(_BLOCK_ROWS, self.device)
            self._resident = self._trained_on(Batch.of(map(torch.cat, zip(*blocks, strict=True))))
        yield self._resident

    def _streamed(self, seed: int) -> Iterator[Batch]:
        """Blocks of whole users, of this rank's partitions, in an order of partitions given by the seed."""
        order = torch.randperm(self.rows.n_partitions, generator=torch_generator(seed, torch.device("cpu"))).tolist()
        for block in whole_users(self.rows, self.block_rows, self.device, order[self.world.rank :: self.world.size]):
            yield self._trained_on(block)

    def _trained_on(self, block: Batch) -> Batch:
        """A block without the rows that are held out."""
        if self._held_out is None:
            return block
        held_out = (self._held_out[block.users] == block.items) & (block.labels > 0)
        return block.take((~held_out).nonzero().squeeze(1))

    def _samples(self, block: Batch, epoch: int) -> Batch:
        """A block's rows and their negatives: groups, or where rows have none, single samples."""
        config = self.config
        if not config.draws:
            return block
        positive = block.labels > 0
        positives = block.take(positive.nonzero().squeeze(1))
        users, items = positives.users.long(), positives.items.long()
        seed = counters.stream_seed(config.seed, _NEGATIVE_STREAM, epoch)
        if config.kind == "uniform":
            negatives = _uniform(users, items, self.rows.columns.n_items, config.per_positive, seed)
        else:
            negatives, exists = row_negatives(users, items, self._candidates, config.per_positive, seed)
            if not bool(exists.all()):  # host sync: once per block
                positive[positive.clone()] = exists
                kept = exists.nonzero().squeeze(1)
                positives, negatives = positives.take(kept), negatives[kept]
        group = 1 + config.per_positive
        labels = torch.zeros(len(positives), group, device=self.device)
        labels[:, 0] = positives.labels
        grouped = Batch(
            positives.users.repeat_interleave(group),
            torch.cat((positives.items[:, None], negatives.to(block.items.dtype)), dim=1).view(-1),
            labels.view(-1),
            tuple(column.repeat_interleave(group) for column in positives.side),
            group,
        )
        if len(positives) == len(block):
            return grouped
        return grouped.followed_by(block.take((~positive).nonzero().squeeze(1)))


def whole_users(rows: Rows, block_rows: int, device: torch.device, order: list[int] | None = None) -> Iterator[Batch]:
    """The rows of some partitions in blocks of about `block_rows`, none of which cuts a user in two.

    Args:
        rows: with the columns of a `Batch`.
        order: the partitions in the order to read them, None for all in their own.
    """
    held: Batch | None = None  # the last user of a block may go on in the next one
    for columns in rows.stream(block_rows, device, order):
        block = Batch.of(columns)
        if held is not None:
            block = held.followed_by(block)
        last = block.users == block.users[-1]
        whole = len(block) - int(last.sum())  # host sync: once per block
        if whole:
            yield block.cut(0, whole)
        held = block.cut(whole, len(block))
    if held is not None:
        yield held


def check_labels(rows: Rows, config: SamplingConfig, device: torch.device) -> None:
    """Raises UserError where nothing is drawn and all rows have one label, so that there is nothing to learn."""
    if config.draws:
        return
    label = None
    with closing(rows.only((rows.columns.label,)).stream(_BLOCK_ROWS, device)) as blocks:
        for (labels,) in blocks:
            label = float(labels[0]) if label is None else label
            if (labels != label).any():  # host sync: once per block, and mostly in the first one
                return
    raise UserError(
        f"all train rows have the label {label:g}, and no negatives are drawn (--negatives static, "
        "--negative_samples 0, or train_negatives in the feature spec), so there is nothing to learn: draw some "
        "(--negatives exact --negative_samples 4), or prepare the data with --train-negatives"
    )


def _uniform(users: Tensor, items: Tensor, n_items: int, per_row: int, seed: int) -> Tensor:
    """Any item, as the reference draws them: a function of (seed, user, item, number), shape [N, per_row]."""
    key = counters.keys(seed, users * n_items + items)[:, None]
    return counters.below(counters.draws(key, torch.arange(per_row, device=users.device)), n_items)
