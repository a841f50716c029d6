"""Scores of a trained network from projections: what it makes of a user, an item or a row is worked out once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from model.compiled import compiled_loops
from model.neumf import NeuMF
from model.torch_scoring import TorchScoring

if TYPE_CHECKING:
    from model.kernel_scoring import KernelScoring


class Scorer:
    """A network without dropout, in full precision, as its weights are when this is made.

    On a CPU compiled loops compute the scores where they can (`model.kernel_scoring`), else torch does
    (`model.torch_scoring`). Scores are the network's up to rounding. Memory: what the network makes of each item, as
    wide as its hidden layers and factors together (on a CPU 1 GiB at most); it does not grow with the number of pairs.
    """

    @torch.no_grad()
    def __init__(self, model: NeuMF, kernels: bool = True) -> None:
        """
        Args:
            kernels: whether compiled loops may be used.
        """
        self._scoring: TorchScoring | KernelScoring = TorchScoring(model) if not kernels else _scoring(model)

    @torch.no_grad()
    def __call__(self, users: Tensor, items: Tensor, *side: Tensor) -> Tensor:
        """Score pairs as the network does.

        Args:
            users, items: int32 or int64 ids, shape [N]; quickest where those of a user stand together.
            side: a tensor of shape [N] for each of the config's `row_side`.
        Returns:
            Logits, shape [N].

        Raises:
            IndexError: an id is none of the network's.
        """
        return self._scoring(users, items, *side)

    @torch.no_grad()
    def all_items(self, users: Tensor, *side: Tensor, items: Tensor | None = None) -> Tensor:
        """Score each of some users with all items.

        Args:
            users: int32 or int64 ids, shape [U].
            side: a tensor of shape [U] for each of the config's `row_side`.
            items: ids of the items to score instead of all.
        Returns:
            Logits, shape [U, items].

        Raises:
            IndexError: an id is none of the network's.
        """
        return self._scoring.all_items(users, *side, items=items)


def _scoring(model: NeuMF) -> TorchScoring | KernelScoring:
    weight = model.final.weight
    if weight.device.type != "cpu" or weight.dtype is not torch.float32 or not len(model.mlp) or not compiled_loops():
        return TorchScoring(model)
    from model.kernel_scoring import KernelScoring

    return KernelScoring(model, torch.get_num_threads())
