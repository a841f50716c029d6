"""Scores of a trained network from projections: what it makes of a user, an item or a row is worked out once.

The first layer on [user; item; side] is Wu·user + Wi·item + Ws·side. All items are projected when the scorer is made,
a row's user and side features once for all its items; a pair only adds two rows. Pairs go in chunks, so memory does
not grow with their number.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.neumf import NeuMF, side_width

_CHUNK_SAMPLES = 4096  # on a CPU, whose caches hold the activations of so many
_CHUNK_SAMPLES_ON_DEVICE = 1 << 17
_TILE_USERS = 8  # that share what is read of an item


class Scorer:
    """A network without dropout, in full precision, as its weights are when this is made."""

    @torch.no_grad()
    def __init__(self, model: NeuMF) -> None:
        """Memory: as much for each item as the first hidden layer is wide."""
        config, self.model = model.config, model
        weight, self._bias = (parameter.detach() for parameter in model.entry)
        of_row, of_item = (sum(map(side_width, features)) for features in (config.row_side, config.item_side))
        width = config.layers[0] // 2
        self._by_user, by_item, self._by_row_side, by_item_side = weight.split((width, width, of_row, of_item), dim=1)
        self._item_first = nn.functional.linear(model.mlp_item_embed.weight, by_item)
        if config.item_side:
            inputs = torch.cat(list(model.item_inputs(torch.arange(config.n_items, device=weight.device))), dim=1)
            self._item_first += nn.functional.linear(inputs, by_item_side)
        self._chunk = _CHUNK_SAMPLES if weight.device.type == "cpu" else _CHUNK_SAMPLES_ON_DEVICE

    @torch.no_grad()
    def __call__(self, users: Tensor, items: Tensor, *side: Tensor) -> Tensor:
        """Score pairs as the network does.

        Args:
            users, items: int32 or int64 ids, shape [N]; quickest where those of a user stand together.
            side: a tensor of shape [N] for each of the config's `row_side`.
        Returns:
            Logits, shape [N].
        """
        logits = torch.empty(len(users), dtype=self._bias.dtype, device=self._bias.device)
        for start in range(0, len(users), self._chunk):
            own_users, own_items, *own_side = (column[start : start + self._chunk] for column in (users, items, *side))
            if side:
                first, gmf = self._rows(own_users, own_side)
            else:
                distinct, which = own_users.unique_consecutive(return_inverse=True)
                first, gmf = (rows[which] for rows in self._rows(distinct, ()))
            hidden = first.add_(self._item_first[own_items])
            gmf = gmf.mul_(self.model.mf_item_embed.weight[own_items]).sum(dim=1)
            logits[start : start + self._chunk] = self._of_hidden(hidden) + gmf
        return logits

    @torch.no_grad()
    def all_items(self, users: Tensor, *side: Tensor, items: Tensor | None = None) -> Tensor:
        """Score each of some users with all items.

        Args:
            users: int32 or int64 ids, shape [U].
            side: a tensor of shape [U] for each of the config's `row_side`.
            items: ids of the items to score instead of all.
        Returns:
            Logits, shape [U, items].
        """
        item_first, item_gmf = self._item_first, self.model.mf_item_embed.weight
        if items is not None:
            item_first, item_gmf = item_first[items], item_gmf[items]
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
        """What rows add to the first layer, and factors of the items' GMF embeddings: [R, w_1] and [R, F]."""
        model = self.model
        first = nn.functional.linear(model.mlp_user_embed.weight[users], self._by_user, self._bias)
        if side:
            inputs = torch.cat(list(model.row_inputs(side)), dim=1)
            first += nn.functional.linear(inputs, self._by_row_side)
        return first, model.mf_user_embed.weight[users] * model.final.weight[0, : model.config.factors]

    def _of_hidden(self, hidden: Tensor) -> Tensor:
        """What the MLP adds to the logits, from the first layer's sums [..., w_1], which are changed: shape [...]."""
        if not len(self.model.mlp):
            return hidden.squeeze(-1)
        hidden = hidden.relu_()
        for layer in self.model.mlp[1:]:
            hidden = layer(hidden).relu_()
        head = self.model.final.weight[:, self.model.config.factors :]
        return nn.functional.linear(hidden, head, self.model.final.bias).squeeze(-1)
