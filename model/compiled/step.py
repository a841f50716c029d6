"""CPU training step: compiled loops over nonzero units, matrix products for shared work.

The first layer on [user; item] is Wu·user + Wi·item, so each distinct user and item of a batch is projected once, by
one matrix product, and a sample only adds two rows (`model.compiled.train_loops`). Only the batch's users and items
have gradients; Adam makes one pass over all rows and treats the other gradients as zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.compiled import train_loops
from model.compiled.train_loops import Projected, SampleColumns
from model.data.batch import Batch
from model.network.neumf import NeuMF

_BLOCK_USERS = 4096  # users whose projections and gradients stay in the cache
_SHARED_VALUES = 1 << 16  # parameters that justify more than one thread
_PRIVATE_BYTES = 1 << 30  # limit for the private item gradients of all threads together


@dataclass(frozen=True)
class RowGradient:
    """A row-sparse gradient of an embedding.

    Attributes:
        ids: int64 [D], the nonzero rows, ascending.
        values: float32 [D, width].
    """

    ids: Tensor
    values: Tensor


Gradients = dict[Tensor, Tensor | RowGradient]


class CompiledStep:
    """Gradients of a batch on a CPU, and Adam with them, for a network without side features."""

    def __init__(self, model: NeuMF, threads: int, products: torch.dtype = torch.float32) -> None:
        """
        Args:
            model: float32, with at least one hidden layer.
            threads: number of threads.
            products: dtype of the matrix products, float32 or bfloat16.
        """
        self.model, self._threads, self._products = model, threads, products
        self._pool = ThreadPoolExecutor(threads)
        self._first, *self._rest = [layer for layer in model.mlp if isinstance(layer, nn.Linear)]
        self._widths = np.array([layer.out_features for layer in (self._first, *self._rest)], dtype=np.uint64)
        self._keep = round((1.0 - model.config.dropout) * train_loops.KEEP_ALL)

    @torch.no_grad()
    def gradients(self, batch: Batch, weight: float) -> tuple[Tensor, Gradients]:
        """The summed loss of a batch (scalar, float32), and the gradient of `weight` times that sum.

        Samples are processed in order of their users. The dropout masks are `train.dropout_masks` with one seed per
        batch from torch's global generator.
        """
        seed = int(torch.randint(-(2**62), 2**62, ()))
        users, items, labels = (column.numpy() for column in (batch.users, batch.items, batch.labels))
        if (users[1:] < users[:-1]).any():
            order = np.argsort(users, kind="stable")
            users, items, labels = users[order], items[order], labels[order]
        starts = np.concatenate([[0], np.flatnonzero(users[1:] != users[:-1]) + 1, [len(users)]])
        return self._backward(users, starts, items, labels, weight, seed)

    def _backward(
        self, users: np.ndarray, starts: np.ndarray, items: np.ndarray, labels: np.ndarray, weight: float, seed: int
    ) -> tuple[Tensor, Gradients]:
        """
        Args:
            users: ascending.
            starts: int64 [D + 1], the offset of each user's first sample, then the number of samples.
        """
        model, product, width = self.model, self._product, self.model.config.layers[0] // 2
        by_user, by_item = (part.contiguous() for part in self._first.weight.split(width, dim=1))
        factors = model.config.factors
        gmf_head, hidden_head = model.final.weight[0, :factors], model.final.weight[0, factors:]
        down, up = (_flat(layer.weight.T for layer in self._rest), _flat(layer.weight for layer in self._rest))
        biases = _flat(layer.bias for layer in self._rest)
        weights = train_loops.Weights(
            widths=self._widths,
            down=_numpy(down),
            up=_numpy(up),
            biases=_numpy(biases),
            gmf_head=_numpy(gmf_head),
            hidden_head=_numpy(hidden_head),
            head_bias=np.float32(model.final.bias.item()),
        )
        item_ids, items = _distinct(items, model.config.n_items)
        item_rows = model.mlp_item_embed.weight[item_ids]
        of_items = Projected(_numpy(product(item_rows, by_item.T)), _numpy(model.mf_item_embed.weight[item_ids]))
        user_ids = torch.from_numpy(users[starts[:-1]].astype(np.int64))
        d_user_rows, d_user_gmf = torch.empty(len(user_ids), width), torch.zeros(len(user_ids), factors)
        d_by_user, d_first_bias = torch.zeros_like(by_user), torch.zeros_like(self._first.bias)
        local = np.repeat(np.arange(len(user_ids), dtype=np.int32) % np.int32(_BLOCK_USERS), np.diff(starts))
        samples, dropout = (
            SampleColumns(local, items, labels),
            train_loops.Dropout.keeping(self._keep, seed),
        )
        own = [self._own(len(item_ids), len(up), len(biases)) for _ in range(self._workers(len(item_ids)))]
        for begin in range(0, len(user_ids), _BLOCK_USERS):
            end = min(begin + _BLOCK_USERS, len(user_ids))
            user_rows = model.mlp_user_embed.weight[user_ids[begin:end]]
            user_first = product(user_rows, by_user.T).add_(self._first.bias)
            d_user_first = torch.zeros_like(user_first)
            of_users = Projected(_numpy(user_first), _numpy(model.mf_user_embed.weight[user_ids[begin:end]]))
            d_users = Projected(_numpy(d_user_first), _numpy(d_user_gmf[begin:end]))
            cuts = _cuts(starts[begin : end + 1], len(own))
            self._each(
                [
                    partial(
                        train_loops.train_block, samples, first, last, of_users, of_items, weights, dropout, weight,
                        mine.sums(d_users),
                    )
                    for mine, (first, last) in zip(own, pairwise(cuts), strict=True)
                ]
            )  # fmt: skip
            d_first_bias += d_user_first.sum(0)
            d_by_user += product(d_user_first.T, user_rows)
            torch.matmul(d_user_first, by_user, out=d_user_rows[begin:end])
        total = own[0]
        for other in own[1:]:
            total.add(other)
        d_by_item = product(total.first.T, item_rows)
        gradients: Gradients = {
            model.mf_user_embed.weight: RowGradient(user_ids, d_user_gmf),
            model.mf_item_embed.weight: RowGradient(item_ids, total.gmf),
            model.mlp_user_embed.weight: RowGradient(user_ids, d_user_rows),
            model.mlp_item_embed.weight: RowGradient(item_ids, product(total.first, by_item)),
            self._first.weight: torch.cat((d_by_user, d_by_item), dim=1),
            self._first.bias: d_first_bias,
            model.final.weight: torch.cat((total.gmf_head, total.hidden_head))[None],
            model.final.bias: torch.tensor([total.scalars[1]], dtype=torch.float32),
        }
        at, bias = 0, 0
        for layer in self._rest:
            gradients[layer.weight] = total.up[at : at + layer.weight.numel()].view_as(layer.weight)
            gradients[layer.bias] = total.biases[bias : bias + len(layer.bias)]
            at, bias = at + layer.weight.numel(), bias + len(layer.bias)
        return torch.tensor(total.scalars[0], dtype=torch.float32), gradients

    @staticmethod
    def add_to_grad(gradients: Gradients) -> None:
        """Add gradients to each parameter's `grad`, which must exist."""
        for parameter, gradient in gradients.items():
            assert parameter.grad is not None
            if isinstance(gradient, RowGradient):
                parameter.grad.index_add_(0, gradient.ids, gradient.values)
            else:
                parameter.grad += gradient

    @torch.no_grad()
    def adam(self, optimizer: torch.optim.Adam, gradients: Gradients) -> None:
        """A step of `optimizer` with these gradients, equal to its own up to rounding, in one pass over memory."""
        (group,) = optimizer.param_groups
        for parameter, gradient in gradients.items():
            state: dict[str, Any] = optimizer.state[parameter]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] += 1
            if isinstance(gradient, RowGradient):
                values, rows = gradient.values, np.full(len(parameter), -1, dtype=np.int32)
                rows[gradient.ids.numpy()] = np.arange(len(gradient.ids), dtype=np.int32)
            else:
                values, rows = gradient, np.arange(len(parameter), dtype=np.int32)
            arrays = [
                tensor.detach().view(len(parameter), -1).numpy()
                for tensor in (parameter, state["exp_avg"], state["exp_avg_sq"])
            ]
            update = partial(
                train_loops.adam_rows, *arrays, values.reshape(len(values), -1).numpy(), rows, rate=group["lr"],
                beta1=group["betas"][0], beta2=group["betas"][1], eps=group["eps"], step=int(state["step"]),
            )  # fmt: skip
            parts = self._threads if parameter.numel() > _SHARED_VALUES else 1
            cuts = [len(parameter) * number // parts for number in range(parts + 1)]
            self._each([partial(update, first=a, last=b) for a, b in pairwise(cuts)])

    def _each(self, tasks: Sequence[Callable[[], None]]) -> None:
        """Run tasks concurrently."""
        others = [self._pool.submit(task) for task in tasks[1:]]
        tasks[0]()
        for other in others:
            other.result()

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        """A matrix product with a float32 result."""
        if self._products is torch.float32:
            return left @ right
        return (left.to(self._products) @ right.to(self._products)).float()

    def _workers(self, n_items: int) -> int:
        """Number of threads that can have private gradients for a batch's items."""
        bytes_each = 4 * n_items * (int(self._widths[0]) + self.model.config.factors)
        return max(1, min(self._threads, _PRIVATE_BYTES // bytes_each))

    def _own(self, n_items: int, n_weights: int, n_biases: int) -> _Own:
        factors, widths = self.model.config.factors, self._widths
        shapes = ((n_items, int(widths[0])), (n_items, factors), n_weights, n_biases, factors, int(widths[-1]))
        first, gmf, up, biases, gmf_head, hidden_head = (torch.zeros(shape) for shape in shapes)
        return _Own(first, gmf, up, biases, gmf_head, hidden_head, np.zeros(2))


@dataclass
class _Own:
    """What one thread adds up over a batch: `train.Sums`, but for the users, which change with each block.

    Attributes:
        first, gmf: gradients of the batch's items.
    """

    first: Tensor
    gmf: Tensor
    up: Tensor
    biases: Tensor
    gmf_head: Tensor
    hidden_head: Tensor
    scalars: np.ndarray

    def add(self, other: _Own) -> None:
        for name in self.__dataclass_fields__:
            mine = getattr(self, name)
            mine += getattr(other, name)

    def sums(self, users: Projected) -> train_loops.Sums:
        return train_loops.Sums(
            users=users,
            items=Projected(_numpy(self.first), _numpy(self.gmf)),
            up=_numpy(self.up),
            biases=_numpy(self.biases),
            gmf_head=_numpy(self.gmf_head),
            hidden_head=_numpy(self.hidden_head),
            scalars=self.scalars,
        )


def _numpy(tensor: Tensor) -> np.ndarray:
    """A flat array that shares the tensor's memory."""
    return tensor.detach().view(-1).numpy()


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    """All values, concatenated."""
    return torch.cat([torch.empty(0), *(tensor.reshape(-1) for tensor in tensors)])


def _distinct(items: np.ndarray, n_items: int) -> tuple[Tensor, np.ndarray]:
    """The distinct items, int64 ascending, and each item's index among them, int32."""
    there = np.zeros(n_items, dtype=bool)
    there[items] = True
    ids = np.flatnonzero(there)
    places = np.empty(n_items, dtype=np.int32)
    places[ids] = np.arange(len(ids), dtype=np.int32)
    return torch.from_numpy(ids), places[items]


def _cuts(starts: np.ndarray, parts: int) -> list[int]:
    """Boundaries of parts of about equal size that never split a user: [parts + 1] of the `starts`."""
    targets = np.linspace(starts[0], starts[-1], parts + 1)
    return starts[np.searchsorted(starts, targets)].tolist()
