"""The state of a run on disk from which its training is resumed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors
import torch

from model.distributed.process_group import ProcessGroup
from model.network.checkpoint import FORMAT, fill, save_tensors
from model.training.trainer import History, Training, is_count, is_number
from workflows.common.documents import parse_json
from workflows.common.errors import UserError, bounded
from workflows.device.torch_device import set_rng_state

LAST_NAME = "last/state.safetensors"
_REMEDY = "start the run anew"
_WRONG = (OSError, safetensors.SafetensorError, LookupError, ValueError, TypeError, AttributeError, RuntimeError)


def save_last(folder: Path, training: Training, rng_states: Sequence[torch.Tensor], about: dict[str, Any]) -> None:
    """Atomically write everything needed to resume: weights, optimiser, scaler, random state, history.

    One file, `last/state.safetensors`; everything but tensors is JSON in its header, under "state".

    Args:
        rng_states: one per rank, see `workflows.device.torch_device.rng_state`.
        about: extra JSON.
    """
    model, optimizer = training.model, training.step.optimizer
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        tensors |= {f"adam.{key}.{name}": value for key, value in optimizer.state[parameter].items()}
    tensors |= {f"rng.{rank}": state for rank, state in enumerate(rng_states)}
    state = {"format": FORMAT, **about, "scaler": training.step.state_dict()}
    state["history"] = training.history.to_json()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_tensors(folder / LAST_NAME, tensors, {"state": json.dumps(state)})


def load_last(folder: Path, training: Training, world: ProcessGroup) -> dict[str, Any] | None:
    """Restore training from `save_last`; each rank restores its own random state.

    Returns:
        `about`; None if nothing was saved yet.

    Raises:
        UserError: the file is not a saved state, or belongs to another network or number of ranks.
    """
    path = folder / LAST_NAME
    if not path.exists():
        return None
    try:
        if not path.is_file():
            raise ValueError("not a file")
        with safetensors.safe_open(path, "pt") as file:
            about = parse_json((file.metadata() or {})["state"], path, "the state of a run", _REMEDY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        history = History.from_json(about["history"])
        if not is_count(about.get("log_bytes", 0)) or not all(map(is_number, about["scaler"].values())):
            raise ValueError("log_bytes and scaler should be numbers, 0 or more")
    except _WRONG as err:
        raise UserError(_no_state(path, err)) from None
    ranks = sum(name.startswith("rng.") for name in tensors)
    if ranks != world.size:
        raise UserError(f"{folder} was trained with {ranks} processes, got {world.size}; resume it with --gpus {ranks}")
    weights = {name.removeprefix("model."): tensors[name] for name in tensors if name.startswith("model.")}
    fill(training.model, weights, path)
    optimizer = training.step.optimizer
    try:
        for name, parameter in training.model.named_parameters():
            state = optimizer.state[parameter]
            for key, shape in (("step", ()), ("exp_avg", parameter.shape), ("exp_avg_sq", parameter.shape)):
                saved = tensors[f"adam.{key}.{name}"]
                if saved.shape != shape or not saved.is_floating_point():
                    raise ValueError(f"adam.{key}.{name} has another shape or type")
                if key in state:  # perhaps a view of a flat buffer
                    state[key].copy_(saved)
                else:
                    state[key] = saved.to(world.device)
        set_rng_state(world.device, tensors[f"rng.{world.rank}"])
        if about["scaler"]:  # saved by a step without one otherwise; a new one keeps its defaults
            training.step.load_state_dict(about["scaler"])
    except _WRONG as err:
        raise UserError(_no_state(path, err)) from None
    training.history = history
    return about


def _no_state(path: Path, err: Exception) -> str:
    return f"{path}: no state of a run that could be resumed ({bounded(repr(err), 200)}); {_REMEDY}"
