"""One optimiser step over a batch: choice of implementation, precision, and the all-reduce of gradients."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from model.compiled.available import compiled_training
from model.data.batch import Batch
from model.distributed.process_group import ProcessGroup
from model.network.neumf import NeuMF
from model.training.config import TrainConfig
from model.training.cuda_graph import StepGraph
from model.training.fused.choice import fused_training
from model.training.optimizer import adam, shared_gradients
from model.training.threads import PARAMETER_WORK, worthwhile_threads
from model.training.torch_step import CHUNK_SAMPLES, TorchStep
from workflows.device.torch_device import graph_capture, matrix_precision, mixed_dtype, resolve_precision

if TYPE_CHECKING:
    from model.compiled.step import CompiledStep
    from model.training.fused.training import FusedTraining

# Minimum work per thread, in multiplications of the hidden layers or equivalents.
_THREAD_WORK = 350_000_000
_SAMPLE_WORK = 10_000  # per sample, besides the layers


class Step:
    """Steps of Adam on the mean loss over all ranks.

    On a CPU compiled loops compute them if possible (`model.compiled.step`), on a GPU fused kernels
    (`model.training.fused`), otherwise torch (`model.training.torch_step`).
    """

    def __init__(
        self, model: NeuMF, config: TrainConfig, world: ProcessGroup, compiled: bool = True, in_memory: bool = True
    ) -> None:
        """
        Args:
            compiled: whether compiled loops may be used.
            in_memory: whether batches are made of rows in memory, so that all ranks have equal shares of each.

        Raises:
            UserError: the device does not support the requested precision, CUDA graphs or the fused step.
        """
        self.model, self.world = model, world
        self.optimizer = adam(model, config)
        self.precision = resolve_precision(config.amp, config.precision, world.device)
        dtype = mixed_dtype(self.precision)
        capture = graph_capture(world.device) if config.cuda_graphs else None
        self.threads = _threads(model, config.batch_size // world.size)
        self._fused = fused_training(model, self.optimizer, config, world, self.precision)
        self._compiled = _compiled_step(model, config, world, dtype, self.threads) if compiled else None
        # Only float16 needs loss scaling; bfloat16 has float32's range, and the fused step scales by itself.
        scales = dtype is torch.float16 and self._fused is None
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=scales)
        self._on_batch: Callable[[Batch, Tensor], Tensor]
        self._samples = 0  # of the first step, over all ranks
        if self._fused is not None:
            if capture is not None and (world.size == 1 or in_memory):
                self._on_batch = StepGraph(self._fused, capture)
            else:
                self._on_batch = self._fused
            return
        if self._compiled is None or world.size > 1:
            self._gradients = shared_gradients(model)
        if self._compiled is None:
            autocast: Callable[[], AbstractContextManager] = nullcontext
            if dtype is not None:
                autocast = lambda: torch.autocast(world.device.type, dtype=dtype)  # noqa: E731
            chunk = CHUNK_SAMPLES if world.device.type == "cpu" else None
            if config.grads_accumulated > 1:
                piece = -(-config.batch_size // world.size // config.grads_accumulated)
                chunk = min(chunk, piece) if chunk is not None else piece
            of_batch = TorchStep(model, chunk, autocast, config.compile).gradients
            self._on_batch = StepGraph(of_batch, capture) if capture is not None else of_batch

    def __call__(self, batch: Batch | None, samples: int) -> Tensor:
        """
        Args:
            batch: this rank's samples; None or empty if it has none in this step.
            samples: number of samples over all ranks.
        Returns:
            The summed loss of this rank's samples, a scalar on the device (no host sync).
        """
        local = batch if batch is not None and len(batch) else None
        if self._fused is not None:
            with matrix_precision("tf32", self.world.device):
                return self._fused_step(self._fused, local, samples)
        with matrix_precision(self.precision, self.world.device):
            return self._step(local, samples)

    def _fused_step(self, fused: FusedTraining, local: Batch | None, samples: int) -> Tensor:
        fused.rate.fill_(self.optimizer.param_groups[0]["lr"])
        weight = torch.full((), 1.0 / samples, device=self.world.device)
        self._samples = self._samples or samples
        # NCCL wants an exchange to be in a graph on all ranks or on none. In an epoch's last step a rank's own batch
        # may be as large as ever while another's is smaller.
        if local is None or samples != self._samples:
            return fused(local, weight)
        return self._on_batch(local, weight)

    def _step(self, local: Batch | None, samples: int) -> Tensor:
        if self._compiled is not None and local is not None and self.world.size == 1:
            loss, gradients = self._compiled.gradients(local, 1.0 / samples)
            self._compiled.adam(self.optimizer, gradients)
            return loss
        self._gradients.zero_()
        loss = torch.zeros((), device=self.world.device)
        if self._compiled is not None:
            if local is not None:
                loss, gradients = self._compiled.gradients(local, 1.0 / samples)
                self._compiled.add_to_grad(gradients)
        else:
            scale = self._scaler.scale(torch.ones((), device=self.world.device))  # initialised on first use
            if local is not None:
                loss = self._on_batch(local, scale / samples)
        self.world.sum(self._gradients)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return loss

    def gather_state(self) -> None:
        if self._fused is not None:  # otherwise every rank has all of it
            self._fused.gather_state()

    def state_dict(self) -> dict[str, Any]:
        """The loss scale of float16; empty for other precisions."""
        return self._scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scaler.load_state_dict(state)


def _threads(model: NeuMF, samples: int) -> int:
    """CPU threads for a step on `samples` samples."""
    layers = sum(parameter.numel() for parameter in model.mlp.parameters())
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return worthwhile_threads(samples * (layers + _SAMPLE_WORK) + parameters * PARAMETER_WORK, _THREAD_WORK)


def _compiled_step(
    model: NeuMF, config: TrainConfig, world: ProcessGroup, dtype: torch.dtype | None, threads: int
) -> CompiledStep | None:
    """The compiled step, or None if it does not apply."""
    side = model.config.row_side or model.config.item_side
    float32 = next(model.parameters()).dtype is torch.float32
    if world.device.type != "cpu" or side or not float32 or not len(model.mlp) or config.compile:
        return None
    if dtype is torch.float16:
        return None
    if not compiled_training():
        return None
    from model.compiled.step import CompiledStep

    return CompiledStep(model, threads, dtype or torch.float32)
