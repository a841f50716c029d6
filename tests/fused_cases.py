"""Networks and batches for the fused step in Triton's interpreter, and what the step should give."""

from __future__ import annotations

import interpreted_triton  # noqa: F401
import torch
from torch import Tensor

from model.data.batch import Batch
from model.network.neumf import NeuMF, NeuMFConfig
from model.training.fused.replay import Replayed, replay
from model.training.fused.step import FusedStep

N_USERS, N_ITEMS = 9, 7
WEIGHT = 0.01  # of the summed loss
TOLERANCE = {"fp32": 2e-6, "tf32": 1e-3, "fp16": 1e-3, "bf16": 8e-3}  # relative to a gradient's largest element


def network(
    layers: tuple[int, ...] = (32, 16),
    factors: int = 8,
    dropout: float = 0.5,
    n_users: int = N_USERS,
    n_items: int = N_ITEMS,
) -> NeuMF:
    """A network of random weights under which values keep their size from layer to layer."""
    config = NeuMFConfig(n_users=n_users, n_items=n_items, factors=factors, layers=layers, dropout=dropout)
    g = torch.Generator().manual_seed(1)
    model = NeuMF(config, g)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            of_layer = name.startswith(("mlp.", "final.")) and parameter.ndim == 2
            parameter.normal_(0.0, (2 / parameter.shape[1]) ** 0.5 if of_layer else 0.3, generator=g)
            parameter.grad = torch.zeros_like(parameter)
    return model


def samples(groups: int, group: int, n_users: int = N_USERS, n_items: int = N_ITEMS) -> Batch:
    """Random users and items; the first of each group is positive. Every other user and item is left out."""
    g = torch.Generator().manual_seed(2)
    users = torch.randint(-(-n_users // 2), (groups,), generator=g).mul_(2).repeat_interleave(group)
    items = torch.randint(-(-n_items // 2), (groups * group,), generator=g).mul_(2)
    labels = (torch.arange(groups * group) % group == 0).float()
    return Batch(users.int(), items.int(), labels, (), group)


def run(step: FusedStep, batch: Batch, seed: int = 5) -> tuple[Tensor, dict[str, Tensor]]:
    """The summed loss and the gradients of WEIGHT times it; all that the step does not write is NaN."""
    torch.manual_seed(seed)  # dropout's seed is drawn from torch's generator
    for parameter in step.model.parameters():
        assert parameter.grad is not None
        parameter.grad.fill_(torch.nan)
    loss = step.gradients(batch, torch.tensor(WEIGHT), fill=torch.nan)
    return loss, {name: parameter.grad.clone() for name, parameter in step.model.named_parameters()}  # type: ignore


def replayed(step: FusedStep, batch: Batch, samples: Tensor | None = None) -> Replayed:
    """What the step's last run should have given; `samples` are the positions of the batch in that run's."""
    seed, limit = step.dropout.tolist()
    parameters, plan = dict(step.model.named_parameters()), step.plan(batch.group_size)
    return replay(parameters, batch, plan, (seed, limit), step.scale_up, WEIGHT, samples)


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """The largest difference of each gradient, relative to the gradient's largest element."""
    assert found.keys() == expected.keys()
    return {
        name: float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-30))
        for name, value in expected.items()
    }


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert [name for name, value in found.items() if not value.isfinite().all()] == []
    apart = distance(found, expected)
    assert max(apart.values()) <= tolerance, apart
