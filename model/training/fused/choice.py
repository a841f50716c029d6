"""Whether a run uses the fused step. Loads Triton only if it might."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch

from model.distributed.process_group import ProcessGroup
from model.network.neumf import NeuMF
from model.training.config import TrainConfig
from model.training.fused.plan import MAX_WIDTH, Tile
from workflows.common.errors import UserError
from workflows.common.progress import console
from workflows.device.torch_device import gpu_capability, matrix_precision

if TYPE_CHECKING:
    from model.training.fused.training import FusedTraining

_CAPABILITY = (8, 0)  # Ampere: the oldest GPUs that Triton supports


def fused_training(
    model: NeuMF, optimizer: torch.optim.Adam, config: TrainConfig, world: ProcessGroup, precision: str
) -> FusedTraining | None:
    """The fused step if `--step` allows it, it takes this run, and it passes its check on the devices of all ranks.

    Raises:
        UserError: `--step fused` is not possible.
    """
    if config.step == "torch":
        return None
    reason = _unfit(model, config, world.device, precision)
    if reason is not None:
        if config.step == "fused":
            raise UserError(f"--step fused: {reason}; leave the flag out, or use --step torch")
        return None
    # Ranks may have different GPUs, so that from here on they decide together.
    too_old = _too_old(world.device)
    failed = too_old or _failed_check(model, config, world, precision)
    passed = world.sum(torch.tensor(float(failed is None), device=world.device))
    if passed.item() < world.size:
        reason = failed or "it failed on another rank"
        if config.step == "fused":
            raise UserError(f"--step fused: {reason}")
        if too_old is None:
            text = f"the fused step failed its check, so the torch step trains: {reason}"
            console.print(text)
            if failed is not None and not world.is_first:  # whose console is quiet
                print(f"rank {world.rank}: {text}", file=sys.stderr, flush=True)
        return None
    from model.training.fused.training import FusedTraining

    return FusedTraining(model, optimizer, world, _group(config), precision, tile_for(world.device, precision))


def _unfit(model: NeuMF, config: TrainConfig, device: torch.device, precision: str) -> str | None:
    """Why a run is none for the fused step, the same on all ranks; None if it is one."""
    shape = model.config
    if gpu_capability(device) is None:
        return "it needs an NVIDIA GPU"
    if precision == "fp32":
        return "it computes in tf32, fp16 or bf16 (--amp, or --precision)"
    if shape.arch != "neumf" or len(shape.layers) < 2:
        return "it needs --arch neumf with a hidden layer"
    if shape.row_side or shape.item_side:
        return "it takes no side features"
    if max(shape.layers[2:], default=0) > MAX_WIDTH:
        return f"it takes --layers of at most {MAX_WIDTH} from the third on, got {list(shape.layers)}"
    if config.compile or config.grads_accumulated > 1:
        return "it goes with neither --compile nor --grads_accumulated"
    return None


def _too_old(device: torch.device) -> str | None:
    """Why a GPU is none for the fused step; None if it is one."""
    found = gpu_capability(device)
    if found is None or found >= _CAPABILITY:
        return None
    return f"it needs a GPU of compute capability 8.0 (Ampere) or later, and this one has {found[0]}.{found[1]}"


def _failed_check(model: NeuMF, config: TrainConfig, world: ProcessGroup, precision: str) -> str | None:
    """What the check on this device found, in one line; None if it passed."""
    try:
        from model.training.fused.check import check_fused_step

        size, tile = max(1, config.batch_size // world.size), tile_for(world.device, precision)
        with matrix_precision("tf32", world.device):  # as in training
            check_fused_step(model.config, _group(config), precision, tile, size, world.device)
    except Exception as err:  # whatever is wrong with Triton or the GPU, the torch step can train
        return " ".join(f"{type(err).__name__}: {err}".split())[:300]
    return None


def _group(config: TrainConfig) -> int:
    return 1 + config.negative_samples


def tile_for(device: torch.device, precision: str) -> Tile:
    """The tile for a GPU, or a CPU in tests."""
    capability = gpu_capability(device)
    return Tile() if capability is None else Tile.for_gpu(capability, precision)
