"""Answers to the service's queries from a trained run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from model.data.vocabulary import Id
from model.recommend.recommender import Recommender
from model.serve.schemas import Health, Item, Ranked, UserAnswer

_N_EXAMPLES = 3


@dataclass(frozen=True)
class Asked:
    """Query for one user: `k` items, and the `history` latest items of the user."""

    user: str
    k: int
    history: int


class Service:
    """A run's recommendations with titles."""

    def __init__(self, recommender: Recommender, titles: Mapping[str, str]) -> None:
        """
        Args:
            titles: by item id as text; may be incomplete.
        """
        self._recommender, self._titles = recommender, titles

    def __call__(self, batch: Sequence[Asked]) -> list[UserAnswer]:
        """Answer a batch of queries in one scoring call; unknown users get popular items."""
        users = [asked.user for asked in batch]
        rankings = self._recommender.recommend(users, max(asked.k for asked in batch), unknown_users="popular")
        answers = []
        for asked, ranking in zip(batch, rankings, strict=True):
            pairs = zip(ranking.items[: asked.k], ranking.scores, strict=False)
            items = [Ranked(item=str(item), title=self._title(item), score=score) for item, score in pairs]
            is_known = ranking.basis == "model"
            history = self._history(asked) if is_known and asked.history else []
            answers.append(UserAnswer(basis=ranking.basis, items=items, history=history))
        return answers

    def health(self) -> Health:
        trained = self._recommender.trained
        examples = self._recommender.users.originals(trained[:_N_EXAMPLES])
        return Health(
            status="ok",
            n_users=len(trained),
            n_items=len(self._recommender.items),
            examples=[str(user) for user in examples],
            scores=self._recommender.scale,
        )

    def _history(self, asked: Asked) -> list[Item]:
        latest = self._recommender.history(asked.user)[: -asked.history - 1 : -1]
        return [Item(item=str(item), title=self._title(item)) for item in latest]

    def _title(self, item: Id) -> str | None:
        return self._titles.get(str(item))
