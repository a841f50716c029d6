"""Batches of whole users with all their train positives, for losses over all items, without sampling."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

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

    def take(self, index: Tensor) -> UserBatch:
        """Users by index, in the given order."""
        counts, first = self.counts[index], (self.counts.cumsum(0) - self.counts)[index]
        rows = torch.arange(int(counts.sum()), device=index.device)  # host sync: once per batch
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
        self._resident: UserBatch | None = None

    def samples_per_epoch(self) -> int:
        """Positives per epoch over all ranks, assuming that all rows are positives (for progress only)."""
        return self.rows.n_rows - (0 if self._validation_items is None else int((self._validation_items >= 0).sum()))

    def epoch(self, number: int) -> Generator[UserBatch, None, None]:
        """This rank's batches of an epoch (from 0); every user occurs once."""
        seed, world = counter_rng.stream_seed(self._config.seed, _ORDER_STREAM, number), self.world
        if self._config.in_memory:
            if self._resident is None:
                self._resident = UserBatch.joined(self.blocks())
            yield from self._batches(self._resident, self._batch_users, seed, world)
            return
        order = torch.randperm(self.rows.n_partitions, generator=torch_generator(seed, torch.device("cpu"))).tolist()
        own = world.share(self._batch_users)
        with closing(self.blocks(order[world.rank :: world.size])) as blocks:
            for number, block in enumerate(blocks):
                block_seed = counter_rng.stream_seed(seed, world.rank, number)
                yield from self._batches(block, max(1, own.stop - own.start), block_seed, ProcessGroup(self.device))

    def _batches(self, users: UserBatch, size: int, seed: int, world: ProcessGroup) -> Iterator[UserBatch]:
        """This rank's share of each batch: all users, shuffled, in nearly equal batches of at most `size` users."""
        generator = torch_generator(seed, self.device)
        order = torch.randperm(len(users.users), generator=generator, device=self.device)
        for index in order.tensor_split(-(-len(order) // size)) if len(order) else ():
            yield users.take(index[world.share(len(index))])

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
