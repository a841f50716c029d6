"""Ablation of the product's torch step: the first layer is not factorised."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.data.batch import Batch
from model.training.torch_step import TorchStep, embedding_rows


class DenseFirstLayer(TorchStep):
    """Applies the first layer to each sample's [user; item]; for networks without side features."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._width = 0  # of the part multiplied once per group of samples

    def gradients(self, batch: Batch, weight: float | Tensor) -> Tensor:
        no_table = torch.zeros(0, device=batch.labels.device)
        return self._over_pieces(batch, weight, no_table, no_table)

    def _logits(self, piece: Batch, table: Tensor, total: Tensor) -> Tensor:
        model, users = self.model, piece.users.view(-1, piece.group)[:, 0]
        user_rows = embedding_rows(model.mlp_user_embed.weight, users)
        item_rows = embedding_rows(model.mlp_item_embed.weight, piece.items)
        pairs = torch.cat((user_rows.repeat_interleave(piece.group, dim=0), item_rows), dim=1)
        first = nn.functional.linear(pairs, model.entry[0])
        user_gmf = embedding_rows(model.mf_user_embed.weight, users)
        item_gmf = embedding_rows(model.mf_item_embed.weight, piece.items)
        return self._layers(user_rows[:, :0], user_gmf, first, item_gmf, [], piece.group)
