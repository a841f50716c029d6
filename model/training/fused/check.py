"""The start-up check of the fused step: on this device, against float64, before training relies on it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model.data.batch import Batch
from model.network.neumf import NeuMF, NeuMFConfig
from model.training.fused.plan import Plan, Tile
from model.training.fused.replay import Replayed, replay
from model.training.fused.step import FusedStep, TableAdam, Tiles
from model.training.optimizer import create_state
from workflows.device.torch_device import rng_state, set_rng_state

_N_USERS, _N_ITEMS = 37, 23  # few, so that sums have several rows
_WEIGHT, _SEED = 1 / 64, 3
_PROGRAMS = 2  # fewer than tiles, so that one adds up several, as all do in a full batch
_RATE, _BETAS, _EPS = 0.01, (0.25, 0.5), 1e-8
# Relative to the largest element of a tensor: several times the roundings of gradients, which are not replayed.
_TOLERANCE = {"fp16": 4e-3, "bf16": 2e-2, "tf32": 4e-3, "fp32": 2e-5}
_ADAM_TOLERANCE = 1e-4  # in every precision: the gradients are the same


class DifferenceError(Exception):
    """The fused step computes something else than it should; the message says what."""


def check_fused_step(
    config: NeuMFConfig, group: int, precision: str, tile: Tile, batch: int, device: torch.device
) -> float:
    """Check the step for a network of this shape, on small tables.

    Tiles that are ragged, with dropout: every gradient against float64, a step of Adam, no element left unwritten,
    twice the same bits. Then the first, middle and last tile of a full batch.

    Args:
        batch: samples of a step.
    Returns:
        The largest difference, as a share of what is allowed.

    Raises:
        DifferenceError: something differs. Compilers and the device raise errors of their own.
    """
    states = torch.get_rng_state(), rng_state(device)
    try:
        network = _network(replace(config, n_users=_N_USERS, n_items=_N_ITEMS), device)
        check = _Check(network, precision, _TOLERANCE[precision])
        step = FusedStep(network, group, precision, tile)
        step.programs = _PROGRAMS
        for size in sorted({group, 1}):
            plan = step.plan(size)
            n_groups = 2 * plan.samples_per_tile // size + 1
            check.gradients(step, _batch(n_groups * size, size, device), plan)
        check.adam(group, tile, _batch(3 * group, group, device))
        step = FusedStep(network, group, precision, tile)
        check.large(step, _batch(max(1, batch // group) * group, group, device))
    finally:
        torch.set_rng_state(states[0])
        set_rng_state(device, states[1])
    return check.worst


def _network(config: NeuMFConfig, device: torch.device) -> NeuMF:
    """A network in which sums are exact in every precision, so that roundings do not decide what ReLU lets through.

    Parameters are multiples of 1/4, many of them 0; biases are odd multiples of 1/256, so that nothing is 0 before
    ReLU.
    """
    draw = torch.Generator().manual_seed(1)
    network = NeuMF(config, draw)
    for parameter in network.parameters():
        with torch.no_grad():
            parameter.copy_(torch.randint(-2, 3, parameter.shape, generator=draw) / 4)
            if parameter.ndim == 1:
                parameter.div_(4).add_(1 / 256)
            elif parameter.shape[1] > 32:  # a few dozen terms
                parameter.mul_(torch.rand(parameter.shape, generator=draw) < 32 / parameter.shape[1])
    network.to(device)
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, torch.nan)
    return network


def _batch(n: int, group: int, device: torch.device) -> Batch:
    """Samples of all users and items, the first of a group with label 1."""
    draw = torch.Generator().manual_seed(2)
    users = torch.randint(_N_USERS, (n // group,), generator=draw, dtype=torch.int32).repeat_interleave(group)
    items = torch.randint(_N_ITEMS, (n,), generator=draw, dtype=torch.int32)
    labels = (torch.arange(n) % group == 0).float()
    return Batch.from_columns((column.to(device) for column in (users, items, labels)), group)


def _run(step: FusedStep, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradients, with the same dropout each time."""
    torch.manual_seed(_SEED)
    weight = torch.tensor(_WEIGHT, device=batch.labels.device)
    loss = step.gradients(batch, weight, fill=torch.nan)
    return loss.clone(), {name: _gradient(each) for name, each in step.model.named_parameters()}


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad.clone()


def _replay(step: FusedStep, batch: Batch, plan: Plan, samples: Tensor | None = None) -> Replayed:
    seed, limit = step.dropout.tolist()
    parameters = dict(step.model.named_parameters())
    return replay(parameters, batch, plan, (seed, limit), step.scale_up, _WEIGHT, samples)


