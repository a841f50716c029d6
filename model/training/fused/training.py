"""A whole step of training around the fused gradients: exchange between ranks, and Adam."""

from __future__ import annotations

import torch
from torch import Tensor

from model.data.batch import Batch
from model.distributed.process_group import ProcessGroup
from model.network.neumf import NeuMF
from model.training.fused.plan import Tile
from model.training.fused.step import FusedStep, TableAdam
from model.training.optimizer import create_state
from model.training.sharded_adam import ShardedAdam


class FusedTraining:
    """A step of Adam on a batch, which a CUDA graph can hold as a whole.

    On one device the large tables are updated while their gradients are summed, the rest by torch's Adam. On several
    `ShardedAdam` does both; the tables of GMF, whose gradients are complete first, leave while the others are computed.

    Attributes:
        rate: learning rate of the next steps, a scalar on the device.
    """

    def __init__(
        self, model: NeuMF, optimizer: torch.optim.Adam, world: ProcessGroup, group: int, precision: str, tile: Tile
    ) -> None:
        """Args: see `FusedStep`."""
        self.rate = torch.zeros((), device=world.device)
        self._optimizer, self._sharded = optimizer, None
        if world.size > 1:
            self._sharded = ShardedAdam(model, optimizer, world)
            self._step = FusedStep(model, group, precision, tile)
            return
        create_state(optimizer)
        self._step = FusedStep(model, group, precision, tile, TableAdam(optimizer, self.rate))
        for parameter in model.parameters():
            is_table = any(parameter is table for table in self._step.tables)
            parameter.grad = None if is_table else torch.zeros_like(parameter)

    def __call__(self, batch: Batch | None, weight: Tensor) -> Tensor:
        """
        Args:
            batch: this rank's samples; None if it has none in this step.
            weight: of each sample's loss, a scalar on the device.
        Returns:
            The summed loss of this rank's samples, a scalar on the device.
        """
        if self._sharded is not None:
            return self._over_ranks(self._sharded, batch, weight)
        assert batch is not None  # a single rank has a batch in each step
        loss = self._step.gradients(batch, weight)
        (settings,) = self._optimizer.param_groups
        known = {name: settings[name] for name in ("lr", "capturable")}
        settings |= {"lr": self.rate, "capturable": weight.is_cuda}
        self._optimizer.step()
        settings |= known
        return loss

    def _over_ranks(self, sharded: ShardedAdam, batch: Batch | None, weight: Tensor) -> Tensor:
        if batch is None:
            sharded.gradients.zero_()
            sharded.ready("gmf")
            loss = torch.zeros_like(weight)
        else:
            loss = self._step.gradients(batch, weight, gmf_done=lambda: sharded.ready("gmf"))
        sharded.ready("rest")
        sharded.step(self.rate)
        return loss

    def gather_state(self) -> None:
        """Make the optimiser's state whole on every rank; all ranks call it."""
        if self._sharded is not None:
            self._sharded.gather_moments()
