"""Training batches, from device memory (`model.data.resident_batches`) or streamed.

A positive and its negatives stay together, so that computation for their user is shared.

Streaming: blocks of whole users are read, fresh negatives drawn on the device, shuffled, and cut into batches. One
block is in memory at a time. It contains whole users, so negatives are exact without an index of all positives. The
order of partitions and the order within a block change every epoch.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model.data.batch import Batch, Groups
from model.data.resident_batches import ResidentBatches
from model.data.sampling import SamplingConfig, draw_negatives
from model.data.train_table import load_train_table, trained_on
from model.distributed.process_group import ProcessGroup
from preprocessing.spec.reader import BLOCK_ROWS
from workflows.common.errors import UserError
from workflows.common.prefetch import prefetch
from workflows.device.torch_device import mark_ready, torch_generator, wait_until_ready
from workflows.sampling import counter_rng
from workflows.sampling.candidates import Candidates

if TYPE_CHECKING:  # steps on other batches do not need Merlin
    from model.data.dataset import Rows

_AHEAD = 1 << 21  # samples to prefetch: steps continue while the next block is prepared
_SHUFFLE_STREAM = 3

TrainingStep = tuple[Batch | None, int]  # this rank's batch, if any, and the number of samples over all ranks


class TrainLoader:
    """This rank's batches of each epoch over a set of rows.

    From memory, every rank takes its share of the same global batches. When streaming, each rank reads its own
    partitions, so ranks may have different numbers of batches.
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
        self._n_held_out = 0 if validation_items is None else int((validation_items >= 0).sum())
        self._resident: ResidentBatches | None = None

    def epoch(self, number: int) -> Generator[Batch, None, None]:
        """This rank's batches of an epoch (counted from 0): every row once, with `per_positive` fresh negatives.

        The last batches may be smaller, or empty if other ranks have more; nothing is dropped. A thread prefetches
        them unless a GPU makes them from its memory: close the generator unless it is exhausted.
        """
        alone = ((batch, len(batch)) for batch in self._from_disk(number))
        with closing(self._from_memory(number) if self.config.in_memory else self._prefetched(alone)) as steps:
            for batch, _ in steps:
                if batch is not None:
                    yield batch

    def steps(self, number: int) -> Generator[TrainingStep, None, None]:
        """The batches of `epoch`, each with its number of samples over all ranks, as many on every rank.

        From memory, every rank knows these numbers. When streaming, ranks exchange them while they prefetch.
        """
        return self._from_memory(number) if self.config.in_memory else self._prefetched(self._agreed(number))

    def _from_memory(self, number: int) -> Generator[TrainingStep, None, None]:
        """Steps of batches from memory. A GPU works alongside this thread, so that another one would gain nothing."""
        steps = self._resident_batches().epoch(number)
        return steps if self.device.type == "cuda" else self._prefetched(steps)

    def _agreed(self, number: int) -> Generator[TrainingStep, None, None]:
        with closing(self._from_disk(number)) as batches:
            yield from self.world.aligned(batches)

    def _resident_batches(self) -> ResidentBatches:
        """Batches of all rows, which are read at the first call."""
        if self._resident is None:
            config, grouped = self.config, self.config.group_size <= self.config.batch_size and not self._few_users
            table = load_train_table(
                self.rows, self.device, config.draws, config.kind == "uniform", self._validation_items
            )
            self._resident = ResidentBatches(table, config, self._candidates, self.world, grouped)
        return self._resident

    def _prefetched(self, steps: Generator[TrainingStep, None, None]) -> Generator[TrainingStep, None, None]:
        """The same, made by a thread; on a GPU its stream is not that of the caller."""

        def made() -> Generator[tuple[TrainingStep, Any], None, None]:
            with closing(steps):
                for step in steps:
                    yield step, mark_ready(self.device)

        with closing(prefetch(made(), -(-_AHEAD // self.config.batch_size))) as prefetched:
            for step, ready in prefetched:
                wait_until_ready(ready, step[0].columns if step[0] is not None else ())
                yield step

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
        return (self.rows.n_rows - self._n_held_out) * self.config.group_size

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

    def _streamed(self, seed: int) -> Generator[Batch, None, None]:
        """Blocks of whole users from this rank's partitions, in a partition order given by the seed."""
        order = torch.randperm(self.rows.n_partitions, generator=torch_generator(seed, torch.device("cpu"))).tolist()
        local = order[self.world.rank :: self.world.size]
        with closing(self.rows.whole_users(self.block_rows, self.device, local)) as blocks:
            for columns in blocks:
                yield trained_on(Batch.from_columns(columns), self._validation_items)

    def _groups(self, block: Batch, epoch: int) -> Groups:
        """A block's rows grouped with their negatives; ungrouped samples if some rows have none."""
        config = self.config
        if not config.draws:
            return Groups.single(block)
        positive = block.labels > 0
        all_positive = bool(positive.all())  # host sync: once per block
        positives = block if all_positive else block.take(positive.nonzero().squeeze(1))
        negatives, exists = draw_negatives(positives.users, positives.items, config, self._candidates, epoch)
        if exists is not None and not bool(exists.all()):  # host sync: once per block
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
