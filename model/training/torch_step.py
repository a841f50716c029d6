"""The step in torch, on any device: the first layer is factorised, and a batch is processed in cache-sized chunks.

The first layer on [user; item; side] is Wu·user + Wi·item + Ws·side. All items are projected once per batch and each
group's user once; samples only gather. All gathers accumulate gradients in one buffer (`_Gather`), whereas torch's own
would allocate a dense gradient per chunk, so memory does not grow with the batch. Nothing here synchronises with the
device or has a data-dependent shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from model.data.batch import Batch
from model.network.neumf import NeuMF

CHUNK_SAMPLES = 4096  # on a CPU: their activations fit the caches


class _Gather(torch.autograd.Function):
    """Gathers rows of a table and adds their gradients to `total`, the table's gradient."""

    @staticmethod
    def forward(context: Any, table: Tensor, rows: Tensor, total: Tensor, _: Tensor) -> Tensor:
        context.save_for_backward(rows)
        context.total = total
        return table.index_select(0, rows)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Any:
        (rows,) = context.saved_tensors
        context.total.index_add_(0, rows, gradients[0].to(context.total.dtype))
        return None, None, None, None


def keep_mask(shape: Sequence[int], share: float, like: Tensor) -> Tensor:
    """Independent draws, True with probability `share` (a multiple of 2**-16), from the device's global generator.

    Uses one or two random bytes per element: on a CPU several times faster than Bernoulli draws.
    """
    n = shape[0] * shape[1]
    whole = round(share * (1 << 16))
    per_word, kind, limit = (8, torch.int8, 0) if whole == 1 << 15 else (4, torch.int16, whole - (1 << 15))
    words = torch.empty(-(-n // per_word), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    return (words.view(kind)[:n] < limit).view(shape)


def fused_dropout(device: torch.device) -> bool:
    """Whether torch's own dropout, one kernel that draws and applies a mask, is the fastest: not on a CPU."""
    return device.type != "cpu"


def dropped(hidden: Tensor, share: float) -> Tensor:
    """Dropout that keeps a unit with probability `share` and divides it by that."""
    if fused_dropout(hidden.device):
        return torch.native_dropout(hidden, 1.0 - share, True)[0]
    return hidden * keep_mask(hidden.shape, share, hidden).to(hidden.dtype).mul_(1.0 / share)


class TorchStep:
    """Accumulates the gradients of a batch in each parameter's `grad`."""

    def __init__(
        self,
        model: NeuMF,
        chunk: int | None = None,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
        compiled: bool = False,
    ) -> None:
        """
        Args:
            chunk: samples computed at a time; None for the whole batch.
            autocast: makes the mixed-precision context.
            compiled: whether to `torch.compile` the layers.
        """
        self.model, self._chunk, self._autocast = model, chunk, autocast
        self._width = model.config.layers[0] // 2
        self._layers = torch.compile(self._of_layers) if compiled else self._of_layers

    def gradients(self, batch: Batch, weight: float | Tensor) -> Tensor:
        """Add the gradient of `weight` times the summed loss of a batch to each parameter's `grad`, which must exist.

        Returns:
            The summed loss, a scalar on the device (no host sync).
        """
        with self._autocast():
            projected = nn.functional.linear(self.model.mlp_item_embed.weight, self._by_item)
        table, kind = projected.detach(), torch.promote_types(projected.dtype, torch.float32)
        total = torch.zeros_like(table, dtype=kind)
        loss_sum = self._over_pieces(batch, weight, table, total)
        projected.backward(total.to(projected.dtype))
        return loss_sum

    def _over_pieces(self, batch: Batch, weight: float | Tensor, table: Tensor, total: Tensor) -> Tensor:
        """The summed loss of a batch; gradients are accumulated chunk by chunk."""
        kind = total.dtype
        loss_sum = torch.zeros((), device=batch.labels.device, dtype=kind)
        size = len(batch) if self._chunk is None else max(1, self._chunk // batch.group_size) * batch.group_size
        for start in range(0, len(batch), size):
            piece = batch.cut(start, start + size)
            with self._autocast():
                logits = self._logits(piece, table, total).to(kind)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, piece.labels.to(kind), reduction="sum")
            (loss * weight).backward()
            loss_sum += loss.detach()
        return loss_sum

    @property
    def _by_item(self) -> Tensor:
        return self.model.entry[0][:, self._width : 2 * self._width]

    def _logits(self, piece: Batch, table: Tensor, total: Tensor) -> Tensor:
        """
        Args:
            table: the first layer's projection of each item, [I, w_1]; its gradient is added to `total`.
        """
        model = self.model
        users = piece.users.view(-1, piece.group_size)[:, 0]
        user_rows = embedding_rows(model.mlp_user_embed.weight, users)
        user_gmf = embedding_rows(model.mf_user_embed.weight, users)
        item_first = _Gather.apply(table, piece.items, total, model.final.bias)
        side = list(model.side_inputs(piece.items, piece.side))
        item_gmf = embedding_rows(model.mf_item_embed.weight, piece.items)
        return self._layers(user_rows, user_gmf, item_first, item_gmf, side, piece.group_size)

    def _of_layers(
        self,
        user_rows: Tensor,
        user_gmf: Tensor,
        item_first: Tensor,
        item_gmf: Tensor,
        side: list[Tensor],
        group_size: int,
    ) -> Tensor:
        """
        Args:
            user_rows, user_gmf: per group, [G, width] and [G, F].
            item_first, item_gmf: per sample, [G * group_size, w_1] and [G * group_size, F].
            side: inputs of each side feature, [G * group_size, …].
        """
        model, share = self.model, 1.0 - self.model.config.dropout
        weight, bias = model.entry
        by_user = nn.functional.linear(user_rows, weight[:, : self._width], bias)
        hidden = (item_first.view(len(user_rows), group_size, -1) + by_user[:, None]).view(len(item_first), -1)
        if side:
            hidden = hidden + nn.functional.linear(torch.cat(side, dim=1), weight[:, 2 * self._width :])
        for number, layer in enumerate(model.mlp):
            hidden = torch.relu(layer(hidden) if number else hidden)
            if share < 1.0:
                hidden = dropped(hidden, share)
        head = model.final.weight[0]
        weighted = (user_gmf * head[: model.config.factors])[:, :, None]
        gmf = torch.bmm(item_gmf.view(len(user_gmf), group_size, -1), weighted)
        if not len(model.mlp):
            return hidden.squeeze(1) + gmf.view(-1)
        logits = nn.functional.linear(hidden, head[None, model.config.factors :], model.final.bias)
        return logits.view(-1) + gmf.view(-1)


def embedding_rows(weight: Tensor, rows: Tensor) -> Tensor:
    """Rows of an embedding; their gradients are added to its `grad`."""
    return _Gather.apply(weight.detach(), rows, weight.grad, weight)
