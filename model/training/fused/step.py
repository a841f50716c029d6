"""The fused step: gradients of a batch from one kernel per tile, and sums by id without atomics.

The first layer on [user; item] is Wu·user + Wi·item, as in `model.training.torch_step`: all items are projected once
per batch, and each group's user once. A kernel takes tiles of whole groups through all further layers, forward and
backward. It writes activations and their gradients for the products of the weights' gradients, and one row per sample
or group for the gradients of the tables; these rows are sorted by id and summed, always in the same order. Nothing
waits for the device or has a data-dependent shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.data.batch import Batch
from model.network.neumf import NeuMF
from model.training.fused import kernels
from model.training.fused.plan import Plan, Tile, rounded
from workflows.device.torch_device import matrix_product, multiprocessors

_GATHERED_ROWS = 16  # that a program of `gather_rows` takes
# Elements that a program of `segment_sum`, a single warp, takes at a time: of the few rows of a user, or of an item.
_OF_A_USER, _OF_AN_ITEM = 512, 1024


@dataclass
class TableAdam:
    """Adam within the sums of rows: the gradients of the large tables are never stored.

    Attributes:
        rate: learning rate, a scalar on the device.
    """

    optimizer: torch.optim.Adam
    rate: Tensor

    def arguments(self, parameter: Tensor) -> tuple[Any, ...]:
        """The last arguments of `kernels.segment_sum`."""
        (group,) = self.optimizer.param_groups
        state = self.optimizer.state[parameter]
        moments = state["exp_avg"], state["exp_avg_sq"], state["step"]
        logs = (math.log(beta) if beta else -math.inf for beta in group["betas"])
        return (*moments, self.rate, *group["betas"], *logs, group["eps"])

    def advance(self, parameters: Sequence[Tensor]) -> None:
        """Count a step of these tables, before their sums."""
        torch._foreach_add_([self.optimizer.state[parameter]["step"] for parameter in parameters], 1.0)


_NO_ADAM = (None, None, None, None, 0.0, 0.0, 0.0, 0.0, 0.0)


class FusedStep:
    """Gradients of a batch, in each parameter's `grad`; of a network without side features, with a hidden layer.

    Attributes:
        tables: the parameters that a `TableAdam` takes; they need no `grad` then.
        dropout, scale_up: as `kernels.tile_step` takes them; each batch has its own seed.
        programs: of `kernels.tile_step`, at most.
    """

    def __init__(
        self, model: NeuMF, group: int, precision: str, tile: Tile | None = None, adam: TableAdam | None = None
    ) -> None:
        """
        Args:
            group: expected samples of a group; batches of other groups are computed sample by sample.
            precision: "fp16", "bf16", "tf32", or "fp32" (slow on a GPU, for tests).
            adam: updates the tables at once.
        """
        self.model, self._adam = model, adam
        self.tables = (model.mf_user_embed.weight, model.mf_item_embed.weight, model.mlp_user_embed.weight)
        config, tile = model.config, tile or Tile()
        self._plans = {size: Plan.of(config, size, precision, tile) for size in {group, 1}}
        plan, device = self._plans[group], model.final.weight.device
        self.programs = tile.programs * multiprocessors(device)
        rate = min((1 << 32) - 1, round(config.dropout * 2**32))
        self.dropout = torch.tensor([0, rate], dtype=torch.int64, device=device)
        self.scale_up = 1.0 / (1.0 - config.dropout)
        width = config.layers[0] // 2
        self._by_user, self._by_item = torch.zeros((2, plan.widths[0], width), dtype=plan.kind, device=device)
        # At least one element, for networks with one hidden layer.
        self._weights = torch.zeros(max(16, plan.weights_at[-1]), dtype=plan.kind, device=device)
        self._small = torch.zeros(plan.sums - 1, device=device)
        self._unit_keys = torch.tensor(plan.unit_keys, dtype=torch.int32, device=device)
        self._copied = self._views(plan, width)
        self._bounds = {n: torch.arange(n + 1, dtype=_id_type(n), device=device) for n in self._sizes}

    @property
    def _layers(self) -> list[nn.Linear]:
        return [layer for layer in self.model.mlp if isinstance(layer, nn.Linear)]

    @property
    def _sizes(self) -> tuple[int, int]:
        return self.model.config.n_users, self.model.config.n_items

    def _views(self, plan: Plan, width: int) -> tuple[list[Tensor], list[Tensor]]:
        """Where the kernels find the layers' parameters, and these parameters."""
        model, layers = self.model, self._layers
        first = layers[0].weight
        head = plan.units_at[-1]
        pairs = [(self._by_user, first[:, :width]), (self._by_item, first[:, width:])]
        for level, layer in enumerate(layers[1:], start=1):
            above, below = plan.widths[level], plan.widths[level - 1]
            at = plan.weights_at[level - 1]
            pairs.append((self._weights[at : at + above * below].view(above, below), layer.weight))
        pairs += [(self._small[at:], layer.bias) for at, layer in zip(plan.units_at, layers, strict=False)]
        factors = model.config.factors
        pairs += [
            (self._small[head:], model.final.weight[0, factors:]),
            (self._small[head + plan.widths[-1] :], model.final.weight[0, :factors]),
            (self._small[-1:], model.final.bias),
        ]
        return [_corner(view, given) for view, given in pairs], [given.detach() for _, given in pairs]

    def gradients(
        self, batch: Batch, weight: Tensor, gmf_done: Callable[[], None] = lambda: None, fill: float | None = None
    ) -> Tensor:
        """The gradients of `weight` times the summed loss of a batch, which has at least one sample.

        Args:
            weight: a scalar on the device.
            gmf_done: called when the gradients of GMF's tables are complete, before those of the MLP.
            fill: value that fills all buffers first; None leaves them as they are. A check passes NaN.
        Returns:
            The summed loss, a scalar on the device.
        """
        plan = self.plan(batch.group_size)
        tiles = self.tiles(batch, plan, fill)
        unit = weight.reshape(1).float() / plan.scale
        if self._adam is not None:
            self._adam.advance(self.tables)
        sums = tiles.parts.sum(0)
        by_user, by_item = self._sorted(tiles.users, self._sizes[0]), self._sorted(batch.items, self._sizes[1])
        model, gmf_head = self.model, self._small[plan.units_at[-1] + plan.widths[-1] :]
        self._sum_rows(
            model.mf_item_embed.weight, tiles.user_gmf, by_item, unit, (tiles.d_logits, plan.group, gmf_head)
        )
        self._sum_rows(model.mf_user_embed.weight, tiles.d_user_gmf, by_user, unit, at_once=_OF_A_USER)
        gmf_done()
        self._mlp_gradients(tiles, by_user, by_item, unit, sums)
        self._small_gradients(plan, sums[: plan.sums] * unit)
        return sums[0]

    def plan(self, group: int) -> Plan:
        """How batches of a group size are computed."""
        return self._plans.get(group) or self._plans[1]

    def tiles(self, batch: Batch, plan: Plan, fill: float | None = None) -> Tiles:
        """Run the tile kernel on a batch: all that its gradients are made of."""
        model, n, n_groups = self.model, len(batch), len(batch) // plan.group
        torch._foreach_copy_(*self._copied)
        if plan.products == "tf32":
            self._weights.copy_(rounded(self._weights, plan))
        self.dropout[:1].random_()
        new = _Buffers(batch.labels.device, plan.kind, fill)
        width = model.config.layers[0] // 2
        user_rows, user_gmf = new(n_groups, width), new(n_groups, plan.factors)
        self._gather(model.mlp_user_embed.weight, batch.users, user_rows, plan.group)
        self._gather(model.mf_user_embed.weight, batch.users, user_gmf, plan.group)
        item_rows = model.mlp_item_embed.weight.detach().to(plan.kind)
        item_gmf = _corner_padded(model.mf_item_embed.weight.detach(), plan.factors).to(plan.kind)
        item_first = matrix_product(item_rows, self._by_item.T, plan.kind)
        user_first = matrix_product(user_rows, self._by_user.T, plan.kind)
        units = plan.units_at[-1]
        programs = min(-(-n // plan.samples_per_tile), self.programs)
        tiles = Tiles(
            plan=plan,
            users=batch.users.view(-1, plan.group)[:, 0],
            user_rows=user_rows,
            user_gmf=user_gmf,
            acts=new(n * max(units - plan.widths[-1], plan.widths[0])),
            grads=new(n * units),
            d_logits=new(n, dtype=torch.float32),
            d_user_first=new(n_groups if plan.group > 1 else 0, plan.widths[0]),
            d_user_gmf=new(n_groups, plan.factors),
            parts=new(programs, plan.sums_at[-1], dtype=torch.float32),
        )
        kernels.tile_step[(programs,)](
            *(batch.items, batch.labels, item_first, user_first, item_gmf, user_gmf, self._weights, self._small),
            *(self._unit_keys, self.dropout, tiles.acts, tiles.grads, tiles.d_logits, tiles.d_user_first),
            *(tiles.d_user_gmf, tiles.parts, n, self.scale_up),
            **plan.constants,
            **plan.options,
        )
        return tiles

    def _gather(self, table: Tensor, ids: Tensor, out: Tensor, stride: int) -> None:
        n, padded = out.shape
        kernels.gather_rows[(-(-n // _GATHERED_ROWS),)](
            *(table.detach(), ids, out, n),
            STRIDE=stride, WIDTH=table.shape[1], PADDED=padded, COLUMNS=_power(padded), ROWS=_GATHERED_ROWS,
        )  # fmt: skip

    def _sorted(self, ids: Tensor, n: int) -> tuple[Tensor, Tensor]:
        """The order of rows by id, int64, and where each id's rows begin in it, int64 [n + 1]."""
        known = self._bounds[n]
        ordered, order = torch.sort(ids.to(known.dtype), stable=True)
        return order, torch.searchsorted(ordered, known)

    def _sum_rows(
        self,
        table: Tensor,
        rows: Tensor,
        order: tuple[Tensor, Tensor],
        unit: Tensor,
        weighted: tuple[Tensor, int, Tensor] | None = None,
        at_once: int = _OF_AN_ITEM,
    ) -> None:
        """Sum rows by id: the gradient of a table, which is stored or applied.

        Args:
            weighted: factors of the rows, samples that share a row, and weights of the columns.
        """
        adam = self._adam.arguments(table) if self._adam is not None else _NO_ADAM
        out = table.detach() if self._adam is not None else _gradient(table)
        _sum_rows(out, rows, order, unit, adam, weighted, at_once)

    def _mlp_gradients(
        self,
        tiles: Tiles,
        by_user: tuple[Tensor, Tensor],
        by_item: tuple[Tensor, Tensor],
        unit: Tensor,
        sums: Tensor,
    ) -> None:
        """The gradients of the MLP's embeddings and weights."""
        plan, model = tiles.plan, self.model
        layers, width = self._layers, model.config.layers[0] // 2
        d_user_first = tiles.d_user_first if plan.group > 1 else tiles.level(tiles.grads, 0)
        d_users = matrix_product(d_user_first, self._by_user, plan.kind)
        self._sum_rows(model.mlp_user_embed.weight, d_users, by_user, unit, at_once=_OF_A_USER)
        # In float32: the sum of many samples' gradients could exceed float16's range.
        d_item_first = torch.empty((self._sizes[1], plan.widths[0]), device=unit.device)
        _sum_rows(d_item_first, tiles.level(tiles.grads, 0), by_item, unit, _NO_ADAM, None, _OF_AN_ITEM)
        items, first = model.mlp_item_embed.weight, _gradient(layers[0].weight)
        torch.mm(d_item_first, self._by_item.float(), out=_gradient(items))
        by_users = matrix_product(d_user_first.T, tiles.user_rows, torch.float32)
        torch.mul(_corner(by_users, first[:, :width]), unit, out=first[:, :width])
        first[:, width:].copy_(_corner(matrix_product(d_item_first.T, items.detach(), torch.float32), first[:, width:]))
        for level, layer in enumerate(layers[1:], start=1):
            if plan.sums_at[level]:
                shape = plan.widths[level], plan.widths[level - 1]
                product = sums[plan.sums_at[level] :][: math.prod(shape)].view(shape)
            else:
                below = tiles.level(tiles.acts, level - 1)
                product = matrix_product(tiles.level(tiles.grads, level).T, below, torch.float32)
            torch.mul(_corner(product, layer.weight), unit, out=_gradient(layer.weight))

    def _small_gradients(self, plan: Plan, sums: Tensor) -> None:
        """The gradients of biases and of the head, from the sums over all tiles."""
        model, factors = self.model, self.model.config.factors
        head = _gradient(model.final.weight)[0]
        at = 2 + plan.units_at[-1]
        biases = [_gradient(layer.bias) for layer in (model.final, *self._layers)]
        outs = [head[factors:], head[:factors], *biases]
        starts = [at, at + plan.widths[-1], 1, *(2 + begin for begin in plan.units_at[:-1])]
        torch._foreach_copy_(outs, [_corner(sums[begin:], out) for begin, out in zip(starts, outs, strict=True)])


@dataclass(frozen=True, kw_only=True)
class Tiles:
    """What the tile kernel leaves; shapes and units as in `kernels.tile_step`.

    Attributes:
        users: [groups].
        user_rows, user_gmf: embeddings of the groups' users, [groups, …].
    """

    plan: Plan
    users: Tensor
    user_rows: Tensor
    user_gmf: Tensor
    acts: Tensor
    grads: Tensor
    d_logits: Tensor
    d_user_first: Tensor
    d_user_gmf: Tensor
    parts: Tensor

    def level(self, values: Tensor, level: int) -> Tensor:
        """A level of `acts` or `grads`, [n, width]."""
        n, begin, width = len(self.d_logits), self.plan.units_at[level], self.plan.widths[level]
        return values[n * begin : n * (begin + width)].view(n, width)


@dataclass(frozen=True)
class _Buffers:
    """Makes uninitialised tensors, or filled ones."""

    device: torch.device
    kind: torch.dtype
    fill: float | None

    def __call__(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        found = torch.empty(shape, dtype=dtype or self.kind, device=self.device)
        return found if self.fill is None else found.fill_(self.fill)


def _sum_rows(
    out: Tensor,
    rows: Tensor,
    order: tuple[Tensor, Tensor],
    unit: Tensor,
    adam: tuple[Any, ...],
    weighted: tuple[Tensor, int, Tensor] | None,
    at_once: int,
) -> None:
    """See `kernels.segment_sum`."""
    n, width = out.shape
    padded = _power(width)
    factors, group, columns = weighted or (None, 1, None)
    kernels.segment_sum[(n,)](
        *(rows, factors, *order, columns, unit, out, *adam),
        STRIDE=rows.shape[1], WIDTH=width, PADDED=padded, GROUP=group, ROWS=min(16, max(1, at_once // padded)),
        WEIGHTED=weighted is not None, ADAM=adam is not _NO_ADAM, num_warps=1, num_stages=1,
    )  # fmt: skip


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _id_type(n: int) -> torch.dtype:
    """The narrowest dtype of ids below n, and of n: sorts take time by the byte."""
    return torch.int16 if n < 1 << 15 else torch.int32


def _power(width: int) -> int:
    return 1 << (width - 1).bit_length()


def _corner(values: Tensor, like: Tensor) -> Tensor:
    """The first elements of padded values, of another's shape."""
    return values[tuple(map(slice, like.shape))]


def _corner_padded(values: Tensor, width: int) -> Tensor:
    """A matrix with zeros in further columns."""
    more = width - values.shape[1]
    return nn.functional.pad(values, (0, more)) if more else values
