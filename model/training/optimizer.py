"""The optimiser, and the flat gradients that all ranks sum."""

from __future__ import annotations

import torch
from torch import Tensor

from model.network.neumf import NeuMF
from model.training.config import TrainConfig


def adam(model: NeuMF, config: TrainConfig) -> torch.optim.Adam:
    """The optimiser, over all parameters."""
    betas = (config.beta1, config.beta2)
    return torch.optim.Adam(model.parameters(), lr=config.learning_rate, betas=betas, eps=config.eps, fused=True)


def create_state(optimizer: torch.optim.Adam) -> None:
    """The state that torch creates in the first step: steps counted on the device in float32, and both moments."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter] = {
                "step": torch.zeros((), device=parameter.device),
                "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            }


def shared_gradients(model: NeuMF) -> Tensor:
    """One flat tensor backing the gradients of all parameters, so that a single all-reduce sums them over the ranks."""
    parameters = list(model.parameters())
    shared = torch.zeros(
        sum(parameter.numel() for parameter in parameters), dtype=parameters[0].dtype, device=parameters[0].device
    )
    start = 0
    for parameter in parameters:
        parameter.grad = shared[start : start + parameter.numel()].view_as(parameter)
        start += parameter.numel()
    return shared
