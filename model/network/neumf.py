"""The network: neural matrix factorisation (He et al. 2017), with the parameter names of NVIDIA's reference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from preprocessing.spec.feature_columns import SideFeature
from workflows.common.errors import UserError, bounded
from workflows.device.memory import require_memory

ARCHITECTURES = ("gmf", "mlp", "neumf")
_MAX_LAYERS = 100


@dataclass(frozen=True, kw_only=True)
class NeuMFConfig:
    """Shape of the network; nothing about training, devices or files."""

    n_users: int
    n_items: int
    factors: int = 64  # width of the GMF embeddings
    layers: tuple[int, ...] = (256, 256, 128, 64)  # widths of the MLP; the first is user + item embedding
    dropout: float = 0.5  # share of hidden units dropped in training
    row_side: tuple[SideFeature, ...] = ()  # side features given with each pair
    item_side: tuple[SideFeature, ...] = ()  # side features looked up by item
    arch: str = "neumf"  # a missing branch has width 0: "gmf" ignores --layers, "mlp" --factors

    def __post_init__(self) -> None:
        wrong = []
        if self.arch not in ARCHITECTURES:
            wrong.append(f"--arch should be one of {', '.join(ARCHITECTURES)}, got {self.arch}")
        if self.arch == "gmf":
            object.__setattr__(self, "layers", (0,))
            if self.row_side or self.item_side:
                wrong.append("--arch gmf has no MLP for side features; use --arch neumf")
        if self.arch == "mlp":
            object.__setattr__(self, "factors", 0)
        if self.n_users < 1 or self.n_items < 1:
            wrong.append(f"users and items should be 1 or more, got {self.n_users} and {self.n_items}")
        if self.factors < 1 and self.arch != "mlp":
            wrong.append(f"--factors should be 1 or more, got {self.factors}")
        if self.arch != "gmf" and (not self.layers or min(self.layers) < 1):
            wrong.append(f"--layers should be widths of 1 or more, got {bounded(str(list(self.layers)))}")
        elif self.layers[0] % 2:
            wrong.append(f"the first of --layers should be even (half user, half item), got {self.layers[0]}")
        elif len(self.layers) > _MAX_LAYERS:
            wrong.append(f"--layers should be at most {_MAX_LAYERS} widths, got {len(self.layers):,}")
        if not 0.0 <= self.dropout < 1.0:
            wrong.append(f"--dropout should be in [0, 1), got {self.dropout}")
        if wrong:
            raise UserError("; ".join(wrong))

    @property
    def n_parameters(self) -> int:
        """Parameters of the network and values of its item tables."""
        side = (*self.row_side, *self.item_side)
        widths = (self.layers[0] + sum(map(side_width, side)), *self.layers[1:])
        tables = (self.n_users + self.n_items) * (self.factors + self.layers[0] // 2)
        layers = sum((a + 1) * b for a, b in pairwise(widths)) + self.factors + widths[-1] + 1
        categories = sum((one.cardinality + 1) * side_width(one) for one in side if one.cardinality is not None)
        return tables + layers + categories + self.n_items * len(self.item_side)


def side_width(feature: SideFeature) -> int:
    """MLP inputs of a side feature: 1 for a number, the bit length of its cardinality for ids.

    Enough to distinguish all categories, yet too few for a feature to crowd out the user and the item.
    """
    return 1 if feature.cardinality is None else feature.cardinality.bit_length()


def require_network(shape: NeuMFConfig, whose: str, copies: int = 1, left_bytes: int | None = None) -> None:
    """Refuse a network that does not fit into memory, before it is made.

    Args:
        whose: where its sizes come from, for the message.
        copies: of its parameters: 1 to use them, 4 to train them (gradients, and two moments of Adam).
        left_bytes: see `require_memory`.

    Raises:
        UserError: it does not fit.
    """
    what = f"a network of {shape.n_parameters:,} parameters ({shape.n_users:,} users, {shape.n_items:,} items; {whose})"
    remedy = "lower --factors or --layers, or check the numbers of users and items"
    require_memory(4 * copies * shape.n_parameters, what, remedy, left_bytes)


class NeuMF(nn.Module):
    """GMF and MLP branches over their own embeddings, joined by one linear layer.

    Side features join the user and the item at the MLP's input: categories embedded, numbers as they are.
    Without side features, parameters have the reference's names and shapes.
    """

    def __init__(self, config: NeuMFConfig, generator: torch.Generator | None = None) -> None:
        """
        Args:
            generator: CPU generator of the initial weights; the same state gives the same network on every device.
        """
        super().__init__()
        self.config = config
        width = config.layers[0] // 2
        self.mf_user_embed = nn.Embedding(config.n_users, config.factors)
        self.mf_item_embed = nn.Embedding(config.n_items, config.factors)
        self.mlp_user_embed = nn.Embedding(config.n_users, width)
        self.mlp_item_embed = nn.Embedding(config.n_items, width)
        side = (*config.row_side, *config.item_side)
        widths = (config.layers[0] + sum(map(side_width, side)), *config.layers[1:])
        self.mlp = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.final = nn.Linear(config.factors + widths[-1], 1)
        # Item features have one extra category, for items missing from the data.
        spare = [0] * len(config.row_side) + [1] * len(config.item_side)
        self.side_embed = nn.ModuleList(
            nn.Embedding(feature.cardinality + more, side_width(feature))
            for feature, more in zip(side, spare, strict=True)
            if feature.cardinality is not None
        )
        for number, feature in enumerate(config.item_side):
            self.register_buffer(f"item_side_{number}", unknown_values(feature, config.n_items))
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None) -> None:
        """Initialise as the reference does: embeddings N(0, 0.01), Glorot uniform layers, LeCun uniform head.

        Biases use torch's default for linear layers, U(-1/sqrt(fan_in), 1/sqrt(fan_in)).
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
        for categories in self.side_embed:
            assert isinstance(categories, nn.Embedding)
            categories.weight.normal_(0.0, 0.01, generator=generator)

    def set_item_tables(self, tables: Sequence[Tensor]) -> None:
        """Set the values of the `item_side` features, [n_items] each (see `model.data.side_features`)."""
        for buffer, table in zip(self.item_tables, tables, strict=True):
            buffer.copy_(table)

    @property
    def item_tables(self) -> list[Tensor]:
        """Per-item values of each `item_side` feature, int32 or float32, shape [n_items]."""
        return [self.get_buffer(f"item_side_{number}") for number in range(len(self.config.item_side))]

    def is_finite(self) -> bool:
        """Whether no parameter is NaN or infinite."""
        return all(bool(parameter.isfinite().all()) for parameter in self.parameters())

    def forward(self, users: Tensor, items: Tensor, *row_side: Tensor) -> Tensor:
        """Score user-item pairs.

        Args:
            users, items: int32 or int64 ids in [0, n_users) and [0, n_items), shape [B].
            row_side: a tensor of shape [B] per `row_side` feature of the config: int32 ids or float32 numbers.
        Returns:
            Logits (no sigmoid), shape [B].
        """
        gmf = self.mf_user_embed(users) * self.mf_item_embed(items)
        ids = self.mlp_user_embed(users), self.mlp_item_embed(items)
        hidden = torch.cat((*ids, *self.side_inputs(items, row_side)), dim=1)
        for layer in self.mlp:
            hidden = nn.functional.dropout(torch.relu(layer(hidden)), self.config.dropout, self.training)
        return self.final(torch.cat((gmf, hidden), dim=1)).squeeze(1)

    @property
    def entry(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the layer on [user; item; side]: the first hidden layer, or the head if there is none."""
        for layer in self.mlp:
            assert isinstance(layer, nn.Linear)
            return layer.weight, layer.bias
        return self.final.weight[:, self.config.factors :], self.final.bias

    def side_inputs(self, items: Tensor, row_side: Sequence[Tensor]) -> Iterator[Tensor]:
        """The side features' parts of the MLP's input, in the config's order, each [B, its width]."""
        yield from self._row_side(row_side)
        yield from self._item_side(items)

    def row_inputs(self, users: Tensor, row_side: Sequence[Tensor]) -> Tensor:
        """The row's part of the MLP's input: user and row side features, [B, width]."""
        return torch.cat((self.mlp_user_embed(users), *self._row_side(row_side)), dim=1)

    def item_inputs(self, items: Tensor) -> Tensor:
        """The item's part of the MLP's input, [B, width]."""
        return torch.cat((self.mlp_item_embed(items), *self._item_side(items)), dim=1)

    def split_columns(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Split a matrix on the MLP's input into its columns for `row_inputs` and for `item_inputs`."""
        widths = [sum(map(side_width, features)) for features in (self.config.row_side, self.config.item_side)]
        user, item, row_side, item_side = weight.split((*[self.config.layers[0] // 2] * 2, *widths), dim=1)
        return torch.cat((user, row_side), dim=1), torch.cat((item, item_side), dim=1)

    def _row_side(self, row_side: Sequence[Tensor]) -> Iterator[Tensor]:
        return _embedded(self.config.row_side, row_side, self.side_embed)

    def _item_side(self, items: Tensor) -> Iterator[Tensor]:
        of_rows = sum(feature.cardinality is not None for feature in self.config.row_side)
        tables = [table[items] for table in self.item_tables]
        return _embedded(self.config.item_side, tables, list(self.side_embed)[of_rows:])


def _embedded(
    features: Sequence[SideFeature], columns: Sequence[Tensor], embeddings: Iterable[nn.Module]
) -> Iterator[Tensor]:
    left = iter(embeddings)
    for feature, column in zip(features, columns, strict=True):
        yield column[:, None] if feature.cardinality is None else next(left)(column)


def unknown_values(feature: SideFeature, n_items: int) -> Tensor:
    """The initial table of a feature, all values unknown: shape [n_items], 0 or the id past the last category."""
    if feature.cardinality is None:
        return torch.zeros(n_items)
    return torch.full((n_items,), feature.cardinality, dtype=torch.int32)
