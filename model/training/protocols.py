"""What the training loop needs of a step and of the loader that feeds it."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Protocol

import torch
from torch import Tensor

from model.distributed.process_group import ProcessGroup
from model.network.neumf import NeuMF


class TrainStep(Protocol):
    """One optimiser step over a batch.

    Attributes:
        precision: of its matrix products, as `workflows.device.torch_device.resolve_precision` returns it.
        threads: CPU threads worth using.
    """

    model: NeuMF
    world: ProcessGroup
    optimizer: torch.optim.Adam
    precision: str
    threads: int

    def __call__(self, batch: Any, samples: int) -> Tensor:
        """
        Args:
            batch: this rank's part; None or empty if it has none in this step.
            samples: number of samples over all ranks.
        Returns:
            The summed loss of this rank's samples, a scalar on the device.
        """

    def gather_state(self) -> None:
        """Make the optimiser's state on this rank whole, if the ranks share it; called by all ranks before a save."""

    def state_dict(self) -> dict[str, Any]:
        """State besides the network's and the optimiser's, as JSON."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the `state_dict` of a step, perhaps one of another class; not called if that is empty."""


class EpochLoader(Protocol):
    """This rank's batches of each epoch."""

    world: ProcessGroup

    def steps(self, number: int) -> Generator[tuple[Any, int], None, None]:
        """The steps of an epoch, counted from 0, as many on every rank: this rank's batch (None or empty if it has
        none) and the number of samples over all ranks. Close the generator unless it is exhausted."""

    def samples_per_epoch(self) -> int:
        """Samples per epoch over all ranks (for progress only)."""
