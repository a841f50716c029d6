"""An ensemble of GMF models: their weighted sum is one wider GMF, written as an ordinary run.

Models trained with a softmax over all items differ by seed, so their mean has a lower error than any one; an item-item
model ranks rare items better. L2 shrinks user-specific factors more than item biases, which skews scores towards
popular items; so the weights of the members and of popularity are fitted by maximum likelihood on interactions that no
member was trained on. Nothing is chosen on test: penalties, recency and weights come from the validation split, and
then all members are retrained on all of train.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.ensemble import ease
from model.ensemble.members import MemberConfig, MemberTrainer
from model.evaluation.expected_metrics import comparable, expected_means
from model.evaluation.metrics import all_hit
from model.network.neumf import NeuMF, NeuMFConfig
from model.training.config import TrainConfig
from workflows.common.errors import UserError
from workflows.common.progress import console
from workflows.device.torch_device import torch_generator
from workflows.sampling import counter_rng

_MEMBER_STREAM = 9
_VALIDATION_PAIRS = 1 << 24  # user-item pairs whose scores are held in memory for each member
_PRIOR_SD = 100.0  # of weights: if a few users are perfectly separable, the maximum likelihood is at infinity
_NEWTON_STEPS = 50
_CONVERGED = 1e-8  # of the log-likelihood per user, and of a weight
_STEP = 2.0  # ratio between successive penalties tried
_BY_RECENCY = 4.0  # the best penalty's ratio for a difference of 1 in recency, which leaves fewer effective samples
_NEAR = 0.25  # steps to a parabola's top that is not tried: a whole step loses sixteen times as much as it would gain
_FARTHEST = 2.0**5  # maximum ratio to the first penalty; noise alone could keep the search going
_RECENCIES = (0.5, 0.0, 1.0)
# First penalties tried; item-item's is multiplied by the mean item count.
_START = {"softmax": 0.5, "bce-all": 0.2, "item-item": 4.0}

OnMember = Callable[[str, tuple[float, float]], None]


class _Fit(NamedTuple):
    """The loss of weights, with its gradient [F] and second derivatives [F, F], in float64."""

    loss: float
    gradient: Tensor
    curvature: Tensor


@dataclass(frozen=True)
class ValidationRanking:
    """Users whose held-out item is ranked against all items that are not their train positives.

    Attributes:
        users, items: int64 [V].
        seen: bool [V, n_items], their train positives, excluding the held-out ones.
        drawn, k: number of negatives per series, and the metrics' k.
    """

    users: Tensor
    items: Tensor
    seen: Tensor
    drawn: int
    k: int

    @staticmethod
    def from_rows(members: MemberTrainer, validation_items: Tensor, drawn: int, k: int, seed: int) -> ValidationRanking:
        """All users with a held-out item, or a seeded random sample of what the memory limit allows.

        Raises:
            UserError: every model would hit.
        """
        n_items, device = members.columns.n_items, validation_items.device
        users = (validation_items >= 0).nonzero().squeeze(1)
        order = torch.randperm(len(users), generator=torch_generator(seed, torch.device("cpu"))).to(device)
        users = users[order[: max(1, _VALIDATION_PAIRS // n_items)]].sort().values
        index = torch.full((members.columns.n_users,), -1, dtype=torch.int64, device=device)
        index[users] = torch.arange(len(users), device=device)
        seen = torch.zeros(len(users), n_items, dtype=torch.bool, device=device)
        for block in members.batches(0.0).blocks():
            rows = index[block.users][block.owners]
            seen[rows[rows >= 0], block.items[rows >= 0]] = True
        ranking = ValidationRanking(users, validation_items[users].long(), seen, drawn, k)
        if ranking.n_left_out == len(users):
            raise UserError(all_hit(k, 1 + min(drawn, int(ranking.others.max()))))
        return ranking

    @property
    def others(self) -> Tensor:
        """Number of items ranked with each held-out one, int64 [V]."""
        return (~self.seen).sum(1) - 1

    @property
    def n_left_out(self) -> int:
        """Number of users left out of the metrics, see `comparable`."""
        return int((~comparable(self.others, self.drawn, self.k)).sum())

    def quality(self, scores: Tensor) -> tuple[float, float]:
        """Expected HR@k and NDCG@k of scores [V, n_items]."""
        own = scores.gather(1, self.items[:, None])
        ahead = (~(scores < own) & ~self.seen).sum(1) - 1
        return expected_means(ahead, self.others, self.drawn, self.k)

    def weights(self, features: Sequence[Tensor]) -> list[float]:
        """Maximum-likelihood weights: the softmax of the weighted sum of scores over all unseen items predicts the
        held-out item. The log-likelihood is concave, so Newton's method finds its maximum in a few passes.

        Args:
            features: scores, float32 [V, n_items] each.
        """
        scales = [1.0 / (float(feature.std()) or 1.0) for feature in features]
        weights = torch.ones(len(features), dtype=torch.float64, device=self.items.device)
        fit = self._fit(features, scales, weights)
        for _ in range(_NEWTON_STEPS):
            step = torch.linalg.solve(fit.curvature, fit.gradient)
            closer = self._fit(features, scales, weights - step)
            while closer.loss > fit.loss and float(step.abs().max()) > _CONVERGED:
                step = step / 2.0
                closer = self._fit(features, scales, weights - step)
            if fit.loss - closer.loss < _CONVERGED:
                break
            weights, fit = weights - step, closer
        return [weight * scale for weight, scale in zip(weights.tolist(), scales, strict=True)]

    def _fit(self, features: Sequence[Tensor], scales: Sequence[float], weights: Tensor) -> _Fit:
        """The mean negative log-likelihood of weights of the scaled features, with their prior."""
        total = torch.zeros((), dtype=weights.dtype, device=weights.device)
        gradient, curvature = weights / _PRIOR_SD**2, torch.eye(len(weights)).to(weights) / _PRIOR_SD**2
        for part in torch.arange(len(self.users), device=weights.device).split(512):
            columns = torch.stack([feature[part] * scale for feature, scale in zip(features, scales, strict=True)])
            scores = torch.zeros(columns.shape[1:], dtype=weights.dtype, device=weights.device)
            for column, weight in zip(columns, weights, strict=True):
                scores += column * weight
            log_chances = scores.masked_fill_(self.seen[part], -torch.inf).log_softmax(1)
            own = self.items[part, None]
            total -= log_chances.gather(1, own).sum()
            chances = log_chances.exp().float()
            columns -= (columns * chances).sum(2, keepdim=True)  # of each user, so that nothing cancels below
            rows = columns.flatten(1)
            curvature += ((rows * chances.flatten()) @ rows.T).double()
            gradient -= columns.gather(2, own.expand(len(columns), -1, 1)).double().sum((1, 2))
        n_users = len(self.users)
        prior = float(weights.square().sum()) / (2.0 * _PRIOR_SD**2)
        return _Fit((float(total) + prior) / n_users, gradient / n_users, curvature / n_users)


@dataclass(frozen=True)
class Ensemble:
    """The members of the ensemble: their training settings and weights."""

    choices: tuple[MemberConfig, ...]
    weights: tuple[float, ...]
    by_popularity: float
    quality: tuple[float, float]

    @staticmethod
    def search(
        members: MemberTrainer,
        validation_items: ValidationRanking,
        config: TrainConfig,
        factors: int,
        time_ordered: bool,
        on_member: OnMember,
    ) -> Ensemble:
        """Choose penalties and recency, then the weights, on the validation split.

        Args:
            members: of the validation split.
            factors: total width of all members.
            on_member: called with each candidate's name and its expected HR@k and NDCG@k.
        """
        kinds = config.members
        if members.columns.n_items > ease.MAX_ITEMS and "item-item" in kinds:
            kinds = tuple(kind for kind in kinds if kind != "item-item")
            console.print(f"no item-item member: there are {members.columns.n_items:,} items, more than "
                          f"{ease.MAX_ITEMS:,}")  # fmt: skip
        widths = [len(part) for part in torch.arange(factors).tensor_split(len(kinds))]
        seeds = [counter_rng.stream_seed(config.seed, _MEMBER_STREAM, n) % 2**32 for n in range(len(kinds))]
        chosen: dict[str, MemberConfig] = {}
        for kind, width, seed in zip(kinds, widths, seeds, strict=True):
            if kind not in chosen:
                first = MemberConfig(kind, seed, width, _START[kind], _RECENCIES[0] if time_ordered else 0.0)
                # Data that need a larger penalty with one loss need it with another.
                for other, found in chosen.items():
                    if "item-item" not in (kind, other):
                        penalty = first.penalty * found.penalty / _START[other]
                        first = replace(first, penalty=penalty, recency=found.recency)
                chosen[kind] = _searched(members, validation_items, first, time_ordered, on_member)
        choices = [
            replace(chosen[kind], seed=seed, width=width)
            for kind, width, seed in zip(kinds, widths, seeds, strict=True)
        ]
        features = list(members.scores(choices, validation_items.users))
        popularity = (members.item_counts.float() + 1.0).log().expand(len(validation_items.users), -1)
        *weights, by_popularity = validation_items.weights([*features, popularity])
        total = by_popularity * popularity
        for weight, feature in zip(weights, features, strict=True):
            total = total + weight * feature
        quality = validation_items.quality(total)
        on_member("all together", quality)
        return Ensemble(tuple(choices), tuple(weights), by_popularity, quality)

    def to_json(self) -> dict[str, Any]:
        members = [
            {**asdict(choice), "weight": weight} for choice, weight in zip(self.choices, self.weights, strict=True)
        ]
        return {"members": members, "by_popularity": self.by_popularity}

    def merge_factors(self, members: MemberTrainer) -> NeuMF:
        """Sum the members into one GMF."""
        parts = members.factors(self.choices)
        users = torch.cat([part.users for part in parts], dim=1)
        items = torch.cat([weight * part.items for weight, part in zip(self.weights, parts, strict=True)], dim=1)
        columns = members.columns
        shape = NeuMFConfig(n_users=columns.n_users, n_items=columns.n_items, factors=users.shape[1], arch="gmf")
        model = NeuMF(shape, torch_generator(0, torch.device("cpu"))).to(users.device)
        # Last column of a trained member (not item-item), where its users are 1.
        trained = next(index for index, choice in enumerate(self.choices) if choice.kind != "item-item")
        bias = sum(choice.width for choice in self.choices[: trained + 1]) - 1
        items[:, bias] += self.by_popularity * (members.item_counts.float() + 1.0).log()
        with torch.no_grad():
            model.mf_user_embed.weight.copy_(users)
            model.mf_item_embed.weight.copy_(items)
            model.final.weight.fill_(1.0)
            model.final.bias.zero_()
        return model


def _searched(
    members: MemberTrainer,
    validation_items: ValidationRanking,
    first: MemberConfig,
    time_ordered: bool,
    on_member: OnMember,
) -> MemberConfig:
    """The best penalty for the first recency, then for the best other one if a member with it is better."""
    known: dict[MemberConfig, float] = {}

    def best_of(choices: Sequence[MemberConfig]) -> MemberConfig:
        """The best choice, the first of equals; new ones are trained together."""
        new = [choice for choice in choices if choice not in known]
        for choice, scores in zip(new, members.scores(new, validation_items.users), strict=True):
            found = validation_items.quality(scores)
            on_member(choice.name, found)
            known[choice] = sum(found)
        return max(choices, key=lambda choice: known[choice])

    def is_near(choice: MemberConfig) -> bool:
        return first.penalty / _FARTHEST < choice.penalty < first.penalty * _FARTHEST

    def peak(found: MemberConfig) -> MemberConfig:
        """Change the penalty in large steps while that improves the quality; then take the top of the parabola through
        the last three, if that is some way off and indeed better."""
        while True:
            both = [replace(found, penalty=found.penalty * factor) for factor in (1.0 / _STEP, _STEP)]
            sides = list(filter(is_near, both))
            if (better := best_of([found, *sides])) == found:
                break
            found = better
        if len(sides) < 2:
            return found
        lower, upper = (known[side] for side in sides)
        if not (bend := 2.0 * known[found] - lower - upper):
            return found
        if abs(steps := 0.5 * (upper - lower) / bend) < _NEAR:
            return found
        return best_of([found, replace(found, penalty=found.penalty * _STEP**steps)])

    best = peak(best_of([first, replace(first, penalty=first.penalty * _STEP)]))
    if time_ordered:
        probes = [
            replace(best, recency=recency, penalty=best.penalty * _BY_RECENCY ** (recency - best.recency))
            for recency in _RECENCIES
            if recency != best.recency
        ]
        if (better := best_of([best, *probes])) != best:
            best = peak(better)
    return best
