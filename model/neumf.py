"""The network: neural matrix factorisation (He et al. 2017), with the parameter names of NVIDIA's reference."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from workflows.errors import UserError


@dataclass(frozen=True, kw_only=True)
class NeuMFConfig:
    """Shape of the network; nothing about training, devices or files."""

    n_users: int
    n_items: int
    factors: int = 64  # width of the GMF embeddings
    layers: tuple[int, ...] = (256, 256, 128, 64)  # widths of the MLP; the first is user + item embedding
    dropout: float = 0.5  # share of hidden units left out while training

    def __post_init__(self) -> None:
        wrong = []
        if self.n_users < 1 or self.n_items < 1:
            wrong.append(f"users and items should be 1 or more, got {self.n_users} and {self.n_items}")
        if self.factors < 1:
            wrong.append(f"--factors should be 1 or more, got {self.factors}")
        if not self.layers or min(self.layers) < 1:
            wrong.append(f"--layers should be widths of 1 or more, got {list(self.layers)}")
        elif self.layers[0] % 2:
            wrong.append(f"the first of --layers holds user and item half and half: make it even, got {self.layers[0]}")
        if not 0.0 <= self.dropout < 1.0:
            wrong.append(f"--dropout should be in [0, 1), got {self.dropout}")
        if wrong:
            raise UserError("; ".join(wrong))


class NeuMF(nn.Module):
    """GMF and MLP branches over their own embeddings, joined by one linear layer."""

    def __init__(self, config: NeuMFConfig, generator: torch.Generator | None = None) -> None:
        """
        Args:
            generator: a CPU generator of the initial weights; the same one gives the same network everywhere.
        """
        super().__init__()
        self.config = config
        width = config.layers[0] // 2
        self.mf_user_embed = nn.Embedding(config.n_users, config.factors)
        self.mf_item_embed = nn.Embedding(config.n_items, config.factors)
        self.mlp_user_embed = nn.Embedding(config.n_users, width)
        self.mlp_item_embed = nn.Embedding(config.n_items, width)
        self.mlp = nn.ModuleList(nn.Linear(a, b) for a, b in zip(config.layers, config.layers[1:], strict=False))
        self.final = nn.Linear(config.factors + config.layers[-1], 1)
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """As in the reference: embeddings N(0, 0.01), Glorot uniform layers, LeCun uniform head.

        Biases are torch's default for linear layers, U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
        """
        for embedding in (self.mf_user_embed, self.mf_item_embed, self.mlp_user_embed, self.mlp_item_embed):
            embedding.weight.normal_(0.0, 0.01, generator=generator)
        for layer in self.mlp:
            assert isinstance(layer, nn.Linear)
            fan_out, fan_in = layer.weight.shape
            limit = math.sqrt(6.0 / (fan_in + fan_out))
            layer.weight.uniform_(-limit, limit, generator=generator)
            layer.bias.uniform_(-1.0 / math.sqrt(fan_in), 1.0 / math.sqrt(fan_in), generator=generator)
        fan_in = self.final.weight.shape[1]
        self.final.weight.uniform_(-math.sqrt(3.0 / fan_in), math.sqrt(3.0 / fan_in), generator=generator)
        self.final.bias.uniform_(-1.0 / math.sqrt(fan_in), 1.0 / math.sqrt(fan_in), generator=generator)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        """Score user-item pairs.

        Args:
            users, items: int32 or int64 ids in [0, n_users) and [0, n_items), shape [B].
        Returns:
            Logits (no sigmoid), shape [B].
        """
        gmf = self.mf_user_embed(users) * self.mf_item_embed(items)
        hidden = torch.cat((self.mlp_user_embed(users), self.mlp_item_embed(items)), dim=1)
        for layer in self.mlp:
            hidden = nn.functional.dropout(torch.relu(layer(hidden)), self.config.dropout, self.training)
        return self.final(torch.cat((gmf, hidden), dim=1)).squeeze(1)
