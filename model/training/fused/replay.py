"""The fused step's gradients by autograd in float64: its dropout decisions and its roundings are replayed.

Roundings matter because they decide which units ReLU lets through.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from model.training.fused.plan import Plan

_MASK = (1 << 32) - 1


def kept(seed: int, limit: int, samples: Tensor, units: Tensor) -> Tensor:
    """What `kernels._kept` decides, [samples, units] bool, of int64 positions of samples and units."""

    def scrambled(x: Tensor) -> Tensor:
        return (x ^ x >> 15) * 0x846CA68B & _MASK

    def mixed(x: Tensor) -> Tensor:
        x = scrambled((x ^ x >> 16) * 0x7FEB352D & _MASK)
        return x ^ x >> 16

    keys = mixed(samples & _MASK ^ mixed(samples.new_tensor(seed & _MASK)))
    x = (keys[:, None] ^ mixed(units * 0x9E3779B9 + 1 & _MASK)[None, :]) * 0x7FEB352D & _MASK
    return scrambled(x) >= limit


def rounded(x: Tensor, plan: Plan) -> Tensor:
    """float32 values as the operands of products, as `kernels._rounded` makes them."""
    if plan.products == "tf32":
        bits = x.view(torch.int32)
        return (bits + 0xFFF + (bits >> 13 & 1) & ~0x1FFF).view(torch.float32)
    return x.to(plan.kind).float()


class _Rounding(torch.autograd.Function):
    """Round float64 values as the step does; gradients pass unchanged."""

    @staticmethod
    def forward(context: object, x: Tensor, plan: Plan, to: str) -> Tensor:
        given = x.float()
        return (rounded(given, plan) if to == "product" else given.to(plan.kind)).double()

    @staticmethod
    def backward(context: object, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


def replay(
    parameters: Mapping[str, Tensor],
    users: Tensor,
    items: Tensor,
    labels: Tensor,
    plan: Plan,
    dropout: tuple[int, int],
    scale_up: float,
    weight: float,
    samples: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The summed loss, and the gradients of `weight` times it by the parameter's name, in float64.

    Args:
        parameters: of `NeuMF`, by name.
        users, items, labels: [n].
        dropout: seed, and the rate times 2**32.
        scale_up: multiplies the units that are kept.
        samples: positions in the step's batch, int64 [n]; None for 0 … n - 1.
    """
    found = {name: value.detach().double().requires_grad_() for name, value in parameters.items()}
    users, items = users.long(), items.long()
    samples = torch.arange(len(items), device=items.device) if samples is None else samples
    stored, operand = (lambda x, to=to: _Rounding.apply(x, plan, to) for to in ("stored", "product"))
    depth = sum(name.startswith("mlp.") and name.endswith(".weight") for name in found)
    by_user, by_item = stored(found["mlp.0.weight"]).chunk(2, dim=1)
    x = stored(stored(found["mlp_user_embed.weight"])[users] @ by_user.T)
    x = x + stored(stored(found["mlp_item_embed.weight"])[items] @ by_item.T)
    hidden = x
    for level in range(depth):
        x = (hidden @ stored(found[f"mlp.{level}.weight"]).T if level else x) + found[f"mlp.{level}.bias"]
        units = torch.arange(x.shape[1], device=x.device) + plan.units_at[level]
        scaled = _Single.apply(torch.relu(x), scale_up)
        hidden = operand(scaled * kept(*dropout, samples, units))
    gmf = stored(found["mf_user_embed.weight"])[users] * stored(found["mf_item_embed.weight"])[items]
    logits = torch.cat((gmf, hidden), dim=1) @ found["final.weight"][0] + found["final.bias"]
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.double(), reduction="sum")
    names = list(found)
    gradients = torch.autograd.grad(loss * weight, [found[name] for name in names])
    return loss.detach(), dict(zip(names, gradients, strict=True))


class _Single(torch.autograd.Function):
    """A product by a number, rounded to float32 as the kernel's is."""

    @staticmethod
    def forward(context: object, x: Tensor, factor: float) -> Tensor:
        context.factor = factor  # type: ignore[attr-defined]
        return (x.float() * torch.tensor(factor, dtype=torch.float32)).double()

    @staticmethod
    def backward(context: object, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * context.factor, None  # type: ignore[attr-defined]
