"""A network rewritten for evaluation: units that are rarely zero are replaced by units that are mostly zero.

A unit x after ReLU is max(x, 0) = x + max(-x, 0). For a mostly positive unit, only max(-x, 0), mostly zero, remains a
unit; x itself is linear, so its contribution to the layers above is merged with its inputs: matrices on the input of
the MLP and on the units below. In trained networks, this leaves about one unit in twelve nonzero.

Shapes: w_1 … w_L widths of the hidden layers, S = w_1 + … + w_L, E the width of the MLP's input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.network.neumf import NeuMF

_SAMPLED = 64  # users and items whose pairs determine which units are mostly positive


@dataclass(frozen=True)
class Folded:
    """Hidden units are `entry`·input + `bias` + the rows of `passed` of all positive units in the layers below.

    Attributes:
        entry, bias: float32 [S, E] and [S].
        passed: for layers 1 … L - 1, the contribution of their units to all layers above, concatenated, float32
            [w_l, w_(l+1) + … + w_L], flat.
    """

    entry: Tensor
    bias: Tensor
    passed: Tensor


def fold(model: NeuMF) -> Folded:
    """Fold a network with at least one hidden layer. The units of the last one stay unchanged."""
    shares = _positive_shares(model)
    orders = [torch.minimum(share, 1.0 - share).argsort(descending=True) for share in shares[:-1]]
    orders.append(torch.arange(len(shares[-1])))
    folded = [share[order] > 0.5 for share, order in zip(shares[:-1], orders, strict=False)]
    weight, bias = (parameter.double()[orders[0]] for parameter in model.entry)
    entries, biases = [weight], [bias]
    passed: list[list[Tensor]] = []  # per layer, its contribution to each layer above
    for layer, through, below, order in zip(model.mlp[1:], folded, orders, orders[1:], strict=False):
        assert isinstance(layer, nn.Linear)
        weight = layer.weight.double()[order][:, below]
        linear = weight * through
        entries.append(linear @ entries[-1])
        biases.append(linear @ biases[-1] + layer.bias[order])
        for above in passed:
            above.append(linear @ above[-1])
        passed.append([weight])
    signs = torch.cat([*(torch.where(through, -1.0, 1.0) for through in folded), torch.ones(len(shares[-1]))]).double()
    rows = [(torch.cat(above) * signs[-sum(map(len, above)) :, None]).T.reshape(-1) for above in passed]
    entry, bias = torch.cat(entries) * signs[:, None], torch.cat(biases) * signs
    return Folded(entry.float(), bias.float(), torch.cat([torch.empty(0), *rows]).float())


def _positive_shares(model: NeuMF) -> list[Tensor]:
    """How often hidden units are positive over some pairs, float32 [w_l] per layer; row side features are 0."""
    config = model.config
    users, items = (torch.arange(_SAMPLED) * n // _SAMPLED for n in (config.n_users, config.n_items))
    users, items = users.repeat_interleave(_SAMPLED), items.repeat(_SAMPLED)
    side = [
        torch.zeros(len(users), dtype=torch.float32 if feature.cardinality is None else torch.int32)
        for feature in config.row_side
    ]
    ids = model.mlp_user_embed(users), model.mlp_item_embed(items)
    hidden, shares = torch.cat((*ids, *model.side_inputs(items, side)), dim=1), []
    for layer in model.mlp:
        hidden = layer(hidden)
        shares.append((hidden > 0).float().mean(dim=0))
        hidden = hidden.relu_()
    return shares
