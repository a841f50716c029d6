"""Synthetic interactions for checks without a prepared folder, and hence without Merlin: arrays, rows, batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmark.gpu_check.findings import Scale
from benchmark.training.variants import BETA1, BETA2, LEARNING_RATE, NEGATIVES
from model.data.batch import Batch
from model.data.train_loader import SamplingConfig, TrainLoader
from model.distributed.process_group import ProcessGroup
from model.network.neumf import NeuMF, NeuMFConfig
from model.training.config import TrainConfig
from preprocessing.synthetic.log import Shape
from preprocessing.synthetic.rows import row_blocks

_SEED = 1
WARM_UPS = 5  # steps; CUDA graphs are captured in the fourth
CONFIGS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "tf32": {"precision": "tf32"},
    "amp": {"amp": True},
    "amp, with CUDA graphs": {"amp": True, "cuda_graphs": True},
}


def interactions(shape: Shape) -> np.ndarray:
    """A log sorted by user, then time: `preprocessing.synthetic.rows.ROW`, shape [rows]."""
    return np.concatenate(list(row_blocks(shape.users, shape.items, shape.rows, _SEED)))


@dataclass(frozen=True)
class ResidentRows:
    """Positives on a device, with the interface that `TrainLoader` expects of rows."""

    shape: Shape
    block: list[Tensor]
    n_partitions: int = 1

    @staticmethod
    def generate(shape: Shape, device: torch.device) -> ResidentRows:
        rows = interactions(shape)
        ids = [torch.from_numpy(rows[name].copy()).to(device) for name in ("user", "item")]
        return ResidentRows(shape, [*ids, torch.ones(len(rows), device=device)])

    @property
    def n_rows(self) -> int:
        return self.shape.rows

    @property
    def columns(self) -> SimpleNamespace:
        return SimpleNamespace(n_users=self.shape.users, n_items=self.shape.items)

    def stream(self, rows: int, device: torch.device, order: Sequence[int] | None = None) -> Iterator[list[Tensor]]:
        yield self.block

    whole_users = stream


def epochs(rows: Any, batch_size: int, world: ProcessGroup) -> TrainLoader:
    """Epochs over `rows`, which stay on the device, with exact negatives."""
    sampling = SamplingConfig(batch_size=batch_size, per_positive=NEGATIVES, kind="exact", in_memory=True, seed=_SEED)
    return TrainLoader(rows, sampling, world)


def parity_batches(scale: Scale, size: int, number: int) -> list[Batch]:
    """`number` batches of `size` samples, the same for every device, on the host; the last of an epoch is smaller."""
    cpu = torch.device("cpu")
    found: list[Batch] = []
    batches = epochs(ResidentRows.generate(scale.parity_shape, cpu), size, ProcessGroup(cpu))
    epoch = 0
    while len(found) < number:
        found += islice(batches.epoch(epoch), number - len(found))
        epoch += 1
    return found


def on_device(batch: Batch, device: torch.device) -> Batch:
    return Batch.from_columns((column.to(device) for column in batch.columns), batch.group_size)


def network(shape: Shape, scale: Scale, device: torch.device, dropout: float) -> NeuMF:
    """The same network on every device."""
    config = NeuMFConfig(
        n_users=shape.users, n_items=shape.items, factors=scale.factors, layers=scale.layers, dropout=dropout
    )
    return NeuMF(config, torch.Generator().manual_seed(_SEED)).to(device)


def train_config(batch_size: int, **more: Any) -> TrainConfig:
    """The reference's settings for a step."""
    return TrainConfig(batch_size=batch_size, learning_rate=LEARNING_RATE, beta1=BETA1, beta2=BETA2, **more)
