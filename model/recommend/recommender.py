"""Inference with a trained run: recommendations and scores of pairs, in original ids."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.data.popularity import item_popularity
from model.data.run_data import RunData
from model.data.user_items import take_lists
from model.data.vocabulary import Id, Vocabulary
from model.distributed.process_group import ProcessGroup
from model.network.checkpoint import Run, load_run
from model.recommend.recommendations import Recommendations, Scale, best
from model.recommend.user_data import PreparedInteractions, UserHistories
from model.scoring.scorer import Scorer
from workflows.common.errors import UserError
from workflows.device.memory import require_memory
from workflows.device.torch_device import torch_device

UnknownUsers = Literal["error", "popular"]
UnknownItems = Literal["error", "skip"]

_Lists = tuple[np.ndarray, np.ndarray, np.ndarray]
_OR_POPULAR = ", or recommend popular items with --unknown-users popular"
_OR_SKIP = ", or leave such candidates out with --unknown-items skip"
_BLOCK_SCORES = 1 << 23  # held at once, 4 bytes each
_PART = 1 << 21  # recommendations held at once by `recommend_all`
_LEAST_BYTES = 20  # of a recommendation: two forms of the item, and the score


class Recommender:
    """A trained run with the ids and interactions of the folder it was trained on.

    Threads may share it: it does not change after construction.
    """

    def __init__(self, run: Run, data: Path | None = None, in_memory: bool = False) -> None:
        """As `load`, for a run that is already loaded."""
        self._run, self._data = run, RunData.load(run, data)
        self._interactions = PreparedInteractions(self._data.folder, self._data.spec, self._data.columns)
        self._held = self._interactions.of_users(np.arange(len(self.users))) if in_memory else None
        self._scorer = Scorer(run.model)
        self._device = run.model.final.weight.device

    @property
    def users(self) -> Vocabulary:
        """All users of the folder; `trained` are those that the run was trained on."""
        return self._data.users

    @property
    def trained(self) -> np.ndarray:
        """Encoded ids of the users that the run was trained on, ascending, int64."""
        return np.flatnonzero(self._data.trained)

    @property
    def note(self) -> str:
        """Remark for the user: the folder has other interactions than the run was trained on; empty if not."""
        return self._data.note

    @property
    def items(self) -> Vocabulary:
        """The items the run was trained on."""
        return self._data.items

    @staticmethod
    def load(run: Path, data: Path | None = None, device: str = "auto", in_memory: bool = False) -> Recommender:
        """Load a run folder written by train.py.

        Args:
            data: the prepared folder it was trained on, if that has moved.
            device: "auto", "cpu" or "cuda": where to score.
            in_memory: load the interactions once, 4 bytes each, so that calls are fast; otherwise each call that needs
                them streams the train rows.

        Raises:
            UserError: not a run, or `data` is not, or no longer, the folder it was trained on.
        """
        loaded = load_run(run, torch_device(device, None))
        return Recommender(loaded, data, in_memory)

    def recommend(
        self,
        users: Sequence[Id],
        k: int = 10,
        *,
        exclude_seen: bool = True,
        candidates: Sequence[Id] | None = None,
        unknown_users: UnknownUsers = "error",
        unknown_items: UnknownItems = "error",
    ) -> Recommendations:
        """The k best items for each user; ties are ordered by internal item id.

        Args:
            users: original ids, as `Vocabulary.known` takes them; repeats are fine.
            exclude_seen: leave out the user's interactions, in train and held out.
            candidates: original ids of the items to choose from, None for all.
            unknown_users: for users the run was not trained on, raise, or recommend the items with most interactions
                in train. That includes users of the folder without a train interaction when the run was trained, and
                users with no rows if the network needs their side features.
            unknown_items: for candidates the run was not trained on, raise, or leave them out.

        Raises:
            UserError: `k` is below 1, a user or candidate is unknown (with "skip": every candidate), or the network's
                scores are NaN.
        """
        choice = self._choice(k, exclude_seen, candidates, unknown_items)
        what = f"recommending {self._longest(choice):,} items to each of {len(users):,} users"
        require_memory(_LEAST_BYTES * len(users) * self._longest(choice), what, "lower -k, or ask for fewer users")
        trained = self._data.trained
        if unknown_users == "popular":
            numbers = self.users.find(users, trained)
        else:
            numbers = self.users.known(users, _OR_POPULAR, trained)
        known = self._known(np.unique(numbers[numbers >= 0]))
        return self._recommendations(self.users.spelt(users), numbers, known, choice, unknown_users)

    def recommend_all(
        self,
        k: int = 10,
        *,
        exclude_seen: bool = True,
        candidates: Sequence[Id] | None = None,
        unknown_users: UnknownUsers = "error",
        unknown_items: UnknownItems = "error",
    ) -> Iterator[Recommendations]:
        """As `recommend`, for all users that the run was trained on, at most one train partition at a time."""
        choice, trained = self._choice(k, exclude_seen, candidates, unknown_items), self._data.trained
        for known in [self._held] if self._held is not None else self._interactions.by_part():
            if not trained.all():
                known = known.take(known.users[trained[known.users]])
            n_users = max(1, _PART // self._longest(choice))
            for start in range(0, max(1, len(known.users)), n_users):
                some = known.take(known.users[start : start + n_users]) if len(known.users) > n_users else known
                users = self.users.originals(some.users)
                yield self._recommendations(users, some.users, some, choice, unknown_users)

    @property
    def scale(self) -> Scale:
        """What the model's scores are: probabilities of an interaction (among negatives like those of training), or
        logits, which only compare the items of one user: after `--loss softmax`, and of a sum of `--members`."""
        train = self._run.config.get("train") or {}
        return "logit" if train.get("members") or train.get("loss") == "softmax" else "probability"

    def _scaled(self, logits: Tensor) -> np.ndarray:
        scores: np.ndarray = (logits if self.scale == "logit" else torch.sigmoid(logits)).float().cpu().numpy()
        return scores

    @torch.inference_mode()
    def score(self, users: Sequence[Id], items: Sequence[Id]) -> npt.NDArray[np.float32]:
        """The score of each pair (users[i], items[i]), shape [N]; see `scale`.

        Raises:
            UserError: a user or item is unknown, or the run was not trained on a user; the lengths differ, or the
                network needs side features of a user without rows.
        """
        if len(users) != len(items):
            raise UserError(f"score takes as many users as items, got {len(users)} and {len(items)}")
        numbers = self.users.known(users, trained=self._data.trained)
        item_numbers = self.items.known(items)
        distinct, index = np.unique(numbers, return_inverse=True)
        side: list[Tensor] = []
        if self._run.model.config.row_side:
            known = self._usable(self._known(distinct), "error")
            side = [torch.from_numpy(values[index]).to(self._device) for values in known.row_side]
        pairs = [torch.from_numpy(column).to(self._device) for column in (numbers, item_numbers)]
        return self._scaled(self._scorer(*pairs, *side))

    def history(self, user: Id) -> list[Id]:
        """A user's interactions: train items in row order (by time, if the folder says so), then held-out items.

        Raises:
            UserError: the user is unknown.
        """
        known = self._known(self.users.known([user]))
        return self.items.originals(known.history.items).tolist()

    def _known(self, users: np.ndarray) -> UserHistories:
        return self._held.take(users) if self._held is not None else self._interactions.of_users(users)

    def _choice(
        self, k: int, exclude_seen: bool, candidates: Sequence[Id] | None, unknown_items: UnknownItems
    ) -> _Choice:
        if k < 1:
            raise UserError(f"-k should be 1 or more, got {k}")
        if candidates is None:
            return _Choice(k, exclude_seen)
        if not len(candidates):
            raise UserError("candidates should contain at least one item, got none")
        items = np.unique(self.items.find(candidates))
        if unknown_items == "error" or items[-1] < 0:
            self.items.known(candidates, _OR_SKIP if items[-1] >= 0 else "")
        items = items[items >= 0]
        column_of = np.full(len(self.items), -1)
        column_of[items] = np.arange(len(items))
        return _Choice(k, exclude_seen, items, column_of)

    def _longest(self, choice: _Choice) -> int:
        """Most recommendations of a user."""
        return min(choice.k, len(self.items) if choice.items is None else len(choice.items))

    def _recommendations(
        self, users: np.ndarray, numbers: np.ndarray, known: UserHistories, choice: _Choice, unknown_users: UnknownUsers
    ) -> Recommendations:
        """
        Args:
            users, numbers: the users by original id and by internal id (-1: unknown).
            known: interactions of the distinct known users.
        """
        known = self._usable(known, unknown_users)
        starts, items, scores = self._ranked(known, choice)
        lists, is_popularity = np.searchsorted(known.users, numbers), ~np.isin(numbers, known.users)
        if is_popularity.any():
            popular, shares = self._popular(choice)
            lists[is_popularity] = len(starts) - 1
            starts = np.append(starts, starts[-1] + len(popular))
            items, scores = np.concatenate([items, popular]), np.concatenate([scores, shares])
        starts, _, chosen = take_lists(starts, lists)
        return Recommendations(users, is_popularity, starts, self.items.originals(items[chosen]), scores[chosen])

    def _usable(self, known: UserHistories, unknown_users: UnknownUsers) -> UserHistories:
        """Users whose side features are known; all users if the network needs none."""
        features = self._run.model.config.row_side
        if not features or known.has_row.all():
            return known
        if unknown_users == "error":
            user = self.users.originals(known.users[~known.has_row]).tolist()[0]
            names = ", ".join(feature.name for feature in features)
            raise UserError(
                f"{self._data.folder} has no row of user {user!r}, so the user's {names} are unknown; add interactions "
                f"of the user to the log, then prepare and train again{_OR_POPULAR}"
            )
        return known.take(known.users[known.has_row])

    @torch.inference_mode()
    def _ranked(self, known: UserHistories, choice: _Choice) -> _Lists:
        """The best items of each user: list offsets, internal item ids, scores."""
        counts, items, scores = [np.zeros(1, np.int64)], [np.zeros(0, np.int64)], [np.zeros(0, np.float32)]
        candidates = torch.from_numpy(choice.items).to(self._device) if choice.items is not None else None
        n_users = max(1, _BLOCK_SCORES // (len(self.items) if choice.items is None else len(choice.items)))
        for start in range(0, len(known.users), n_users):
            block = known.take(known.users[start : start + n_users])
            users, *side = (torch.from_numpy(column).to(self._device) for column in (block.users, *block.row_side))
            logits = self._scorer.all_items(users, *side, items=candidates)
            if choice.exclude_seen:
                seen = (torch.from_numpy(index).to(self._device) for index in choice.seen(block))
                logits[tuple(seen)] = -torch.inf
            found, columns = best(logits, choice.k)
            if not (found < torch.inf).all():
                raise UserError(f"the scores of the network in {self._run.folder} are NaN or infinite; train it again")
            is_left = found > -torch.inf
            chosen = columns if candidates is None else candidates[columns]
            counts.append(is_left.sum(dim=1).cpu().numpy())
            items.append(chosen[is_left].cpu().numpy())
            scores.append(self._scaled(found[is_left]))
        return np.cumsum(np.concatenate(counts)), np.concatenate(items), np.concatenate(scores)

    def _popular(self, choice: _Choice) -> tuple[np.ndarray, np.ndarray]:
        """The candidates with most train interactions, and the share of users who interacted with each."""
        order, counts = self._popularity
        if choice.column_of is not None:
            order = order[choice.column_of[order] >= 0]
        popular = order[: choice.k]
        return popular, (counts[popular] / len(self.users)).astype(np.float32)

    @cached_property
    def _popularity(self) -> tuple[np.ndarray, np.ndarray]:
        """All items by descending train interactions, and the number of interactions by internal item id."""
        if self._held is None:
            counts = item_popularity(self._interactions.train, ProcessGroup(torch.device("cpu"))).numpy()
        else:
            held, test = (
                np.bincount(known.history.items, minlength=len(self.items))
                for known in (self._held, self._interactions.test)
            )
            counts = held - test
        return np.argsort(-counts, kind="stable"), counts


@dataclass(frozen=True)
class _Choice:
    """Ranking options.

    Attributes:
        items: internal ids of the candidates, ascending; None: all items.
        column_of: index of each item among the candidates, -1 if it is not one.
    """

    k: int
    exclude_seen: bool
    items: np.ndarray | None = None
    column_of: np.ndarray | None = None

    def seen(self, known: UserHistories) -> tuple[np.ndarray, np.ndarray]:
        """(user index, candidate index) of each interaction with a candidate, int64."""
        owners, items = known.history.pairs(np.arange(len(known.users)))
        if self.column_of is None:
            return owners, items
        columns = self.column_of[items]
        return owners[columns >= 0], columns[columns >= 0]
