"""Weights that others wrote: read without running anything that is in the file, and checked before they are used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from workflows.common.errors import UserError, bounded
from workflows.device.torch_file import load_torch_file

_LISTED = 20  # differences in a message
_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_INTEGERS = (torch.int32, torch.int64, torch.int16, torch.int8, torch.uint8)
_FLOAT32 = torch.finfo(torch.float32)


def read_weights(path: Path) -> dict[str, Any]:
    """The content of safetensors, or of a state dict saved by torch, without a `module.` prefix.

    Raises:
        UserError: unreadable, or not a state dict.
    """
    try:
        if path.suffix != ".safetensors":
            weights = load_torch_file(path)
        elif path.is_file():
            weights = safetensors.torch.load_file(path)
        else:
            raise ValueError("not a file" if path.exists() else "no such file")
    except Exception as err:  # safetensors raises many types for files of others
        first_line = str(err).splitlines()[0] if str(err) else type(err).__name__
        raise UserError(f"{path}: not a readable checkpoint ({bounded(first_line, 200)})") from None
    if not isinstance(weights, dict):
        raise UserError(f"{path}: expected a state dict, got {type(weights).__name__}")
    if odd := [name for name in weights if not isinstance(name, str)]:
        raise UserError(f"{path}: expected a state dict, whose names are text, got {bounded(repr(odd[0]))} for a name")
    found = {name.removeprefix("module."): value for name, value in weights.items()}
    if len(found) < len(weights):
        raise UserError(f"{path}: some weights are there twice, with and without the prefix module.; save them once")
    return found


def check_weights(model: nn.Module, weights: Mapping[str, Any], path: Path, remedy: str) -> None:
    """Check names, shapes and values of weights against a network, which may be on torch's meta device.

    Raises:
        UserError: they differ, or tensors are not dense numbers, or not finite; lists what is wrong.
    """
    expected = model.state_dict()
    named = [name for name in weights if name in expected or isinstance(weights[name], Tensor)]
    wrong = []
    for name in sorted({*expected, *named}):
        shape = str(tuple(expected[name].shape)) if name in expected else "nothing"
        found = _shape(weights.get(name))
        if shape != found:
            wrong.append(f"{bounded(name)}: expected {shape}, got {found}")
    if wrong:
        nested = [name for name in weights if isinstance(weights[name], dict)]
        if nested:
            remedy = f"perhaps they are in its entry {bounded(repr(nested[0]))}: save that alone"
        more = f"; and {len(wrong) - _LISTED:,} more" if len(wrong) > _LISTED else ""
        raise UserError(f"{path} does not fit the network ({'; '.join(wrong[:_LISTED])}{more}); {remedy}")
    for name, like in expected.items():
        if reason := _unusable(weights[name], like.is_floating_point()):
            raise UserError(f"{path}: {name} {reason}")


def _shape(value: Any) -> str:
    if value is None:
        return "nothing"
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.layout is not torch.strided or value.is_nested or value.is_quantized or value.device.type == "meta":
        kind = "quantized" if value.is_quantized else "meta" if value.device.type == "meta" else "sparse or nested"
        return f"a {kind} tensor, not a dense one"
    return str(tuple(value.shape))


def _unusable(value: Tensor, is_weight: bool) -> str:
    """The fault in the type or values of a dense tensor; empty if there is none."""
    if value.dtype not in (_FLOATS if is_weight else _INTEGERS):
        return f"should hold {'floating-point numbers' if is_weight else 'integers'}, got {value.dtype}"
    if is_weight and value.numel():
        low, high = (float(one) for one in torch.aminmax(value.detach()))  # NaN if there is any
        if not (_FLOAT32.min <= low and high <= _FLOAT32.max):
            return "holds NaN or values beyond float32; train again, perhaps with a lower --learning_rate"
    return ""
