"""Batches from a table in device memory: each is a function of (seed, epoch, step), on any number of ranks.

The elements of an epoch, rows with their negatives or single samples, are in a random order whose places are computed
(`workflows.sampling.permutation`), so a rank makes only its own share of a step. On a GPU one kernel makes it, with
its negatives, and nothing waits for the GPU. Elsewhere the negatives of an epoch are drawn at once, which is faster for
compiled loops; the batches are the same.
"""

from __future__ import annotations

from collections.abc import Generator
from functools import cached_property
from types import ModuleType

import torch
from torch import Tensor

from model.data.batch import Batch, Groups
from model.data.sampling import SamplingConfig, draw_negatives
from model.data.train_table import TrainTable
from model.distributed.process_group import ProcessGroup
from workflows.device.kernels import gpu_kernels
from workflows.sampling import counter_rng
from workflows.sampling.candidates import Candidates
from workflows.sampling.permutation import Permutation

_ORDER_STREAM = 3


class ResidentBatches:
    """The batches of a table.

    Attributes:
        group_size: samples of an element: of a positive with its negatives, or 1 for single samples.
        n_samples: of an epoch, over all ranks.
    """

    def __init__(
        self,
        table: TrainTable,
        config: SamplingConfig,
        candidates: Candidates,
        world: ProcessGroup,
        grouped: bool,
    ) -> None:
        """
        Args:
            candidates: distribution of the negatives, on the device.
            grouped: whether to keep a positive and its negatives together, if all rows have negatives.
        """
        self._table, self._config, self._candidates, self._world = table, config, candidates, world
        self.n_samples = table.n_drawn * config.group_size + table.n_alone
        self.group_size = config.group_size if grouped and not table.n_alone else 1

    def epoch(self, number: int) -> Generator[tuple[Batch, int], None, None]:
        """This rank's share of each step (it may be empty), and the number of samples over all ranks."""
        seed = counter_rng.stream_seed(self._config.seed, _ORDER_STREAM, number)
        n_elements = self.n_samples // self.group_size
        if not n_elements:
            return
        order, each = Permutation(n_elements, seed), self._config.batch_size // self.group_size
        kernels = gpu_kernels(self._table.users)
        negatives = None
        if kernels is None and self._config.draws:
            negatives, _ = draw_negatives(*self._table.drawn, self._config, self._candidates, number)
        for first in range(0, n_elements, each):
            total = min(each, n_elements - first)
            local = self._world.share(total)
            start, stop = first + local.start, first + local.stop
            if kernels is None:
                batch = self._taken(order.places(start, stop, self._table.users), negatives)
            else:
                batch = self._from_kernel(kernels, order, start, stop, number)
            yield batch, total * self.group_size

    def _taken(self, elements: Tensor, negatives: Tensor | None) -> Batch:
        """Samples of some elements, with the negatives of the whole epoch."""
        table, size = self._table, self._config.group_size
        if self.group_size > 1:
            assert negatives is not None
            return Groups(self._rows(elements), negatives.index_select(0, elements)).samples()
        if negatives is None:
            return self._rows(elements)
        drawn = elements < table.n_drawn * size
        alone = elements + (len(table.users) - table.n_alone - table.n_drawn * size)
        rows = torch.where(drawn, elements // size, alone)
        negative = torch.where(drawn, elements % size, 0)  # 0: the row itself
        batch, is_negative = self._rows(rows), negative > 0
        chosen = torch.where(is_negative, rows * (size - 1) + negative - 1, 0)
        if len(negatives):
            batch.items.copy_(torch.where(is_negative, negatives.view(-1)[chosen], batch.items))
        batch.labels.masked_fill_(is_negative, 0.0)
        return batch

    def _rows(self, rows: Tensor) -> Batch:
        table = self._table
        users, items, *side = (column.index_select(0, rows) for column in (table.users, table.items, *table.side))
        if table.labels is None:
            labels = torch.ones(len(rows), device=users.device)
        else:
            labels = table.labels.index_select(0, rows)
        return Batch(users, items, labels, tuple(side))

    def _from_kernel(self, kernels: ModuleType, order: Permutation, start: int, stop: int, epoch: int) -> Batch:
        table, config = self._table, self._config
        exact = config.draws and config.kind != "uniform"
        own, own_weights = (table.own, self._own_weights) if exact else ((None, None, None), None)
        users, items, labels, rows = kernels.train_batch(
            (table.users, table.items, table.labels),
            (table.n_drawn, table.n_alone),
            table.starts,
            own,
            own_weights,
            self._candidates,
            config.group_size - 1,
            config.negative_seed(epoch),
            order,
            (start, stop),
            self.group_size,
            bool(table.side),
        )
        side = tuple(column.index_select(0, rows) for column in table.side)
        return Batch(users, items, labels, side, self.group_size)

    @cached_property
    def _own_weights(self) -> Tensor | None:
        """Cumulative weight before each of `table.own`, and past the last one, int64; None: every weight is 1."""
        if self._candidates.cdf is None:
            return None
        return self._candidates.taken_weights(self._table.own[0].long())
