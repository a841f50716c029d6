"""Training batches: stream blocks of whole users, draw fresh negatives on the device, shuffle, and cut into batches.

A positive and its negatives stay together, so that computation for their user is shared.

One block is in memory at a time. It contains whole users, so negatives are exact without an index of all positives.
The order of partitions and the order within a block change every epoch.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.data.batch import Batch, Groups
from model.distributed.process_group import ProcessGroup
from preprocessing.spec.reader import BLOCK_ROWS
from workflows.common.errors import UserError
from workflows.common.prefetch import prefetch
from workflows.device.torch_device import torch_generator
from workflows.sampling import counter_rng
from workflows.sampling.candidates import Candidates
from workflows.sampling.negatives import row_negatives

if TYPE_CHECKING:  # steps on other batches do not need Merlin
    from model.data.dataset import Rows

_AHEAD = 1 << 21  # samples to prefetch: steps continue while the next block is prepared
_SHUFFLE_STREAM, _NEGATIVE_STREAM = 3, 4


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


class TrainLoader:
    """This rank's batches of each epoch over a set of rows.

    From memory, every rank takes its share of the same global batches. When streaming, each rank reads its own
    partitions, so ranks may have different numbers of batches (`ProcessGroup.aligned` keeps them in step).
    """

    def __init__(
        self,
        rows: Rows,
        config: SamplingConfig,
        world: ProcessGroup,
        candidates: Candidates | None = None,
        validation_items: Tensor | None = None,
    ) -> None:
        """
        Args:
            rows: with the columns of a `Batch`, in its order.
            candidates: distribution of the negatives, on the device; None: uniform over all items.
            validation_items: int32 [n_users], one item per user to exclude from training
            (`model.data.validation_split`), -1 for none.
        """
        self.rows, self.config, self.world, self.device = rows, config, world, world.device
        # Stream a small set like a large one, holding at most a quarter of it at once.
        self.block_rows = min(BLOCK_ROWS, max(1, rows.n_rows // 4))
        self._candidates = candidates or Candidates(rows.columns.n_items)
        self._validation_items = validation_items
        self._resident: Batch | None = None

    def epoch(self, number: int) -> Generator[Batch, None, None]:
        """This rank's batches of an epoch (counted from 0): every row once, with `per_positive` fresh negatives.

        The last batches may be smaller, or empty if other ranks have more; nothing is dropped. On a CPU a thread
        prefetches them: close the generator unless it is exhausted.
        """
        batches = self._from_memory(number) if self.config.in_memory else self._from_disk(number)
        if self.device.type == "cuda":  # runs asynchronously to this thread, so that a second one would gain nothing
            return batches
        return prefetch(batches, -(-_AHEAD // self.config.batch_size))

    def _from_memory(self, number: int) -> Generator[Batch, None, None]:
        seed = counter_rng.stream_seed(self.config.seed, _SHUFFLE_STREAM, number)
        for batch in self._batches(self._all_rows(), number, self.config.batch_size, seed):
            local = self.world.share(len(batch) // batch.group_size)
            yield batch.cut(local.start * batch.group_size, local.stop * batch.group_size)

    def _from_disk(self, number: int) -> Generator[Batch, None, None]:
        seed, rank = counter_rng.stream_seed(self.config.seed, _SHUFFLE_STREAM, number), self.world.rank
        share = self.world.share(self.config.batch_size)
        # Each rank shuffles its own blocks; the order of partitions is the same for all ranks.
        own_seed = counter_rng.stream_seed(seed, rank) if rank else seed
        with closing(self._streamed(seed)) as blocks:
            yield from self._batches(blocks, number, share.stop - share.start, own_seed)

    @property
    def _few_users(self) -> bool:
        """Whether a batch covers most users anyway: grouping would save nothing, and ungrouped samples mix better."""
        return self.rows.columns.n_users * 8 <= self.config.batch_size

    def samples_per_epoch(self) -> int:
        """Samples per epoch over all ranks, assuming that all rows are positives (for progress only)."""
        validation_items = 0 if self._validation_items is None else int((self._validation_items >= 0).sum())
        return (self.rows.n_rows - validation_items) * (1 + self.config.per_positive if self.config.draws else 1)

    def _batches(self, blocks: Iterable[Batch], epoch: int, size: int, seed: int) -> Iterator[Batch]:
        """Shuffle the groups within each block and cut them into batches of `size` samples, rounded down to whole
        groups."""
        generator = torch_generator(seed, self.device)
        rest: Groups | None = None
        for block in blocks:
            groups = self._groups(block, epoch)
            if size < groups.size or self._few_users or (rest is not None and rest.size != groups.size):
                groups = Groups.single(groups.samples())
                rest = Groups.single(rest.samples()) if rest is not None else None
            order = torch.randperm(len(groups), generator=generator, device=self.device)
            each, begin = size // groups.size, 0
            for end in range(each - (len(rest) if rest is not None else 0), len(groups) + 1, each):
                # Shuffling batch by batch avoids a second copy of the block.
                batch = groups.take(order[begin:end])
                yield (rest.followed_by(batch) if rest is not None else batch).samples()
                rest, begin = None, end
            left = groups.take(order[begin:])
            rest = rest.followed_by(left) if rest is not None else left
        if rest is not None and len(rest):
            yield rest.samples()

    def _all_rows(self) -> Iterator[Batch]:
        if self._resident is None:
            blocks = self.rows.stream(BLOCK_ROWS, self.device)
            self._resident = self._trained_on(Batch.from_columns(map(torch.cat, zip(*blocks, strict=True))))
        yield self._resident

    def _streamed(self, seed: int) -> Generator[Batch, None, None]:
        """Blocks of whole users from this rank's partitions, in a partition order given by the seed."""
        order = torch.randperm(self.rows.n_partitions, generator=torch_generator(seed, torch.device("cpu"))).tolist()
        local = order[self.world.rank :: self.world.size]
        with closing(self.rows.whole_users(self.block_rows, self.device, local)) as blocks:
            for columns in blocks:
                yield self._trained_on(Batch.from_columns(columns))

    def _trained_on(self, block: Batch) -> Batch:
        """A block without its held-out rows."""
        if self._validation_items is None:
            return block
        validation_items = (self._validation_items[block.users] == block.items) & (block.labels > 0)
        return block.take((~validation_items).nonzero().squeeze(1))

    def _groups(self, block: Batch, epoch: int) -> Groups:
        """A block's rows grouped with their negatives; ungrouped samples if some rows have none."""
        config = self.config
        if not config.draws:
            return Groups.single(block)
        positive = block.labels > 0
        all_positive = bool(positive.all())  # host sync: once per block
        positives = block if all_positive else block.take(positive.nonzero().squeeze(1))
        seed = counter_rng.stream_seed(config.seed, _NEGATIVE_STREAM, epoch)
        if config.kind == "uniform":
            n_items = self.rows.columns.n_items
            negatives = _uniform(positives.users, positives.items, n_items, config.per_positive, seed)
        else:
            negatives, exists = row_negatives(
                positives.users, positives.items, self._candidates, config.per_positive, seed
            )
            if not bool(exists.all()):  # host sync: once per block
                all_positive, positive[positive.clone()] = False, exists
                kept = exists.nonzero().squeeze(1)
                positives, negatives = positives.take(kept), negatives.index_select(0, kept)
        groups = Groups(positives, negatives)
        if all_positive:
            return groups
        return Groups.single(groups.samples().followed_by(block.take((~positive).nonzero().squeeze(1))))


def check_labels(rows: Rows, config: SamplingConfig, device: torch.device) -> None:
    """Raise UserError if no negatives are drawn and all rows have the same label: there is nothing to learn."""
    if config.draws:
        return
    label = None
    with closing(rows.only((rows.columns.label,)).stream(BLOCK_ROWS, device)) as blocks:
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
    """Draw from all items, as the reference does: a function of (seed, user, item, number), shape [N, per_row]."""
    key = counter_rng.keys(seed, users.long() * n_items + items)[:, None]
    drawn = counter_rng.below(counter_rng.draws(key, torch.arange(per_row, device=users.device)), n_items)
    return drawn.to(items.dtype)
