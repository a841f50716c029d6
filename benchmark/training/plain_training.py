"""The training baseline: NeuMF trained as in the reference, written plainly and without the product's model code.

An epoch: draw any items as negatives of all positives, append them, permute all samples, cut batches. A step: gather
four embeddings per sample, dense network, mean loss, backward, Adam over all parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmark.training.variants import BETA1, BETA2, DROPOUT, FACTORS, LAYERS, LEARNING_RATE


class PlainNeuMF(nn.Module):
    """GMF and MLP over four embeddings."""

    def __init__(
        self,
        n_users: int,
        n_items: int,
        factors: int = FACTORS,
        layers: tuple[int, ...] = LAYERS,
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__()
        width = layers[0] // 2
        self.gmf_users, self.gmf_items = nn.Embedding(n_users, factors), nn.Embedding(n_items, factors)
        self.mlp_users, self.mlp_items = nn.Embedding(n_users, width), nn.Embedding(n_items, width)
        hidden: list[nn.Module] = []
        for fan_in, fan_out in pairwise(layers):
            linear = nn.Linear(fan_in, fan_out)
            nn.init.xavier_uniform_(linear.weight)
            hidden += [linear, nn.ReLU(), nn.Dropout(dropout)]
        self.hidden = nn.Sequential(*hidden)
        self.head = nn.Linear(factors + layers[-1], 1)
        for table in (self.gmf_users, self.gmf_items, self.mlp_users, self.mlp_items):
            nn.init.normal_(table.weight, std=0.01)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """
        Args:
            users, items: int64, shape [B].
        Returns:
            Logits, shape [B].
        """
        gmf = self.gmf_users(users) * self.gmf_items(items)
        mlp = self.hidden(torch.cat((self.mlp_users(users), self.mlp_items(items)), dim=1))
        return self.head(torch.cat((gmf, mlp), dim=1)).squeeze(1)


@dataclass(frozen=True)
class Samples:
    """Samples in training order: int64 ids and float32 labels, shape [N]."""

    users: Tensor
    items: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def cut(self, start: int, stop: int) -> Samples:
        return Samples(self.users[start:stop], self.items[start:stop], self.labels[start:stop])


def prepare_epoch(users: Tensor, items: Tensor, n_items: int, negatives: int) -> Samples:
    """All positives with fresh negatives, in one random order.

    Args:
        users, items: of the positives, int64, shape [P].
    """
    negative_users = users.repeat(negatives)
    negative_items = torch.empty_like(negative_users).random_(0, n_items)
    all_users, all_items = torch.cat((users, negative_users)), torch.cat((items, negative_items))
    labels = torch.cat((torch.ones(len(users)), torch.zeros(len(negative_users))))
    order = torch.randperm(len(labels))
    return Samples(all_users[order], all_items[order], labels[order])


class PlainStep:
    """Adam steps on the mean loss of a batch."""

    def __init__(self, network: nn.Module, piece: int | None = None) -> None:
        """
        Args:
            piece: samples per piece when gradients are accumulated; None for the whole batch.
        """
        self.network, self._piece = network, piece
        self.optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, betas=(BETA1, BETA2), fused=True)

    def __call__(self, batch: Samples) -> Tensor:
        """Train on a batch; returns the mean loss, a scalar."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.gradients(batch)
        self.optimizer.step()
        return loss

    def gradients(self, batch: Samples) -> Tensor:
        """Add the gradient of the mean loss to `grad`; returns the mean loss."""
        total = torch.zeros(())
        for start in range(0, len(batch), self._piece or len(batch)):
            piece = batch.cut(start, start + (self._piece or len(batch)))
            logits = self.network(piece.users, piece.items)
            loss = nn.functional.binary_cross_entropy_with_logits(logits, piece.labels) * (len(piece) / len(batch))
            loss.backward()
            total += loss.detach()
        return total
