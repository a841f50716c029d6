"""Training steps on a loss over all items, such as the softmax of a user's logits, instead of sampled negatives.

GMF only: its logits of some users for all items are one matrix product. The last factor is the item bias: its user
side stays 1, so that the network is an ordinary GMF. The last layer stays fixed at ones without a bias: it would only
scale factors that are free anyway.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model.data.user_loader import UserBatch
from model.distributed.process_group import ProcessGroup
from model.network.neumf import NeuMF
from model.training.config import TrainConfig
from model.training.optimizer import adam, shared_gradients
from model.training.threads import PARAMETER_WORK, worthwhile_threads
from workflows.device.torch_device import matrix_precision, mixed_dtype, resolve_precision

# Work that justifies a thread, in multiplications of a step's three matrix products or their equivalent in time.
_THREAD_WORK = 50_000_000
_SCORE_WORK = 40  # per logit, besides the matrix products


class AllItemsStep:
    """Adam steps on the mean loss of all positives, each -log of the softmax over all items (multinomial likelihood;
    Liang et al. 2018, section 2.1), with an L2 penalty.

    A step's penalty is weight_decay / 2 times the sum of sqrt(count) * squares: over the batch's users, where count is
    their number of positives, and over all items with theirs, the latter scaled by the step's share of all positives.
    """

    def __init__(self, model: NeuMF, config: TrainConfig, world: ProcessGroup, item_counts: Tensor) -> None:
        """
        Args:
            model: GMF with at least 2 factors; see `start_from_popularity`.
            item_counts: int64 [n_items], train positives of each item.
        """
        self.model, self.world = model, world
        self.optimizer = adam(model, config)
        self.precision = resolve_precision(config.amp, config.precision, world.device)
        self._dtype, self._weight_decay = mixed_dtype(self.precision), config.weight_decay
        self._total = float(item_counts.sum())  # host sync: once per run
        self._item_decay = item_counts.float().sqrt()[:, None]
        self._gradients = shared_gradients(model)
        self._of_scores = _softmax if config.loss == "softmax" else _bce
        width, parameters = model.config.factors, sum(parameter.numel() for parameter in model.parameters())
        scores = config.batch_size // world.size
        self.threads = worthwhile_threads(
            scores * (3 * width + _SCORE_WORK) + parameters * PARAMETER_WORK, _THREAD_WORK
        )

    @torch.no_grad()
    def __call__(self, batch: UserBatch | None, samples: int) -> Tensor:
        """
        Args:
            batch: this rank's users; None or empty if it has none in this step.
            samples: number of positives over all ranks.
        Returns:
            The summed loss of this rank's positives, a scalar on the device.
        """
        with matrix_precision(self.precision, self.world.device):
            return self._step(batch, samples)

    def _step(self, batch: UserBatch | None, samples: int) -> Tensor:
        users, items = self.model.mf_user_embed.weight, self.model.mf_item_embed.weight
        assert users.grad is not None
        assert items.grad is not None
        self._gradients.zero_()
        loss = torch.zeros((), device=self.world.device)
        if batch is not None and len(batch):
            loss, d_users, d_items = self._backward(batch, users[batch.users], items)
            d_users += self._weight_decay * batch.counts.float().sqrt()[:, None] * users[batch.users]
            users.grad.index_add_(0, batch.users, d_users)
            items.grad += d_items
        self.world.sum(self._gradients)
        penalty = self._weight_decay * samples / self._total * self._item_decay * items
        penalty[:, -1] = 0.0  # the popularity bias is not regularised
        items.grad += penalty
        users.grad[:, -1] = 0.0
        self._gradients /= samples
        self.optimizer.step()
        return loss

    def gather_state(self) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def _backward(self, batch: UserBatch, rows: Tensor, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The summed loss, and its gradients with respect to the users' rows and to all items."""
        low, low_items = (rows, items) if self._dtype is None else (rows.to(self._dtype), items.to(self._dtype))
        loss, slopes = self._of_scores((low @ low_items.T).float(), batch)
        slopes = slopes.to(low.dtype)
        return loss, (slopes @ low_items).float(), (slopes.T @ low).float()


def _softmax(scores: Tensor, batch: UserBatch) -> tuple[Tensor, Tensor]:
    """The summed loss of the batch, and its gradient with respect to the logits [B, n_items]."""
    pairs, weights = (batch.owners, batch.items), batch.weights
    log_chances = scores.log_softmax(1)
    loss = -(log_chances[pairs] * weights).sum()
    slopes = log_chances.exp_().mul_(batch.counts[:, None])
    return loss, slopes.index_put_(pairs, -weights, accumulate=True)


def _bce(scores: Tensor, batch: UserBatch) -> tuple[Tensor, Tensor]:
    """As `_softmax`; pairs that are not positives have weight 1."""
    pairs, weights = (batch.owners, batch.items), batch.weights
    own, positive = scores[pairs], torch.zeros_like(scores, dtype=torch.bool)
    positive[pairs] = True  # once, even if a user has an item several times
    loss = nn.functional.softplus(scores).masked_fill_(positive, 0.0).sum()
    loss += (nn.functional.softplus(-own) * weights).sum()
    slopes = scores.sigmoid().masked_fill_(positive, 0.0)
    return loss, slopes.index_put_(pairs, -(-own).sigmoid() * weights, accumulate=True)


@torch.no_grad()
def start_from_popularity(model: NeuMF, item_counts: Tensor, loss: str) -> None:
    """Set the last factor to an item bias that reproduces popularity, and the last layer to the sum of all factors.

    Args:
        item_counts: int64 [n_items], train positives of each item.
    """
    counts, n_users = item_counts.float() + 1.0, len(model.mf_user_embed.weight)
    model.mf_user_embed.weight[:, -1] = 1.0
    bias = counts.log()
    # With repeated interactions, an item may have more positives than there are users.
    bias -= bias.mean() if loss == "softmax" else (n_users + 2.0 - counts).clamp(min=1.0).log()
    model.mf_item_embed.weight[:, -1] = bias
    model.final.weight.fill_(1.0)
    model.final.bias.zero_()


def has_item_bias(model: NeuMF) -> bool:
    """Whether a checkpoint's network has the form that these steps train: see `start_from_popularity`."""
    plain = (model.final.weight == 1.0).all() and (model.final.bias == 0.0).all()
    return bool(plain and (model.mf_user_embed.weight[:, -1] == 1.0).all())
