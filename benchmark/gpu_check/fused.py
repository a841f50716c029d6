"""Checks of the fused step on a GPU: its kernels, parity with the torch step, and the speed of both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch

from benchmark.gpu_check.findings import Figure, Findings, NotPossibleError, Settings, need, run_check
from benchmark.gpu_check.rows import WARM_UPS, ResidentRows, epochs, network, on_device, parity_batches, train_config
from benchmark.training.variants import DROPOUT, NEGATIVES
from model.data.batch import Batch
from model.distributed.process_group import ProcessGroup
from model.training.step import Step
from workflows.device.torch_device import matrix_precision, synchronize, torch_device

_PRECISIONS = ("tf32", "bf16", "fp16")
_STEPS = 200
_EPS = 1e-3  # as in `benchmark.gpu_check.training.steps`
_TOLERANCE = {"tf32": 1e-3, "bf16": 4e-3, "fp16": 1e-3}  # of a step's loss, relative
_BATCHES = (65_536, 1 << 20)
_TIMED_STEPS = 30
# Rows, warps, and registers per thread (at most).
_TILES = (
    *((32, 2, 255), (32, 2, 168), (32, 4, 255), (32, 4, 168), (32, 4, 128)),
    *((64, 4, 255), (64, 4, 168), (64, 8, 255), (64, 8, 128), (128, 8, 255)),
)
_REGISTERS = 65_536  # of a multiprocessor


def fused(settings: Settings, found: Findings) -> None:
    """The start-up check at both batch sizes; losses of 200 steps; samples/s of both steps, and by tile."""
    need("triton", "Triton")
    if settings.rehearsal:
        raise NotPossibleError("needs an NVIDIA GPU")
    device = torch_device(settings.device, None)
    for precision in _PRECISIONS:
        with found.attempt(f"kernels, {precision}"):
            _check_kernels(settings, found, precision, device)
    batches = parity_batches(settings.scale, settings.scale.parity_batch, _STEPS)
    for precision in _PRECISIONS:
        with found.attempt(f"parity, {precision}"):
            losses = {name: _losses(settings, batches, device, precision, name) for name in ("fused", "torch")}
            found.curves |= {f"{name} step, {precision}": curve for name, curve in losses.items()}
            found.curves_close(f"{precision}: loss", losses["fused"], losses["torch"], _TOLERANCE[precision])
    rows = ResidentRows.generate(settings.scale.shape, device)
    for precision in _PRECISIONS:
        for name, graphs in (("fused", False), ("fused", True), ("torch", False)):
            what = f"{name} step, {precision}{', with CUDA graphs' if graphs else ''}"
            for size in _BATCHES:
                with found.attempt(f"{what}, {size:,}"):
                    speed = _speed(settings, rows, size, device, step=name, precision=precision, cuda_graphs=graphs)
                    found.measured(Figure(f"{what}, batches of {size:,}", speed, "samples/s"))
    for precision in _PRECISIONS:
        _measure_tiles(settings, found, precision, device)


def _check_kernels(settings: Settings, found: Findings, precision: str, device: torch.device) -> None:
    from model.training.fused.check import check_fused_step
    from model.training.fused.choice import tile_for

    shape = network(settings.scale.parity_shape, settings.scale, device, DROPOUT).config
    for size in _BATCHES:
        started = time.perf_counter()
        with matrix_precision("tf32", device):
            worst = check_fused_step(shape, 1 + NEGATIVES, precision, tile_for(device, precision), size, device)
        found.measured(Figure(f"start-up check, {precision}, {size:,}", time.perf_counter() - started, "s"))
        found.below(f"{precision}, {size:,}: largest difference from float64, of what is allowed", worst, 1.0)


def _losses(
    settings: Settings, batches: Sequence[Batch], device: torch.device, precision: str, name: str
) -> list[float]:
    """Mean loss of each step, without dropout."""
    net = network(settings.scale.parity_shape, settings.scale, device, 0.0)
    config = train_config(len(batches[0]), eps=_EPS, precision=precision, step=name)
    step = Step(net, config, ProcessGroup(device))
    return torch.stack([step(on_device(batch, device), len(batch)) / len(batch) for batch in batches]).tolist()


def _speed(settings: Settings, rows: ResidentRows, size: int, device: torch.device, **config: Any) -> float:
    """Samples/s of steps from device memory, after a warm-up."""
    world = ProcessGroup(device)
    step = Step(network(settings.scale.shape, settings.scale, device, DROPOUT), train_config(size, **config), world)
    batches = epochs(rows, size, world).epoch(0)
    for batch in islice(batches, WARM_UPS):
        step(batch, len(batch))
    synchronize(device)
    started, samples = time.perf_counter(), 0
    for batch in islice(batches, _TIMED_STEPS):
        step(batch, len(batch))
        samples += len(batch)
    synchronize(device)
    return samples / (time.perf_counter() - started)


def _measure_tiles(settings: Settings, found: Findings, precision: str, device: torch.device) -> None:
    """Samples/s of the gradients by size of tile: which one a GPU should use."""
    from model.training.fused.plan import Tile
    from model.training.fused.step import FusedStep

    shape, size = settings.scale.parity_shape, _BATCHES[-1]
    (batch,) = parity_batches(settings.scale, size, 1)
    batch, weight = on_device(batch, device), torch.full((), 1.0 / size, device=device)
    net = network(shape, settings.scale, device, DROPOUT)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for rows, warps, registers in _TILES:
        what = f"tile of {rows} rows, {warps} warps, {registers} registers, {precision}"
        with found.attempt(what), matrix_precision("tf32", device):
            programs = _REGISTERS // (32 * warps * -(-registers // 8) * 8)
            tile = Tile(rows=rows, warps=warps, registers=registers, programs=programs)
            step = FusedStep(net, 1 + NEGATIVES, precision, tile)
            for _ in range(WARM_UPS):
                step.gradients(batch, weight)
            synchronize(device)
            started = time.perf_counter()
            for _ in range(_TIMED_STEPS):
                step.gradients(batch, weight)
            synchronize(device)
            found.measured(Figure(what, _TIMED_STEPS * len(batch) / (time.perf_counter() - started), "samples/s"))


if __name__ == "__main__":
    run_check({"fused": fused})
