"""Trained weights on disk: safetensors and JSON, and the reference's `model.pth`."""

from __future__ import annotations

import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from model.network.neumf import NeuMF, NeuMFConfig
from preprocessing.spec.feature_columns import SideFeature
from workflows.common.errors import UserError
from workflows.common.files import replace_file, write_json
from workflows.common.staging import staged_file

WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"
FORMAT = 1
_AS_IN_TRAINING = "set --factors, --layers and --data as in training"


def save_model(folder: Path, model: NeuMF, about: dict[str, Any]) -> None:
    """Write the weights and everything needed to use them; each file is written atomically.

    Args:
        about: extra JSON for the config: path of the data, training settings.
    """
    save_tensors(folder / WEIGHTS_NAME, weights_of(model))
    write_json(folder / CONFIG_NAME, {"format": FORMAT, "model": asdict(model.config), **about})


def weights_of(model: NeuMF) -> dict[str, torch.Tensor]:
    """A network's state dict on the host."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], about: dict[str, str] | None = None) -> None:
    """Atomically write contiguous host tensors as safetensors, with `about` as text in the header."""
    size = sum(tensor.nbytes for tensor in tensors.values())
    with staged_file(path, overwrite=True, size=size) as partial:
        try:
            safetensors.torch.save_file(tensors, partial, about)
        except safetensors.SafetensorError as err:
            raise OSError(str(err)) from None


def save_factors(path: Path, users: torch.Tensor, items: torch.Tensor) -> None:
    """Atomically write the user and item factors of a dot product."""
    save_tensors(path, {"users": users.detach().cpu().contiguous(), "items": items.detach().cpu().contiguous()})


def load_factors(path: Path, n_users: int, n_items: int, width: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Read the output of `save_factors`; None if it is missing or something else."""
    try:
        known = safetensors.torch.load_file(path)
    except (OSError, safetensors.SafetensorError):
        return None
    shapes = {name: tuple(tensor.shape) for name, tensor in known.items()}
    if shapes != {"users": (n_users, width), "items": (n_items, width)}:
        return None
    return known["users"], known["items"]


@dataclass(frozen=True)
class Run:
    """A trained run: its network in evaluation mode, and its config."""

    folder: Path
    model: NeuMF
    config: dict[str, Any]


def load_run(folder: Path, device: torch.device) -> Run:
    """Load a run folder.

    Raises:
        UserError: not a run, or weights that do not fit its config.
    """
    shape, config = read_config(folder)
    model = NeuMF(shape)
    try:
        weights = safetensors.torch.load_file(folder / WEIGHTS_NAME)
    except (OSError, safetensors.SafetensorError) as err:
        raise UserError(f"{folder / WEIGHTS_NAME}: not readable weights ({err})") from None
    fill(model, weights, folder / WEIGHTS_NAME)
    return Run(folder, model.to(device).eval(), config)


def read_config(folder: Path) -> tuple[NeuMFConfig, dict[str, Any]]:
    """The shape of a run's network, and all of the run's `config.json`.

    Raises:
        UserError: not a run.
    """
    path = folder / CONFIG_NAME
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        shape = _config(config["model"])
        if not all(isinstance(config[name], str) for name in ("data", "feature_spec_file")):
            raise ValueError("data and feature_spec_file should be text")
        if not all(isinstance(name, str) for name in dict(config.get("features", {})).values()):
            raise ValueError("features should be names")
    except FileNotFoundError:
        raise UserError(
            f"{folder} is no trained run (no {CONFIG_NAME}); train one: python train.py --output {folder}"
        ) from None
    except (ValueError, KeyError, TypeError) as err:
        raise UserError(f"{path} is not the config of a trained run ({err!r})") from None
    return shape, config


def _config(shape: dict[str, Any]) -> NeuMFConfig:
    """Parse the network's shape from JSON; raises ValueError, KeyError or TypeError if it is invalid."""
    known = dict(shape, layers=tuple(shape["layers"]))
    for side in ("row_side", "item_side"):
        known[side] = tuple(SideFeature(**feature) for feature in known.get(side, ()))
    return NeuMFConfig(**known)


def save_reference(folder: Path, model: NeuMF) -> None:
    """Write `model.pth` as the reference does: a state dict with the reference's parameter names."""
    write_reference(folder / "model.pth", model)


def write_reference(path: Path, model: NeuMF) -> None:
    """Atomically write a state dict with the reference's parameter names, in torch's format."""
    content = io.BytesIO()  # torch hides why a file could not be written
    torch.save(weights_of(model), content)
    replace_file(path, content.getbuffer())


def load_weights(path: Path, model: NeuMF) -> None:
    """Load weights from the reference's `model.pth` (with or without a `module.` prefix) or safetensors.

    Raises:
        UserError: unreadable, or names or shapes differ; lists all differences.
    """
    remedy = (
        f"{_AS_IN_TRAINING}, or name a run, whose users and items are carried over by id (its {CONFIG_NAME} says which)"
    )
    fill(model, read_weights(path), path, remedy)


def read_weights(path: Path) -> dict[str, Any]:
    """The content of a file that `load_weights` takes, without the prefix.

    Raises:
        UserError: unreadable, or not a state dict.
    """
    try:
        if path.suffix == ".safetensors":
            weights = safetensors.torch.load_file(path)
        else:
            weights = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # torch and safetensors raise many exception types for foreign files
        first_line = str(err).splitlines()[0] if str(err) else repr(err)
        raise UserError(f"{path}: not a readable checkpoint ({first_line})") from None
    if not isinstance(weights, dict):
        raise UserError(f"{path}: expected a state dict, got {type(weights).__name__}")
    return {str(name).removeprefix("module."): value for name, value in weights.items()}


def fill(model: NeuMF, weights: dict[str, Any], path: Path, remedy: str = _AS_IN_TRAINING) -> None:
    """Set all weights of a network.

    Raises:
        UserError: as `check_shapes`, or an item's side feature is beyond its cardinality.
    """
    check_shapes(model, weights, path, remedy)
    for number, feature in enumerate(model.config.item_side):
        values = weights[f"item_side_{number}"]
        if feature.cardinality is not None and not ((values >= 0) & (values <= feature.cardinality)).all():
            raise UserError(f"{path}: item_side_{number} holds values of {feature.name!r} beyond its cardinality")
    model.load_state_dict({name: weights[name] for name in model.state_dict()})


def check_shapes(model: NeuMF, weights: dict[str, Any], path: Path, remedy: str) -> None:
    """Raises UserError if names or shapes of weights are not those of the network; lists all differences."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items() if isinstance(value, torch.Tensor)}
    if expected != found:
        wrong = [
            f"{name}: expected {expected.get(name, 'nothing')}, got {found.get(name, 'nothing')}"
            for name in sorted(expected.keys() | found.keys())
            if expected.get(name) != found.get(name)
        ]
        raise UserError(f"{path} does not fit the network ({'; '.join(wrong)}); {remedy}")
