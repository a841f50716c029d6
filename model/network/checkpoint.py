"""Trained weights on disk: safetensors and JSON, and the reference's `model.pth`."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from model.network.neumf import NeuMF, NeuMFConfig, require_network
from model.network.weights import check_weights, read_weights
from preprocessing.spec.feature_columns import SideFeature
from preprocessing.spec.feature_spec import MAX_IDS
from workflows.common.documents import MAX_PATH, load_json
from workflows.common.errors import UserError, bounded
from workflows.common.files import replace_file, write_json
from workflows.common.staging import staged_file

WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"
FORMAT = 1
_MAX_CONFIG_BYTES = 1 << 26  # a bit per user, as text: see `model.data.record`
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
        known = read_weights(path)
    except UserError:
        return None
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in known.items()}
    if found != {"users": ((n_users, width), torch.float32), "items": ((n_items, width), torch.float32)}:
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
        UserError: not a run, weights that do not fit its config, or a network that does not fit into memory.
    """
    shape, config = read_config(folder)
    require_network(shape, str(folder / CONFIG_NAME))
    weights = read_weights(folder / WEIGHTS_NAME)
    with torch.device("meta"):
        check_weights(NeuMF(shape), weights, folder / WEIGHTS_NAME, _AS_IN_TRAINING)
    model = NeuMF(shape)
    _set_weights(model, weights, folder / WEIGHTS_NAME)
    return Run(folder, model.to(device).eval(), config)


def read_config(folder: Path) -> tuple[NeuMFConfig, dict[str, Any]]:
    """The shape of a run's network, and all of the run's `config.json`.

    Raises:
        UserError: not a run.
    """
    path = folder / CONFIG_NAME
    if not path.exists():
        raise UserError(f"{folder} is no trained run (no {CONFIG_NAME}); train one: python train.py --output {folder}")
    config = load_json(path, "the config of a trained run", max_bytes=_MAX_CONFIG_BYTES, paths=True)
    try:
        shape = _config(config["model"])
        paths = [config[name] for name in ("data", "feature_spec_file")]
        if not all(isinstance(path, str) and len(path) <= MAX_PATH for path in paths):
            raise ValueError(f"data and feature_spec_file should be text of at most {MAX_PATH:,} characters")
        if not isinstance(config.get("train", {}), dict):
            raise ValueError("train should be names and values")
        if not all(isinstance(name, str) for name in dict(config.get("features", {})).values()):
            raise ValueError("features should be names")
    except (ValueError, KeyError, TypeError) as err:
        raise UserError(f"{path} is not the config of a trained run ({bounded(repr(err), 200)})") from None
    except UserError as err:
        raise UserError(f"{path} is not the config of a trained run ({bounded(str(err), 200)})") from None
    return shape, config


def _config(shape: dict[str, Any]) -> NeuMFConfig:
    """Parse the network's shape from JSON; raises ValueError, KeyError or TypeError if it is invalid."""
    known = dict(shape, layers=tuple(shape["layers"]))
    for side in ("row_side", "item_side"):
        known[side] = tuple(SideFeature(**feature) for feature in known.get(side, ()))
    features = [*known["row_side"], *known["item_side"]]
    sizes = [known["n_users"], known["n_items"], known.get("factors", 0), *known["layers"]]
    sizes += [feature.cardinality for feature in features if feature.cardinality is not None]
    if not all(type(size) is int and 0 <= size <= MAX_IDS for size in sizes):
        raise ValueError(f"sizes should be whole numbers 0 .. {MAX_IDS}")
    if not all(isinstance(feature.name, str) for feature in features):
        raise ValueError("side features should have names")
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


def fill(model: NeuMF, weights: dict[str, Any], path: Path, remedy: str = _AS_IN_TRAINING) -> None:
    """Set all weights of a network.

    Raises:
        UserError: as `check_weights`, or an item's side feature is beyond its cardinality.
    """
    check_weights(model, weights, path, remedy)
    _set_weights(model, weights, path)


def _set_weights(model: NeuMF, weights: dict[str, Any], path: Path) -> None:
    for number, feature in enumerate(model.config.item_side):
        values = weights[f"item_side_{number}"]
        if feature.cardinality is not None and not ((values >= 0) & (values <= feature.cardinality)).all():
            raise UserError(
                f"{path}: item_side_{number} holds values of {bounded(feature.name)!r} beyond its cardinality"
            )
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
