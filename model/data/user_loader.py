"""Batches of whole users with all their train positives, for losses over all items, without sampling."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from model.data.batch import Batch
from model.data.dataset import Rows
from model.distributed.process_group import ProcessGroup
from preprocessing.spec.reader import BLOCK_ROWS
from workflows.device.torch_device import torch_generator
from workflows.sampling import counter_rng

_ORDER_STREAM = 8


@dataclass(frozen=True, kw_only=True)
class UserLoaderConfig:
    """How users are batched.

    Attributes:
        batch_size: user-item pairs of a step over all ranks.
        recency: a user's n-th latest positive has n ** -recency times the weight of the latest.
        in_memory: read all rows once and shuffle all users, instead of block by block.
        seed: equal seeds give equal epochs.
    """

    batch_size: int
    recency: float = 0.0
    in_memory: bool = False
    seed: int = 0


@dataclass(frozen=True)
class UserBatch:
    """All N train positives of B users, consecutive by user and in time order if train is.

    Attributes:
        users: int64 [B].
        counts: int64 [B], positives per user, at least 1.
        items: int64 [N].
        weights: float32 [N]; each user's sum to the user's count.
    """

    users: Tensor
    counts: Tensor
    items: Tensor
    weights: Tensor

    def __len__(self) -> int:
        return self.items.shape[0]

    @property
    def owners(self) -> Tensor:
        """Index into `users` of each positive, int64 [N]."""
        return torch.arange(len(self.users), device=self.users.device).repeat_interleave(
            self.counts, output_size=len(self)
        )

    @staticmethod
    def joined(blocks: Iterable[UserBatch]) -> UserBatch:
        columns = zip(*((block.users, block.counts, block.items, block.weights) for block in blocks), strict=True)
        return UserBatch(*map(torch.cat, columns))

    def take(self, index: Tensor, n_positives: int | None = None) -> UserBatch:
        """Users by index, in the given order.

        Args:
            n_positives: of these users together, if known; otherwise counting them is a host sync.
        """
        counts, first = self.counts[index], (self.counts.cumsum(0) - self.counts)[index]
        rows = torch.arange(int(counts.sum()) if n_positives is None else n_positives, device=index.device)
        rows += (first - counts.cumsum(0) + counts).repeat_interleave(counts, output_size=len(rows))
        return UserBatch(self.users[index], counts, self.items[rows], self.weights[rows])


class UserLoader:
    """Shuffled batches of users for each epoch; each rank gets its share (see `TrainLoader`)."""

    def __init__(
        self, rows: Rows, config: UserLoaderConfig, world: ProcessGroup, validation_items: Tensor | None = None
    ) -> None:
        """
        Args:
            rows: with the columns of a `Batch`, consecutive by user.
            validation_items: int32 [n_users], the item of each user excluded from training, -1 for none.
        """
        self.rows, self.world, self.device, self._config, self._validation_items = (
            rows,
            world,
            world.device,
            config,
            validation_items,
        )
        self._batch_users = max(1, config.batch_size // rows.columns.n_items)
        self._n_held_out = 0 if validation_items is None else int((validation_items >= 0).sum())
        self._resident: UserBatch | None = None

    def samples_per_epoch(self) -> int:
        """Positives per epoch over all ranks, assuming that all rows are positives (for progress only)."""
        return self.rows.n_rows - self._n_held_out

    def epoch(self, number: int) -> Generator[UserBatch, None, None]:
        """This rank's batches of an epoch (from 0); every user occurs once."""
        if not self._config.in_memory:
            return self._streamed(number)
        return (batch for batch, _ in self._from_memory(number))

    def steps(self, number: int) -> Generator[tuple[UserBatch | None, int], None, None]:
        """The batches of `epoch`, each with its number of positives over all ranks, as many on every rank.

        From memory, every rank knows these numbers; when streaming, ranks exchange them.
        """
        if self._config.in_memory:
            yield from self._from_memory(number)
            return
        with closing(self._streamed(number)) as batches:
            yield from self.world.aligned(batches)

    def _from_memory(self, number: int) -> Iterator[tuple[UserBatch, int]]:
        if self._resident is None:
            self._resident = UserBatch.joined(self.blocks())
        return self._batches(self._resident, self._batch_users, self._seed(number), self.world)

    def _seed(self, epoch: int) -> int:
        return counter_rng.stream_seed(self._config.seed, _ORDER_STREAM, epoch)

    def _streamed(self, number: int) -> Generator[UserBatch, None, None]:
        """Batches of this rank's partitions."""
        seed, world, alone = self._seed(number), self.world, ProcessGroup(self.device)
        order = torch.randperm(self.rows.n_partitions, generator=torch_generator(seed, torch.device("cpu"))).tolist()
        own = world.share(self._batch_users)
        with closing(self.blocks(order[world.rank :: world.size])) as blocks:
            for place, block in enumerate(_without_lone_users(blocks)):
                block_seed = counter_rng.stream_seed(seed, world.rank, place)
                for batch, _ in self._batches(block, max(1, own.stop - own.start), block_seed, alone):
                    yield batch

    def _batches(self, users: UserBatch, size: int, seed: int, world: ProcessGroup) -> Iterator[tuple[UserBatch, int]]:
        """A rank's share of each batch, and the positives of the whole batch: all users, shuffled, in nearly equal
        batches of at most `size` users."""
        n_users = len(users.users)
        if not n_users:
            return
        order = torch.randperm(n_users, generator=torch_generator(seed, self.device), device=self.device)
        parts = [(part[0], part[-1] + 1) for part in np.array_split(np.arange(n_users), -(-n_users // size))]
        shares = [world.share(stop - start) for start, stop in parts]
        local = [(start + share.start, start + share.stop) for (start, _), share in zip(parts, shares, strict=True)]
        before = torch.zeros(n_users + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(users.counts[order], 0, out=before[1:])
        edges = torch.tensor([parts, local], device=self.device)
        totals, own = (before[edges[:, :, 1]] - before[edges[:, :, 0]]).tolist()  # host sync: once per order of users
        for (start, stop), positives, total in zip(local, own, totals, strict=True):
            yield users.take(order[start:stop], positives), total

    def blocks(self, order: list[int] | None = None) -> Generator[UserBatch, None, None]:
        """Users of the partitions, in partition order, in blocks of about `BLOCK_ROWS` positives.

        Args:
            order: partitions to read, None for all.
        """
        with closing(self.rows.whole_users(BLOCK_ROWS, self.device, order)) as blocks:
            for columns in blocks:
                block = Batch.from_columns(columns)
                trained_on = block.labels > 0
                if self._validation_items is not None:
                    trained_on &= self._validation_items[block.users] != block.items
                yield self._interactions(block.take(trained_on.nonzero().squeeze(1)))

    def _interactions(self, positives: Batch) -> UserBatch:
        users, counts = torch.unique_consecutive(positives.users.long(), return_counts=True)
        own = UserBatch(users, counts, positives.items.long(), torch.ones(len(positives), device=self.device))
        if not self._config.recency:
            return own
        ends, owners = counts.cumsum(0), own.owners
        nth_latest = ends[owners] - torch.arange(len(own), device=self.device)
        weights = nth_latest.double() ** -self._config.recency
        sums = torch.zeros(len(users), dtype=weights.dtype, device=self.device).index_add_(0, owners, weights)
        return replace(own, weights=(weights * (counts / sums)[owners]).float())


def _without_lone_users(blocks: Iterable[UserBatch]) -> Iterator[UserBatch]:
    """Join a block of one user to the one before, as `Rows.whole_users` ends with such a block: its gradient is mostly
    noise, and Adam would still make a whole step of it."""
    held: UserBatch | None = None
    for block in blocks:
        if held is not None and min(len(held.users), len(block.users)) <= 1:
            block = UserBatch.joined([held, block])
        elif held is not None:
            yield held
        held = block
    if held is not None:
        yield held