@dataclass
class _Check:
    network: NeuMF
    precision: str
    tolerance: float
    worst: float = 0.0

    def gradients(self, step: FusedStep, batch: Batch, plan: Plan) -> None:
        """Every gradient, with the roundings replayed; and the same bits again."""
        loss, gradients = _run(step, batch)
        expected = _replay(step, batch, plan)
        self._compare("the loss", loss, expected.loss)
        for name, gradient in gradients.items():
            self._compare(f"the gradient of {name}", gradient, expected.gradients[name])
        again_loss, again = _run(step, batch)
        for name, one, other in [("loss", loss, again_loss), *((name, gradients[name], again[name]) for name in again)]:
            if not torch.equal(one, other):
                raise DifferenceError(f"{name}: computed again, it has other bits")

    def adam(self, group: int, tile: Tile, batch: Batch) -> None:
        """A step of Adam within the sums, against torch's on the same gradients.

        It is not the first, in which betas cancel.
        """
        _, gradients = _run(FusedStep(self.network, group, self.precision, tile), batch)
        networks = copy.deepcopy(self.network), copy.deepcopy(self.network)
        optimizers = [torch.optim.Adam(each.parameters(), _RATE, _BETAS, _EPS) for each in networks]
        for optimizer in optimizers:
            create_state(optimizer)
            for state in optimizer.state.values():
                for name, value in (("step", 2.0), ("exp_avg", _WEIGHT / 2), ("exp_avg_sq", _WEIGHT**2)):
                    state[name].fill_(value)
        for network in networks:
            for name, parameter in network.named_parameters():
                parameter.grad = gradients[name].clone()
        optimizers[1].step()
        rate = torch.tensor(_RATE, device=batch.labels.device)
        step = FusedStep(networks[0], group, self.precision, tile, TableAdam(optimizers[0], rate))
        _run(step, batch)
        start, expected = dict(self.network.named_parameters()), dict(networks[1].named_parameters())
        for name, parameter in networks[0].named_parameters():
            if any(parameter is table for table in step.tables):
                moved, should = (value.detach() - start[name].detach() for value in (parameter, expected[name]))
                self._compare(f"the change of {name} by Adam", moved, should, _ADAM_TOLERANCE)

    def large(self, step: FusedStep, batch: Batch) -> None:
        """The first, middle and last tile of a batch."""
        plan = step.plan(batch.group_size)
        torch.manual_seed(_SEED)
        tiles = step.tiles(batch, plan, torch.nan)
        n, each = len(batch), plan.samples_per_tile
        n_tiles = -(-n // each)
        for tile in sorted({0, n_tiles // 2, n_tiles - 1}):
            start, stop = tile * each, min(n, (tile + 1) * each)
            samples = torch.arange(start, stop, device=batch.labels.device)
            self._compare_tile(
                tiles, f"tile {tile} of {n_tiles}", samples, _replay(step, batch.cut(start, stop), plan, samples)
            )

    def _compare_tile(self, tiles: Tiles, where: str, samples: Tensor, expected: Replayed) -> None:
        plan, unit = tiles.plan, _WEIGHT / tiles.plan.scale
        self._compare(f"the logits' gradient in {where}", tiles.d_logits[samples] * unit, expected.d_logits)
        for level, (d_level, acts) in enumerate(zip(expected.d_levels, expected.acts, strict=True)):
            width, layer = d_level.shape[1], f"hidden layer {level + 1} in {where}"
            if not plan.sums_at[level]:
                d_found = tiles.level(tiles.grads, level)[samples, :width].float() * unit
                self._compare(f"the gradient of {layer}", d_found, d_level)
            if level < len(plan.widths) - 1 and not plan.sums_at[level + 1]:
                self._compare(layer, tiles.level(tiles.acts, level)[samples, :width], acts)
        groups = samples[:: plan.group] // plan.group
        rows = [("GMF's", tiles.d_user_gmf, expected.d_user_gmf)]
        if plan.group > 1:
            rows.append(("the MLP's", tiles.d_user_first, expected.d_levels[0]))
        for name, found, each in rows:
            of_groups = each.view(len(groups), plan.group, -1).sum(1)
            found_rows = found[groups, : each.shape[1]].float() * unit
            self._compare(f"{name} gradient of users in {where}", found_rows, of_groups)

    def _compare(self, what: str, found: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
        tolerance = self.tolerance if tolerance is None else tolerance
        largest = float(expected.detach().abs().max().clamp(min=1e-30))
        error = float((found.detach().double() - expected.detach()).abs().max()) / largest
        self.worst = max(self.worst, error / tolerance)
        if not error <= tolerance:  # NaN, too
            raise DifferenceError(f"{what} differs by {error:.1e} of the largest element, {tolerance:.0e} allowed")
