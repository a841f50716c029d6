"""Adam over parameters in flat buffers, of which each rank updates its share (ZeRO; Rajbhandari et al. 2020)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.adam import adam as adam_step

from model.distributed.process_group import ProcessGroup
from model.network.neumf import NeuMF

Region = Literal["gmf", "rest"]
_ALIGNMENT = 64  # elements at whose multiples parameters and shares start, for wide memory accesses


@dataclass
class _Region:
    """Parameters whose gradients are complete at the same time, and travel together.

    Attributes:
        buffers: float32 [4, length]: parameters, gradients, first and second moments; the length is a multiple of the
            number of ranks.
        own: float32 [4, length / ranks], the part of `buffers` that this rank updates.
        steps: float32, Adam's count of steps for each parameter.
        summed: waits for the sums of the gradients, once `ready`.
    """

    buffers: Tensor
    own: Tensor
    steps: Tensor
    summed: Callable[[], None] | None = None


class ShardedAdam:
    """Steps of Adam on gradients that it sums over the ranks, in place of an all-reduce and `torch.optim.Adam.step`.

    Parameters, gradients and both moments move to four flat buffers, of which the network's parameters, their `grad`
    and the optimiser's state become views; the padding between them stays 0. There are two regions: "gmf", the tables
    of the GMF branch, whose gradients are complete first; and "rest". A rank updates an equal part of each, and holds
    the sums of gradients and the moments of this part only.

    In every step all ranks call `ready` for both regions in the same order, then `step`. No call waits on the host for
    a GPU, and no memory moves, so CUDA graphs may contain them.

    Attributes:
        gradients: float32, flat. After a step it holds sums in this rank's parts, elsewhere its own gradients.
    """

    def __init__(self, model: NeuMF, optimizer: torch.optim.Adam, world: ProcessGroup) -> None:
        """
        Args:
            optimizer: over all parameters, before its first step. Its learning rate is not used.
        """
        self._optimizer, self._world = optimizer, world
        members: dict[Region, list[nn.Parameter]] = {"gmf": [], "rest": []}
        for name, parameter in model.named_parameters():
            members["gmf" if name.startswith("mf_") else "rest"].append(parameter)
        # The GMF tables of --arch mlp have no elements.
        sizes = [max(1, sum(map(_room, parameters))) for parameters in members.values()]
        lengths = [_padded(size, _ALIGNMENT * world.size) for size in sizes]
        memory = torch.zeros(4, sum(lengths), device=world.device)
        self.gradients = memory[1]
        self._regions: dict[Region, _Region] = {}
        for (name, parameters), buffers in zip(members.items(), memory.split(lengths, dim=1), strict=True):
            steps = torch.zeros(len(parameters), device=world.device)
            self._regions[name] = _Region(buffers, buffers[:, world.share(buffers.shape[1])], steps)
            _move(parameters, optimizer, buffers, steps)

    def ready(self, region: Region) -> None:
        """Start summing the gradients of a region over the ranks; they must not be touched until after `step`."""
        known = self._regions[region]
        known.summed = self._world.start_reduce_scatter(known.buffers[1])

    @torch.no_grad()
    def step(self, rate: Tensor) -> None:
        """Update the parameters; every rank gets the same.

        Args:
            rate: the learning rate, a float32 scalar on the device.
        """
        settings = self._optimizer.param_groups[0]
        gathered = []
        for region in self._regions.values():
            assert region.summed is not None, "ready() comes before step()"
            region.summed()
            region.summed = None
            parameters, gradients, means, squares = region.own
            adam_step(
                [parameters],
                [gradients],
                [means],
                [squares],
                [],
                [region.steps[0]],
                fused=True,
                capturable=True,
                amsgrad=False,
                beta1=settings["betas"][0],
                beta2=settings["betas"][1],
                lr=rate,
                weight_decay=settings["weight_decay"],
                eps=settings["eps"],
                maximize=False,
            )
            region.steps[1:] = region.steps[0]
            gathered.append(self._world.start_all_gather(region.buffers[0]))
        for wait in gathered:
            wait()

    def gather_moments(self) -> None:
        """Make the moments in the optimiser's state whole on this rank; called by all ranks."""
        moments = [buffer for region in self._regions.values() for buffer in region.buffers[2:]]
        for wait in [self._world.start_all_gather(buffer) for buffer in moments]:
            wait()


def _move(parameters: Iterable[nn.Parameter], optimizer: torch.optim.Adam, buffers: Tensor, steps: Tensor) -> None:
    """Make parameters, gradients and the optimiser's state views of a region's `buffers` and `steps`."""
    start = 0
    for parameter, step in zip(parameters, steps, strict=True):
        values, gradient, mean, square = (row[start : start + parameter.numel()].view_as(parameter) for row in buffers)
        values.copy_(parameter.detach())
        parameter.data, parameter.grad = values, gradient
        optimizer.state[parameter] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}
        start += _room(parameter)


def _room(parameter: Tensor) -> int:
    """Elements from a parameter's start in a buffer to the next one's."""
    return _padded(parameter.numel(), _ALIGNMENT)


def _padded(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
