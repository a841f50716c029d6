"""Scores in torch, on any device: the first layer is factorised, and pairs are processed in chunks.

The first layer on [user; item; side] is Wu·user + Wi·item + Ws·side. All items are projected at construction, and a
row's user and side features once for all its items, so that a pair only adds two projections.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.data.batch import runs
from model.network.neumf import NeuMF

_CHUNK_SAMPLES = 4096  # on a CPU: their activations fit the caches
CHUNK_SAMPLES_ON_DEVICE = 1 << 17
_TILE_USERS = 8  # users that share each read of an item


class TorchScorer:
    """See `model.scoring.scorer.Scorer`."""

    def __init__(self, model: NeuMF, chunk: int | None = None) -> None:
        """
        Args:
            chunk: pairs computed at a time; None for the device's default.
        """
        self.model = model
        weight, self._bias = (parameter.detach() for parameter in model.entry)
        self._by_row, by_item = model.split_columns(weight)
        ids = torch.arange(model.config.n_items, device=weight.device)
        self._item_first = torch.empty(len(ids), len(weight), dtype=weight.dtype, device=weight.device)
        usual = _CHUNK_SAMPLES if weight.device.type == "cpu" else CHUNK_SAMPLES_ON_DEVICE
        self._chunk = chunk or usual
        for part in ids.split(self._chunk):
            self._item_first[part] = nn.functional.linear(model.item_inputs(part), by_item)

    def __call__(self, users: Tensor, items: Tensor, *side: Tensor) -> Tensor:
        logits = torch.empty(len(users), dtype=self._bias.dtype, device=self._bias.device)
        for start in range(0, len(users), self._chunk):
            own_users, own_items, *own_side = (column[start : start + self._chunk] for column in (users, items, *side))
            starts, index = runs(own_users, *own_side)
            first, gmf = (
                rows[index] for rows in self._rows(own_users[starts], [column[starts] for column in own_side])
            )
            hidden = first.add_(nn.functional.embedding(own_items, self._item_first))
            gmf = gmf.mul_(self.model.mf_item_embed(own_items)).sum(dim=1)
            logits[start : start + self._chunk] = self._of_hidden(hidden) + gmf
        return logits

    def all_items(self, users: Tensor, *side: Tensor, items: Tensor | None = None) -> Tensor:
        item_first, item_gmf = self._item_first, self.model.mf_item_embed.weight
        if items is not None:
            item_first, item_gmf = (nn.functional.embedding(items, table) for table in (item_first, item_gmf))
        logits = torch.empty(len(users), len(item_first), dtype=self._bias.dtype, device=self._bias.device)
        step = self._chunk // max(1, min(_TILE_USERS, len(users)))
        for top in range(0, len(users), _TILE_USERS):
            bottom = top + _TILE_USERS
            first, gmf = self._rows(users[top:bottom], [column[top:bottom] for column in side])
            torch.mm(gmf, item_gmf.T, out=logits[top:bottom])
            for start in range(0, len(item_first), step):
                hidden = first[:, None] + item_first[start : start + step]
                logits[top:bottom, start : start + step] += self._of_hidden(hidden)
        return logits

    def _rows(self, users: Tensor, side: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The rows' part of the first layer, and the multipliers of the items' GMF embeddings: [R, w_1] and [R, F]."""
        model = self.model
        first = nn.functional.linear(model.row_inputs(users, side), self._by_row, self._bias)
        return first, model.mf_user_embed(users) * model.final.weight[0, : model.config.factors]

    def _of_hidden(self, hidden: Tensor) -> Tensor:
        """The MLP's part of the logits, shape [...], from the first layer's sums [..., w_1], which are overwritten."""
        if not len(self.model.mlp):
            return hidden.squeeze(-1)
        hidden = hidden.relu_()
        for layer in self.model.mlp[1:]:
            hidden = layer(hidden).relu_()
        head = self.model.final.weight[:, self.model.config.factors :]
        return nn.functional.linear(hidden, head, self.model.final.bias).squeeze(-1)
