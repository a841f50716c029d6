"""Scores of a trained network from cached projections: each user, item or row is projected once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.compiled.available import compiled_scoring
from model.network.neumf import NeuMF
from model.scoring.torch_scorer import TorchScorer

if TYPE_CHECKING:
    from model.compiled.scorer import CompiledScorer


class Scorer:
    """Scores pairs without dropout, in full precision, with the weights the network has at construction.

    On a CPU compiled loops compute the scores if possible (`model.compiled.scorer`), otherwise torch does
    (`model.scoring.torch_scorer`). Scores equal the network's up to rounding. Memory: one projection per item, as wide
    as the hidden layers and factors together (at most 1 GiB on a CPU), independent of the number of pairs.
    """

    @torch.no_grad()
    def __init__(self, model: NeuMF, compiled: bool = True) -> None:
        """
        Args:
            compiled: whether compiled loops may be used.
        """
        self._scoring: TorchScorer | CompiledScorer = TorchScorer(model) if not compiled else _scoring(model)

    @torch.no_grad()
    def __call__(self, users: Tensor, items: Tensor, *side: Tensor) -> Tensor:
        """Score user-item pairs.

        Args:
            users, items: int32 or int64 ids, shape [N]; fastest if each user's pairs are consecutive.
            side: a tensor of shape [N] per `row_side` feature of the config.
        Returns:
            Logits, shape [N].

        Raises:
            IndexError: an id is out of the network's range.
        """
        return self._scoring(users, items, *side)

    @torch.no_grad()
    def all_items(self, users: Tensor, *side: Tensor, items: Tensor | None = None) -> Tensor:
        """Score all items for each user.

        Args:
            users: int32 or int64 ids, shape [U].
            side: a tensor of shape [U] per `row_side` feature of the config.
            items: ids of the items to score instead of all.
        Returns:
            Logits, shape [U, items].

        Raises:
            IndexError: an id is out of the network's range.
        """
        return self._scoring.all_items(users, *side, items=items)


def _scoring(model: NeuMF) -> TorchScorer | CompiledScorer:
    weight = model.final.weight
    if weight.device.type != "cpu" or weight.dtype is not torch.float32 or not len(model.mlp) or not compiled_scoring():
        return TorchScorer(model)
    from model.compiled.scorer import CompiledScorer

    return CompiledScorer(model, torch.get_num_threads())
