"""The fused step's gradients by autograd in float64: its dropout decisions and its roundings are replayed.

Roundings matter because they decide which units ReLU lets through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.data.batch import Batch
from model.training.fused.plan import Plan, rounded

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


class _Rounding(torch.autograd.Function):
    """Rounds float64 values as the step does that stores them (or, as the operands of products); gradients pass."""

    @staticmethod
    def forward(context: Any, x: Tensor, plan: Plan, operands: bool) -> Tensor:
        given = x.float()
        return (rounded(given, plan) if operands else given.to(plan.kind)).double()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0], None, None


@dataclass(frozen=True)
class Replayed:
    """Of a batch of n samples, in float64; gradients are of a weight times the summed loss.

    Attributes:
        loss: summed.
        gradients: by the parameter's name.
        acts: outputs of each hidden layer, [n, width].
        d_levels: gradients of each hidden layer before ReLU, [n, width].
        d_logits: [n].
        d_user_gmf: gradients of each sample's GMF embedding of its user, [n, factors].
    """

    loss: Tensor
    gradients: dict[str, Tensor]
    acts: list[Tensor]
    d_levels: list[Tensor]
    d_logits: Tensor
    d_user_gmf: Tensor


def replay(
    parameters: Mapping[str, Tensor],
    batch: Batch,
    plan: Plan,
    dropout: tuple[int, int],
    scale_up: float,
    weight: float,
    samples: Tensor | None = None,
) -> Replayed:
    """
    Args:
        parameters: of `NeuMF`, by name.
        dropout: seed, and the rate times 2**32.
        scale_up: multiplies the units that are kept.
        samples: positions of the samples in the step's batch, int64 [n]; None for 0 … n - 1.
    """
    found = {name: value.detach().double().requires_grad_() for name, value in parameters.items()}
    users, items = batch.users.long(), batch.items.long()
    samples = torch.arange(len(batch), device=items.device) if samples is None else samples

    def stored(name: str, operand: bool = False) -> Tensor:
        return _Rounding.apply(found[name], plan, operand)

    by_user, by_item = stored("mlp.0.weight").chunk(2, dim=1)
    first = (stored("mlp_user_embed.weight")[users] @ by_user.T, stored("mlp_item_embed.weight")[items] @ by_item.T)
    x = sum(_Rounding.apply(part, plan, False) for part in first)
    acts: list[Tensor] = []
    levels: list[Tensor] = []
    for level, begin in enumerate(plan.units_at[:-1]):
        x = (acts[-1] @ stored(f"mlp.{level}.weight", operand=True).T if level else x) + found[f"mlp.{level}.bias"]
        units = torch.arange(x.shape[1], device=x.device) + begin
        scaled = _Scaling.apply(torch.relu(x), scale_up) * kept(*dropout, samples, units)
        acts.append(_Rounding.apply(scaled, plan, True))
        levels.append(x)
    of_users = stored("mf_user_embed.weight")[users]
    gmf = of_users * stored("mf_item_embed.weight")[items]
    logits = torch.cat((gmf, acts[-1]), dim=1) @ found["final.weight"][0] + found["final.bias"]
    loss = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels.double(), reduction="sum")
    wanted = [*found.values(), *levels, logits, of_users]
    gradients = torch.autograd.grad(loss * weight, wanted)
    n = len(found)
    return Replayed(
        loss=loss.detach(),
        gradients=dict(zip(found, gradients[:n], strict=True)),
        acts=[act.detach() for act in acts],
        d_levels=list(gradients[n:-2]),
        d_logits=gradients[-2],
        d_user_gmf=gradients[-1],
    )


class _Scaling(torch.autograd.Function):
    """Multiplies by a number in float32, as the kernel does."""

    @staticmethod
    def forward(context: Any, x: Tensor, factor: float) -> Tensor:
        context.factor = factor
        return (x.float() * torch.tensor(factor, dtype=torch.float32)).double()

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * context.factor, None
