"""Training batches: rows stream in blocks of whole users, get fresh negatives on the device, are shuffled, and cut.

One block is in memory at a time. Its users are whole, so that negatives are exact without an index of all
positives; the order of partitions and the order within a block are new every epoch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from model.data import Rows
from workflows import counters
from workflows.device import torch_generator
from workflows.negatives import row_negatives

NEGATIVE_KINDS = ("exact", "uniform", "static")
_BLOCK_ROWS = 1 << 20
_SHUFFLE_STREAM, _NEGATIVE_STREAM = 3, 4


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """What one epoch consists of.

    Attributes:
        batch_size: samples of a step, negatives included.
        per_positive: negatives drawn for each positive.
        kind: "exact" (never one of the user's train positives), "uniform" (any item, as in the reference) or
            "static" (none are drawn; labels as they are on disk).
        in_memory: read all rows once and shuffle across all of them, instead of block by block.
        seed: same seed, same epochs.
    """

    batch_size: int
    per_positive: int
    kind: str
    in_memory: bool
    seed: int


@dataclass(frozen=True)
class Batch:
    """Samples of one step, shape [B]: int32 or int64 ids, float32 labels."""

    users: Tensor
    items: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return self.labels.shape[0]

    def cut(self, start: int, stop: int) -> Batch:
        return Batch(self.users[start:stop], self.items[start:stop], self.labels[start:stop])

    def followed_by(self, other: Batch) -> Batch:
        pairs = ((self.users, other.users), (self.items, other.items), (self.labels, other.labels))
        return Batch(*(torch.cat(pair) for pair in pairs))


class EpochBatches:
    """The batches of each epoch over a set of rows."""

    def __init__(self, rows: Rows, config: SamplingConfig, device: torch.device) -> None:
        self.rows, self.config, self.device = rows, config, device
        # A small set is streamed like a large one: never more than a quarter of it is held at once.
        self.block_rows = min(_BLOCK_ROWS, max(1, rows.n_rows // 4))
        self._resident: Batch | None = None

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of an epoch (counted from 0): every row once, with `per_positive` fresh negatives.

        The last batch may be smaller; nothing is dropped.
        """
        size = self.config.batch_size
        shuffle_seed = counters.stream_seed(self.config.seed, _SHUFFLE_STREAM, number)
        generator = torch_generator(shuffle_seed, self.device)
        rest: Batch | None = None
        for block in self._blocks(shuffle_seed):
            samples = self._samples(block, number)
            order = torch.randperm(len(samples), generator=generator, device=self.device)
            samples = Batch(samples.users[order], samples.items[order], samples.labels[order])
            if rest is not None:
                samples = rest.followed_by(samples)
            whole = len(samples) // size * size
            for start in range(0, whole, size):
                yield samples.cut(start, start + size)
            rest = samples.cut(whole, len(samples)) if whole < len(samples) else None
        if rest is not None:
            yield rest

    def samples_per_epoch(self) -> int:
        """How many samples an epoch has where all rows are positives (for progress only)."""
        return self.rows.n_rows * (1 if self.config.kind == "static" else 1 + self.config.per_positive)

    def _blocks(self, seed: int) -> Iterator[Batch]:
        """Blocks of whole users, in an order of partitions given by the seed."""
        if self.config.in_memory:
            if self._resident is None:
                parts = [Batch(*block) for block in self.rows.stream(_BLOCK_ROWS, self.device)]
                self._resident = Batch(*(torch.cat(columns) for columns in zip(*map(_columns, parts), strict=True)))
            yield self._resident
            return
        order = torch.randperm(self.rows.n_partitions, generator=torch_generator(seed, torch.device("cpu"))).tolist()
        held: Batch | None = None  # the last user of a block may go on in the next one
        for columns in self.rows.stream(self.block_rows, self.device, order):
            block = Batch(*columns)
            if held is not None:
                block = held.followed_by(block)
            last = block.users == block.users[-1]
            whole = len(block) - int(last.sum())  # host sync: once per block
            if whole:
                yield block.cut(0, whole)
            held = block.cut(whole, len(block))
        if held is not None:
            yield held

    def _samples(self, block: Batch, epoch: int) -> Batch:
        """A block's rows and their negatives, in no particular order."""
        config = self.config
        if config.kind == "static" or config.per_positive == 0:
            return block
        positive = block.labels > 0
        users, items = block.users[positive].long(), block.items[positive].long()
        n_items, seed = self.rows.columns.n_items, counters.stream_seed(config.seed, _NEGATIVE_STREAM, epoch)
        if config.kind == "exact":
            negatives, exists = row_negatives(users, items, n_items, config.per_positive, seed)
            owners, negatives = users[exists], negatives[exists]
        else:
            owners, negatives = users, _uniform(users, items, n_items, config.per_positive, seed)
        drawn = Batch(
            owners.repeat_interleave(config.per_positive).to(block.users.dtype),
            negatives.reshape(-1).to(block.items.dtype),
            torch.zeros(negatives.numel(), device=self.device),
        )
        return block.followed_by(drawn)


def _columns(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    return batch.users, batch.items, batch.labels


def _uniform(users: Tensor, items: Tensor, n_items: int, per_row: int, seed: int) -> Tensor:
    """Any item, as the reference draws them: a function of (seed, user, item, number), shape [N, per_row]."""
    key = counters.keys(seed, users * n_items + items)[:, None]
    return counters.below(counters.draws(key, torch.arange(per_row, device=users.device)), n_items)
