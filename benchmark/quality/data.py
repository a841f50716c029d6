"""A prepared folder as training and test data for the models of `python -m benchmark quality`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.data.dataset import Rows, open_train
from model.data.test_set import TestSet, open_test_set
from model.data.user_items import UserItems
from model.data.user_loader import UserLoader, UserLoaderConfig
from model.data.validation_split import leave_one_out
from model.distributed.process_group import ProcessGroup
from model.ensemble.ease import MAX_ITEMS, histories
from model.ensemble.search import ValidationRanking
from model.evaluation.expected_metrics import expected
from model.evaluation.metrics import full_ranks, positive_ranks
from model.training.config import TrainConfig
from preprocessing.spec.feature_columns import FeatureColumns
from preprocessing.spec.feature_spec import read_feature_spec
from workflows.common.errors import UserError

Matrix = npt.NDArray[np.float64]
K = 10
METRICS = (f"hr@{K}", f"ndcg@{K}")
_WORLD = ProcessGroup(torch.device("cpu"))
_BLOCK_SERIES = 1024


@dataclass(frozen=True)
class Ranks:
    """Ranks, from 0, of the positives of S test series.

    Attributes:
        sampled: int64 [S], within the series.
        full: int64 [S], among all items without a train interaction of the user.
        others: int64 [S], number of those items, excluding the positive.
        drawn: negatives per series.
    """

    sampled: Tensor
    full: Tensor
    others: Tensor
    drawn: int

    def metrics(self) -> dict[str, npt.NDArray[np.float64]]:
        """HR@10 and NDCG@10 of each series: within the series, in expectation over all draws of its negatives, and
        among all items; float64 [S]."""
        ways = {
            "sampled": (self.sampled, torch.full_like(self.sampled, self.drawn), self.drawn),
            "expected": (self.full, self.others, self.drawn),
            "full": (self.full, self.others, int(self.others.max())),
        }
        found = {}
        for way, (ahead, others, drawn) in ways.items():
            for name, values in zip(METRICS, expected(ahead, others, drawn, K), strict=True):
                found[f"{way} {name}"] = values.numpy()
        return found


@dataclass(frozen=True)
class Data:
    """The train rows and test series of a folder without side features."""

    train: Rows
    test: TestSet
    time_ordered: bool

    @staticmethod
    def load(folder: Path) -> Data:
        """
        Raises:
            UserError: the folder has no test series, has side features, or has too many items for a closed form.
        """
        spec = read_feature_spec(folder)
        columns = FeatureColumns.from_spec(spec)
        test = open_test_set(folder, spec, _WORLD.device, columns)
        if test is None or test.length is None or columns.side or columns.n_items > MAX_ITEMS:
            raise UserError(
                f"{folder}: models are compared on folders with test series, without side features, and with "
                f"{MAX_ITEMS:,} items at most"
            )
        train = open_train(folder, spec, _WORLD.device, columns)
        return Data(train.only((columns.user, columns.item, columns.label)), test, spec.metadata.time_ordered)

    @property
    def drawn(self) -> int:
        assert self.test.length is not None
        return self.test.length - 1

    def validation_items(self, seed: int) -> Tensor:
        """One item per user for choosing settings, as with `--validation leave-one-out`; -1 for none."""
        return leave_one_out(self.train, self.time_ordered, self.drawn, seed, _WORLD.device).validation_items

    def histories(self, recency: float = 0.0, validation_items: Tensor | None = None) -> Matrix:
        """Weight of each train interaction, 1 without recency (see `UserLoader`); [n_users, n_items]."""
        columns = self.train.columns
        found = np.zeros((columns.n_users, columns.n_items))
        loader = UserLoaderConfig(batch_size=TrainConfig.batch_size, recency=recency)
        batches = UserLoader(self.train, loader, _WORLD, validation_items)
        for users, rows in histories(batches.blocks(), columns.n_items):
            found[users.numpy()] = rows.numpy()
        return found

    def validation(self, validation_items: Tensor) -> Callable[[Matrix], tuple[float, float]]:
        """Expected HR@10 and NDCG@10 of the held-out items, as a function of all users' scores for all items."""
        users = (validation_items >= 0).nonzero().squeeze(1)
        seen = torch.from_numpy(self.histories(validation_items=validation_items)[users.numpy()] > 0)
        of_users = ValidationRanking(users, validation_items[users].long(), seen, self.drawn, K)
        return lambda scores: of_users.quality(torch.from_numpy(scores.astype(np.float32))[users])

    def ranks(self, all_items: Callable[[Tensor], Tensor]) -> Ranks:
        """Rank the test positives.

        Args:
            all_items: scores of the given users for all items: int64 [B] -> float [B, n_items].
        """
        columns, length = self.train.columns, self.drawn + 1
        seen, found = UserItems.from_rows(self.train, _WORLD.device), []
        rows = self.test.rows.only((columns.user, columns.item))
        for users, items in rows.stream(_BLOCK_SERIES * length, _WORLD.device):
            of_series, series = users.view(-1, length)[:, 0].long(), items.view(-1, length).long()
            scores = all_items(of_series).float()
            owners, others = seen.pairs(of_series)
            full = full_ranks(scores, series[:, 0], owners, others)
            n_others = columns.n_items - 1 - torch.bincount(owners, minlength=len(of_series))
            found.append((positive_ranks(scores.gather(1, series), series), full, n_others))
        sampled, full, n_others = (torch.cat(column) for column in zip(*found, strict=True))
        return Ranks(sampled, full, n_others, self.drawn)
