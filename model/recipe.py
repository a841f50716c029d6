"""Several GMF models, weighed by what users did next and summed: their sum is one wider GMF, an ordinary run.

Models trained with a softmax over all items differ by their seeds, so that their mean errs less than each; an item-item
model knows rare items better. L2 shrinks what is particular to a user more than an item's bias, so that scores come out
too popular: how much each model and the popularity count is fitted on interactions that none of them was trained on,
by maximum likelihood. Nothing is chosen on test: penalties, recency and weights come from the validation split; then
all is trained anew on all of train.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from model import item_item
from model.config import TrainConfig
from model.expected import expected_means
from model.members import Choice, Members
from model.neumf import NeuMF, NeuMFConfig
from workflows import counters
from workflows.device import torch_generator
from workflows.progress import console

_MEMBER_STREAM = 9
_VALIDATION_PAIRS = 1 << 24  # of users and items whose scores by each member are held in memory
_PRIOR_SD = 100.0  # of weights: where a few users can be told perfectly, the most likely ones would be infinite
_STEP = 2.0**0.5  # between one penalty that is tried and the next
_FARTHEST = 2.0**5  # a penalty is from the one that is tried first, where chance alone may lead on and on
_RECENCIES = (0.5, 0.0, 1.0)
# Penalties that are tried first; of item-item times an item's mean count.
_START = {"softmax": 0.5, "bce-all": 0.2, "item-item": 4.0}

OnMember = Callable[[str, tuple[float, float]], None]


@dataclass(frozen=True)
class HeldOutUsers:
    """Users whose held-out item is ranked among all items they have no train positive of.

    Attributes:
        users, items: int64 [V].
        seen: bool [V, n_items], their train positives, the held-out ones left out.
        drawn, k: negatives of a series, and the k of the metrics.
    """

    users: Tensor
    items: Tensor
    seen: Tensor
    drawn: int
    k: int

    @staticmethod
    def of(members: Members, held_out: Tensor, drawn: int, k: int, seed: int) -> HeldOutUsers:
        """All users who have one, or as many of them as memory is meant for, drawn by a seed."""
        n_items, device = members.columns.n_items, held_out.device
        users = (held_out >= 0).nonzero().squeeze(1)
        order = torch.randperm(len(users), generator=torch_generator(seed, torch.device("cpu"))).to(device)
        users = users[order[: max(1, _VALIDATION_PAIRS // n_items)]].sort().values
        place = torch.full((members.columns.n_users,), -1, dtype=torch.int64, device=device)
        place[users] = torch.arange(len(users), device=device)
        seen = torch.zeros(len(users), n_items, dtype=torch.bool, device=device)
        for block in members.batches(0.0).blocks():
            rows = place[block.users][block.owners]
            seen[rows[rows >= 0], block.items[rows >= 0]] = True
        return HeldOutUsers(users, held_out[users].long(), seen, drawn, k)

    def quality(self, scores: Tensor) -> tuple[float, float]:
        """Expected HR@k and NDCG@k of scores [V, n_items]."""
        own = scores.gather(1, self.items[:, None])
        ahead = (~(scores < own) & ~self.seen).sum(1) - 1
        return expected_means(ahead, (~self.seen).sum(1) - 1, self.drawn, self.k)

    def weights(self, features: Sequence[Tensor]) -> list[float]:
        """How much of each score, so that the held-out items are most likely: the softmax of the weighted sum over all
        items but the seen ones, by maximum likelihood, which is concave.

        Args:
            features: float32 [V, n_items] each.
        """
        scales = [1.0 / (float(feature.std()) or 1.0) for feature in features]
        weights = torch.ones(len(features), dtype=torch.float64, device=self.items.device, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights], max_iter=50, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            total = torch.zeros((), dtype=torch.float64, device=weights.device)
            for part in torch.arange(len(self.users), device=weights.device).split(512):
                columns = [feature[part] * scale for feature, scale in zip(features, scales, strict=True)]
                scores = (torch.stack(columns, dim=2).double() @ weights).masked_fill(self.seen[part], -torch.inf)
                own = scores.gather(1, self.items[part, None]).squeeze(1)
                mean = (scores.logsumexp(1) - own).sum() / len(self.users)
                mean.backward()
                total += mean.detach()
            prior = weights.square().sum() / (2.0 * _PRIOR_SD**2 * len(self.users))
            prior.backward()
            return total + prior.detach()

        optimizer.step(loss)
        return [weight * scale for weight, scale in zip(weights.tolist(), scales, strict=True)]


@dataclass(frozen=True)
class Recipe:
    """Which members, how they are trained, and how much each counts."""

    choices: tuple[Choice, ...]
    weights: tuple[float, ...]
    by_popularity: float
    quality: tuple[float, float]

    @staticmethod
    def found(
        members: Members,
        held_out: HeldOutUsers,
        config: TrainConfig,
        factors: int,
        time_ordered: bool,
        on_member: OnMember,
    ) -> Recipe:
        """Choose penalties and recency, then the weights, on the validation split.

        Args:
            members: of the validation split.
            factors: of all members together.
            on_member: called with each candidate's name and its expected HR@k and NDCG@k.
        """
        kinds = config.members
        if members.columns.n_items > item_item.MAX_ITEMS and "item-item" in kinds:
            kinds = tuple(kind for kind in kinds if kind != "item-item")
            console.print(f"no item-item member: there are {members.columns.n_items:,} items, more than "
                          f"{item_item.MAX_ITEMS:,}")  # fmt: skip
        widths = [len(part) for part in torch.arange(factors).tensor_split(len(kinds))]
        seeds = [counters.stream_seed(config.seed, _MEMBER_STREAM, n) % 2**32 for n in range(len(kinds))]
        chosen: dict[str, Choice] = {}
        for kind, width, seed in zip(kinds, widths, seeds, strict=True):
            if kind not in chosen:
                first = Choice(kind, seed, width, _START[kind], _RECENCIES[0] if time_ordered else 0.0)
                chosen[kind] = _searched(members, held_out, first, time_ordered, on_member)
        choices = [
            replace(chosen[kind], seed=seed, width=width)
            for kind, width, seed in zip(kinds, widths, seeds, strict=True)
        ]
        features = [members.scores(choice, held_out.users) for choice in choices]
        popularity = (members.item_counts.float() + 1.0).log().expand(len(held_out.users), -1)
        *weights, by_popularity = held_out.weights([*features, popularity])
        total = by_popularity * popularity
        for weight, feature in zip(weights, features, strict=True):
            total = total + weight * feature
        quality = held_out.quality(total)
        on_member("all together", quality)
        return Recipe(tuple(choices), tuple(weights), by_popularity, quality)

    def to_json(self) -> dict[str, Any]:
        members = [
            {**asdict(choice), "weight": weight} for choice, weight in zip(self.choices, self.weights, strict=True)
        ]
        return {"members": members, "by_popularity": self.by_popularity}

    def fused(self, members: Members) -> NeuMF:
        """One GMF of all members."""
        parts = [members.factors(choice) for choice in self.choices]
        users = torch.cat([part.users for part in parts], dim=1)
        items = torch.cat([weight * part.items for weight, part in zip(self.weights, parts, strict=True)], dim=1)
        columns = members.columns
        shape = NeuMFConfig(n_users=columns.n_users, n_items=columns.n_items, factors=users.shape[1], arch="gmf")
        model = NeuMF(shape, torch_generator(0, torch.device("cpu"))).to(users.device)
        # The last of a member that was trained, whose users have 1 there.
        trained = next(place for place, choice in enumerate(self.choices) if choice.kind != "item-item")
        bias = sum(choice.width for choice in self.choices[: trained + 1]) - 1
        items[:, bias] += self.by_popularity * (members.item_counts.float() + 1.0).log()
        with torch.no_grad():
            model.mf_user_embed.weight.copy_(users)
            model.mf_item_embed.weight.copy_(items)
            model.final.weight.fill_(1.0)
            model.final.bias.zero_()
        return model


def _searched(
    members: Members, held_out: HeldOutUsers, first: Choice, time_ordered: bool, on_member: OnMember
) -> Choice:
    """The best penalty with each recency, going up or down from the first for as long as that helps."""
    known: dict[Choice, float] = {}

    def quality(choice: Choice) -> float:
        if choice not in known:
            found = held_out.quality(members.scores(choice, held_out.users))
            on_member(choice.name, found)
            known[choice] = sum(found)
        return known[choice]

    def is_near(choice: Choice) -> bool:
        return first.penalty / _FARTHEST < choice.penalty < first.penalty * _FARTHEST

    best = first
    for recency in _RECENCIES if time_ordered else (0.0,):
        found = replace(best, recency=recency)
        start = found.penalty
        for factor in (_STEP, 1.0 / _STEP):
            following = replace(found, penalty=found.penalty * factor)
            while is_near(following) and quality(following) > quality(found):
                found, following = following, replace(following, penalty=following.penalty * factor)
            if found.penalty != start:
                break
        best = max(best, found, key=quality)
    return best
