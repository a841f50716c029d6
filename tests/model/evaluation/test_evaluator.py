"""Evaluation against loops over the series or over all items, with one rank and several."""

from __future__ import annotations

import copy
import math
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import yaml
from host_waits import HostWaits
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from model.data.dataset import Rows, open_train
from model.data.partitions import TablePartitions
from model.data.popularity import count_positives, item_popularity
from model.data.test_set import TestSet, open_test_set
from model.data.user_items import UserItems
from model.distributed.process_group import ProcessGroup
from model.evaluation.evaluator import AnyScorer, Evaluator, EvaluatorConfig, PopularityScorer
from model.evaluation.metrics import EvalMetrics
from model.network.neumf import NeuMF, NeuMFConfig
from model.scoring.scorer import Scorer
from preprocessing.spec.feature_columns import FeatureColumns, SideFeature
from preprocessing.spec.feature_spec import read_feature_spec
from workflows.common.errors import UserError
from workflows.device.frames import frame_device

CPU = torch.device("cpu")
ALONE = ProcessGroup(CPU)
N_USERS, N_ITEMS, LENGTH, SERIES = 9, 12, 6, 31
Row = tuple[int, int, float]
Result = TypeVar("Result")


class Scoring:
    """A scorer from a function of user-item pairs."""

    def __init__(self, score: Callable[..., Tensor], n_items: int = 8) -> None:
        self.score, self.n_items = score, n_items

    def __call__(self, users: Tensor, items: Tensor, *side: Tensor) -> Tensor:
        return self.score(users, items, *side)

    def all_items(self, users: Tensor, *side: Tensor) -> Tensor:
        pairs = [column.repeat_interleave(self.n_items) for column in (users, *side)]
        items = torch.arange(self.n_items, dtype=torch.int32).repeat(len(users))
        return self.score(pairs[0], items, *pairs[1:]).view(len(users), self.n_items)


def by_popularity(train: Rows) -> PopularityScorer:
    return PopularityScorer(item_popularity(train, ALONE))


def evaluator_of(rows: Rows, length: int | None, k: int, batch_size: int) -> Evaluator:
    return Evaluator(TestSet(rows, length), EvaluatorConfig(k, batch_size), ALONE)


def evaluated(evaluator: Evaluator, scorer: AnyScorer) -> EvalMetrics:
    return evaluator.evaluate(lambda: scorer)


def on_ranks(size: int, work: Callable[[ProcessGroup], Result]) -> list[Result]:
    """The results of `size` concurrent ranks, one thread each."""
    added = [torch.empty(0)] * size
    met = threading.Barrier(size, timeout=60)

    class Rank(ProcessGroup):
        def gather(self, tensor: Tensor) -> list[Tensor]:
            added[self.rank] = tensor.clone()
            met.wait()
            found = list(added)
            met.wait()
            return found

        def sum(self, tensor: Tensor) -> Tensor:
            added[self.rank] = tensor.clone()
            met.wait()
            total = torch.stack(added).sum(dim=0)
            met.wait()
            return tensor.copy_(total)

    def part(rank: int) -> Result:
        try:
            return work(Rank(CPU, rank, size))
        except BaseException:
            met.abort()
            raise

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(part, range(size)))


def random_series(seed: int) -> list[Row]:
    """Consecutive series with repeated items."""
    rng = np.random.default_rng(seed)
    return [
        (int(user), int(item), float(place == 0))
        for user in rng.integers(0, N_USERS, SERIES)
        for place, item in enumerate(rng.integers(0, N_ITEMS, LENGTH))
    ]


def brute(rows: list[Row], table: np.ndarray, k: int) -> tuple[float, ...]:
    """HR, NDCG and MRR of the series with more than `k` distinct items, the loss of all, and the number of others."""
    hits, gains, reciprocal, losses, left_out = [], [], [], [], 0
    for start in range(0, len(rows), LENGTH):
        block = rows[start : start + LENGTH]
        scores = [float(table[user, item]) for user, item, _ in block]
        ahead = {item for (_, item, _), score in zip(block, scores, strict=True) if score >= scores[0]}
        rank = len(ahead - {block[0][1]})
        if len({item for _, item, _ in block}) > k:
            hits.append(rank < k)
            gains.append(1 / math.log2(rank + 2) if rank < k else 0.0)
            reciprocal.append(1 / (rank + 1))
        else:
            left_out += 1
        for place, score in enumerate(scores):
            probability = 1 / (1 + math.exp(-score))
            losses.append(-math.log(probability if place == 0 else 1 - probability))
    return *(float(np.mean(values)) for values in (hits, gains, reciprocal, losses)), left_out


def ranked(scores: EvalMetrics) -> tuple[float | None, ...]:
    """The metrics that `brute` computes."""
    return scores.hit_rate, scores.ndcg, scores.mrr, scores.loss, scores.series_left_out


# Parts need not end at a series boundary; one part has no rows.
CUTS = {"one part": [], "whole series": [60, 120], "within series": [1, 50, 50, 101, 185]}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("batch_size", [1, 13, 60, 10**6])
def test_metrics_match_a_plain_loop(test_rows: Callable, cuts: list[int], batch_size: int) -> None:
    rows = random_series(len(cuts))
    parts = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    table = np.random.default_rng(5).integers(-2, 3, (N_USERS, N_ITEMS)).astype(np.float32)  # many ties
    scores = torch.from_numpy(table)
    streamed = test_rows(parts, N_USERS, N_ITEMS, LENGTH)
    found = evaluated(evaluator_of(streamed, LENGTH, 2, batch_size), Scoring(lambda users, items: scores[users, items]))
    assert ranked(found) == pytest.approx(brute(rows, table, 2), rel=1e-6)
    assert found.auc is None
    assert found.samples_per_s == pytest.approx(len(rows) / found.seconds)


def test_every_series_is_scored_once_including_the_last_partial_batch(test_rows: Callable) -> None:
    rows = random_series(1)
    streamed = test_rows([rows], N_USERS, N_ITEMS, LENGTH)
    seen: list[tuple[int, int]] = []

    def score(users: Tensor, items: Tensor) -> Tensor:
        assert len(users) <= 24
        seen.extend(zip(users.tolist(), items.tolist(), strict=True))
        return torch.zeros(len(users))

    evaluated(evaluator_of(streamed, LENGTH, 2, 29), Scoring(score))  # 29 samples hold 4 whole series
    assert seen == [(user, item) for user, item, _ in rows]


def test_parts_are_concatenated_in_spec_order(write_folder: Callable[..., Path]) -> None:
    rows = random_series(2)
    folder = write_folder([[(0, 0, 1.0)]], N_USERS, N_ITEMS, [rows[100:], rows[:100]], LENGTH)
    path = folder / "feature_spec.yaml"
    spec = yaml.safe_load(path.read_text())
    spec["source_spec"]["test"][0]["files"].reverse()  # a series begins in part 1 and ends in part 0
    path.write_text(yaml.safe_dump(spec))
    streamed = open_test_set(folder, read_feature_spec(folder), CPU).rows
    blocks = [zip(users.tolist(), items.tolist(), strict=True) for users, items in streamed.stream(30, CPU)]
    assert [pair for block in blocks for pair in block] == [(user, item) for user, item, _ in rows]


def test_evaluation_ignores_dropout_and_leaves_the_training_mode(test_rows: Callable) -> None:
    rows = random_series(3)
    streamed = test_rows([rows], N_USERS, N_ITEMS, LENGTH)
    config = NeuMFConfig(n_users=N_USERS, n_items=N_ITEMS, factors=3, layers=(8, 8), dropout=0.9)
    model = NeuMF(config, torch.Generator().manual_seed(3))
    users, items = (grid.flatten() for grid in torch.meshgrid(torch.arange(9), torch.arange(12), indexing="ij"))
    table = model.eval()(users, items).detach().reshape(N_USERS, N_ITEMS).double().numpy()
    for training in (True, False):
        model.train(training)
        found = evaluated(evaluator_of(streamed, LENGTH, 3, 100), Scorer(model))
        assert ranked(found) == pytest.approx(brute(rows, table, 3), rel=1e-5)
        assert model.training is training


def test_an_error_leaves_the_training_mode(test_rows: Callable) -> None:
    streamed = test_rows([[(0, 99, 1.0), (0, 1, 0.0)]], 3, 4, 2)
    model = NeuMF(NeuMFConfig(n_users=3, n_items=4, factors=1, layers=(2,))).train()
    with pytest.raises(UserError, match="holds 99"):
        evaluated(evaluator_of(streamed, 2, 1, 10), Scorer(model))
    assert model.training


def test_popularity_counts_train_positives(train_rows: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.data.popularity.BLOCK_ROWS", 17)
    rng = np.random.default_rng(0)
    rows = [(int(u), int(i), float(label)) for u, i, label in rng.integers(0, [5, 7, 2], (90, 3))]
    parts = [sorted(rows[:40]), [], sorted(rows[40:])]
    counted = Counter(item for _, item, label in rows if label)
    expected = [counted[item] for item in range(8)]
    train = train_rows(parts, 5, 8)
    assert item_popularity(train, ALONE).tolist() == expected
    for size in (2, 3, 4):  # two parts have rows
        assert [counts.tolist() for counts in on_ranks(size, lambda world: item_popularity(train, world))] == (
            [expected] * size
        )
    users = [user in {user for user, _, label in rows if label} for user in range(5)]
    for counts in on_ranks(2, lambda world: count_positives(train, world)):
        assert counts.has_any.tolist() == users
    held_out = torch.tensor([3, -1, 0, 5, -1], dtype=torch.int32)  # users may have the item several times or never
    kept = Counter(item for user, item, label in rows if label and held_out[user] != item)
    assert item_popularity(train, ALONE, held_out).tolist() == [kept[item] for item in range(8)]
    assert kept != counted


def test_popularity_as_a_scorer(train_rows: Callable, test_rows: Callable) -> None:
    # Items 0, 1, 2 were chosen 3, 2 and 1 times, item 3 never; ties do not favour the positive.
    train = [(user, item, 1.0) for item, users in enumerate([3, 2, 1]) for user in range(users)]
    popular = train_rows([sorted(train)], 3, 5, name="popular")
    series = [(0, 0), (0, 1), (0, 3), (1, 2), (1, 0), (1, 1), (2, 3), (2, 4), (2, 2)]
    labelled = [(user, item, float(place % 3 == 0)) for place, (user, item) in enumerate(series)]
    streamed = test_rows([labelled], 3, 5, 3)
    for k, hits in ((1, 1 / 3), (2, 1 / 3)):
        assert evaluated(evaluator_of(streamed, 3, k, 6), by_popularity(popular)).hit_rate == pytest.approx(hits)


def labelled(write_frames: Callable[..., Path], labels: list[float], **metadata: int) -> tuple[Path, pd.DataFrame]:
    """A folder whose test rows have a label and an hour."""
    rng = np.random.default_rng(8)
    n = len(labels)
    columns = {"user": rng.integers(0, 9, n), "item": rng.integers(0, 12, n), "label": labels, "hour": np.arange(n) % 4}
    frame = pd.DataFrame(columns)
    channels = {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"], "user_hours": ["hour"]}
    sizes = {"user": 9, "item": 12, "hour": 4}
    return write_frames({"train": frame, "test": frame}, channels, sizes, **metadata), frame


def evaluation_of(folder: Path, batch_size: int) -> Evaluator:
    spec = read_feature_spec(folder)
    test = open_test_set(folder, spec, CPU)
    assert test is not None
    return Evaluator(test, EvaluatorConfig(2, batch_size), ALONE)


@pytest.mark.parametrize("batch_size", [1, 7, 10**6])
def test_rows_without_series_get_loss_and_auc(write_frames: Callable[..., Path], batch_size: int) -> None:
    labels = [1.0, 0.0, 0.0, 1.0, 0.5, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    folder, frame = labelled(write_frames, labels)
    table = np.random.default_rng(5).integers(-2, 3, (9, 12, 4)).astype(np.float32)  # many ties
    scores = torch.from_numpy(table)
    evaluation = evaluation_of(folder, batch_size)
    assert evaluation.length is None
    assert evaluation.rows.names == ("user", "item", "label", "hour")
    found = evaluated(evaluation, Scoring(lambda users, items, hours: scores[users, items, hours]))
    known = table[frame["user"], frame["item"], frame["hour"]].astype(float)
    positives, negatives = known[frame["label"] > 0], known[frame["label"] == 0]
    pairs = [(p > n) + (p == n) / 2 for p in positives for n in negatives]
    assert found.auc == pytest.approx(np.mean(pairs))
    probability = 1 / (1 + np.exp(-known))
    losses = -(frame["label"] * np.log(probability) + (1 - frame["label"]) * np.log(1 - probability))
    assert found.loss == pytest.approx(losses.mean(), rel=1e-6)
    assert (found.hit_rate, found.ndcg, found.mrr, found.coverage) == (None,) * 4
    assert found.quality == found.auc
    assert found.compared(2) == found.known(2) == {"auc": found.auc}
    assert found.samples_per_s == pytest.approx(len(labels) / found.seconds)


def test_rows_with_one_label_get_only_a_loss(write_frames: Callable[..., Path]) -> None:
    folder, _ = labelled(write_frames, [1.0] * 5)
    evaluation = evaluation_of(folder, 10)
    found = evaluated(evaluation, Scoring(lambda users, *_: torch.zeros(len(users))))
    assert (found.quality, found.compared(2), found.known(2)) == (None, {}, {})
    assert found.loss == pytest.approx(math.log(2))


def test_series_are_scored_with_the_side_features_of_their_rows(write_frames: Callable[..., Path]) -> None:
    folder, frame = labelled(write_frames, [1.0, 0.0, 0.0] * 4, test_samples_per_series=3)
    evaluation = evaluation_of(folder, 6)
    assert evaluation.rows.names == ("user", "item", "hour")
    seen: list[int] = []

    def score(users: Tensor, items: Tensor, hours: Tensor) -> Tensor:
        seen.extend(hours.tolist())
        return torch.zeros(len(users))

    evaluated(evaluation, Scoring(score))
    assert seen == frame["hour"].tolist()


def test_popularity_also_ranks_rows_without_series(write_frames: Callable[..., Path]) -> None:
    folder, frame = labelled(write_frames, [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    found = evaluated(evaluation_of(folder, 100), by_popularity(open_train(folder, read_feature_spec(folder), CPU)))
    counts = Counter(frame.loc[frame["label"] > 0, "item"])
    known = np.array([counts[item] for item in frame["item"]])
    pairs = [(p > n) + (p == n) / 2 for p in known[frame["label"] > 0] for n in known[frame["label"] == 0]]
    assert found.auc == pytest.approx(np.mean(pairs))


def test_metrics_by_name() -> None:
    scores = EvalMetrics(0.5, 0.25, 0.7, 1.0, 10.0, mrr=0.125, coverage=0.75)
    compared = {"hr@7": 0.5, "ndcg@7": 0.25}
    assert scores.compared(7) == compared
    assert scores.known(7) == compared | {"recall@7": 0.5, "mrr": 0.125, "coverage@7": 0.75}
    assert scores.texts(7) == ["HR@7 0.5000", "NDCG@7 0.2500"]
    assert scores.quality == 0.5


N_HOURS = 3


@dataclass(frozen=True)
class Case:
    """Test rows, user histories and model scores.

    Attributes:
        rows: (user, item, label, hour), series of `length` or (None) labelled rows.
        table: float32 [users, items, hours], the scores.
    """

    rows: list[tuple[int, int, float, int]]
    length: int | None
    seen: dict[int, set[int]]
    table: np.ndarray

    @property
    def n_users(self) -> int:
        return self.table.shape[0]

    @property
    def n_items(self) -> int:
        return self.table.shape[1]

    @property
    def positives(self) -> list[tuple[int, int, int]]:
        """User, item and hour of each positive."""
        if self.length is not None:
            return [(user, item, hour) for user, item, _, hour in self.rows[:: self.length]]
        return [(user, item, hour) for user, item, label, hour in self.rows if label > 0]

    @property
    def model(self) -> Scoring:
        scores = torch.from_numpy(self.table)
        return Scoring(lambda users, items, hours: scores[users, items, hours], self.n_items)

    def evaluation(
        self, k: int, batch_size: int, world: ProcessGroup = ALONE, full: bool = True, **more: bool
    ) -> Evaluator:
        columns = FeatureColumns("user", "item", "label", self.n_users, self.n_items, (SideFeature("hour", N_HOURS),))
        names = [name for name in columns.streamed if name != "label" or self.length is None]
        values = dict(zip(columns.streamed, zip(*self.rows, strict=True), strict=True))
        table = pa.table({name: values[name] for name in names}).cast(columns.schema(names))
        rows = Rows(columns, tuple(names), TablePartitions.from_table(columns, table), frame_device("cpu"))
        items = [sorted(self.seen[user]) for user in range(self.n_users)]
        starts = torch.tensor([0, *np.cumsum([len(own) for own in items])])
        seen = UserItems(starts, torch.tensor([item for own in items for item in own], dtype=torch.int32))
        test = TestSet(rows, self.length)
        return Evaluator(test, EvaluatorConfig(k, batch_size, **more), world, seen if full else None)

    @staticmethod
    def random(
        seed: int, length: int | None, n_series: int = 20, n_users: int = 5, n_items: int = 8, ties: bool = True
    ) -> Case:
        rng = np.random.default_rng(seed)
        shape = (n_users, n_items, N_HOURS)
        # Either few distinct scores, or all distinct.
        table = rng.integers(-2, 3, shape) if ties else rng.permutation(math.prod(shape)).reshape(shape) / 50 - 1
        seen = {
            user: set(np.flatnonzero(rng.random(n_items) < share).tolist())
            for user, share in enumerate(rng.choice([0.0, 0.5, 0.9, 1.0], n_users))
        }
        users = rng.integers(0, n_users, n_series)
        if length is None:
            labels = (rng.random(n_series) < 0.5).astype(float)
            labels[rng.integers(0, n_series)] = 0.5
        else:
            users, labels = users.repeat(length), np.tile([1.0] + [0.0] * (length - 1), n_series)
        series = (rng.permutation(n_items)[: length or 1] for _ in range(n_series))
        items, hours = np.concatenate(list(series)), rng.integers(0, N_HOURS, len(users))
        rows = list(zip(users.tolist(), items.tolist(), labels.tolist(), hours.tolist(), strict=True))
        return Case(rows, length, seen, table.astype(np.float32))


def first_k(scores: dict[int, float], k: int) -> tuple[set[int], set[int]]:
    """The items certainly in the top k, and those possibly in it, since ties may come in any order."""
    values = np.array(list(scores.values()))
    certain = {item for item, score in scores.items() if (values >= score).sum() <= k}
    return certain, {item for item, score in scores.items() if (values > score).sum() < k}


def check_full(found: EvalMetrics, case: Case, table: np.ndarray, k: int) -> None:
    """Each positive is ranked among all items its user has not seen."""
    ranks, losses, certain, possible, left_out = [], [], set(), set(), 0
    for user, positive, hour in case.positives:
        candidates = [item for item in range(case.n_items) if item == positive or item not in case.seen[user]]
        scores = {item: float(table[user, item, hour]) for item in candidates}
        losses += [math.log1p(math.exp(-score if item == positive else score)) for item, score in scores.items()]
        if len(scores) <= k:
            left_out += 1
            continue
        ranks.append(sum(score >= scores[positive] for item, score in scores.items() if item != positive))
        sure, perhaps = first_k(scores, k)
        certain |= sure
        possible |= perhaps
    ahead = np.array(ranks)
    assert found.series_left_out == left_out
    assert found.hit_rate == pytest.approx(np.mean(ahead < k))
    assert found.known(k)[f"recall@{k}"] == found.hit_rate
    assert found.ndcg == pytest.approx(np.mean(np.where(ahead < k, 1 / np.log2(ahead + 2), 0.0)))
    assert found.mrr == pytest.approx(np.mean(1 / (ahead + 1)))
    assert found.loss == pytest.approx(np.mean(losses), rel=1e-5)
    assert found.samples_per_s == pytest.approx(len(losses) / found.seconds)
    assert found.coverage is not None
    assert len(certain) <= round(found.coverage * case.n_items, 6) <= len(possible)
    assert found.auc is None


@given(
    st.builds(
        Case.random,
        seed=st.integers(0, 2**32),
        length=st.sampled_from([None, 1, 3]),
        n_series=st.integers(1, 12),
        n_users=st.integers(1, 5),
        n_items=st.integers(3, 9),
        ties=st.booleans(),
    ),
    st.integers(1, 10),
    st.integers(1, 40),
    st.booleans(),
)
def test_full_ranking_matches_a_loop_over_all_items(case: Case, k: int, batch_size: int, in_memory: bool) -> None:
    evaluation = case.evaluation(k, batch_size, in_memory=in_memory)
    most = max(len(set(range(case.n_items)) - case.seen[user] | {item}) for user, item, _ in case.positives)
    if most <= k:
        for refused in (evaluation.check_topk, lambda: evaluated(evaluation, case.model)):
            with pytest.raises(UserError, match=f"more than {most} distinct item"):
                refused()
        return
    evaluation.check_topk()
    check_full(evaluated(evaluation, case.model), case, case.table, k)


@pytest.mark.parametrize("length", [None, 3])
@pytest.mark.parametrize("in_memory", [False, True])
def test_full_ranking_of_a_network_matches_its_own_scores(length: int | None, in_memory: bool) -> None:
    case = Case.random(5, length, ties=False)
    side = (SideFeature("hour", N_HOURS),)
    config = NeuMFConfig(n_users=case.n_users, n_items=case.n_items, factors=3, layers=(8, 70, 4), row_side=side)
    model = NeuMF(config, torch.Generator().manual_seed(3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    grid = torch.meshgrid(*(torch.arange(size) for size in case.table.shape), indexing="ij")
    exact = copy.deepcopy(model).double().eval()(*(ids.flatten() for ids in grid)).detach().view(case.table.shape)
    for size in (1, 3):
        for found in on_ranks(
            size, lambda world: evaluated(case.evaluation(2, 20, world, in_memory=in_memory), Scorer(model))
        ):
            check_full(found, case, exact.numpy(), 2)


@pytest.mark.parametrize("length", [None, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 8, 20, 10**6])  # there are 8 items
def test_full_ranking_scores_every_item_once_per_positive(length: int | None, batch_size: int) -> None:
    case = Case.random(4, length)
    scored: list[tuple[int, int, int]] = []

    def score(users: Tensor, items: Tensor, hours: Tensor) -> Tensor:
        assert len(users) == len(items) == len(hours) <= max(batch_size, 8)  # at least one user
        scored.extend(zip(users.tolist(), items.tolist(), hours.tolist(), strict=True))
        return torch.zeros(len(users))

    evaluated(case.evaluation(2, batch_size), Scoring(score))
    assert Counter(scored) == Counter((user, item, hour) for user, _, hour in case.positives for item in range(8))


def test_full_ranking_by_hand() -> None:
    # Of items 0 .. 4, user 0 has seen 0 and 1, user 1 all but 3, user 2 all; scores decrease with the item id.
    table = np.tile(np.array([5, 4, 3, 2, 1], dtype=np.float32)[None, :, None], (3, 1, N_HOURS))
    seen = {0: {0, 1}, 1: {0, 1, 2, 4}, 2: set(range(5))}
    rows = [(0, 4, 1.0, 0), (1, 4, 1.0, 0), (2, 4, 1.0, 0)]
    case = Case(rows, 1, seen, table)
    found = evaluated(case.evaluation(2, 100), case.model)
    # User 0's is after 2 and 3. The others have two candidates and one: both would always hit.
    assert found.series_left_out == 2
    assert (found.hit_rate, found.ndcg, found.mrr) == (0.0, 0.0, pytest.approx(1 / 3))
    assert found.coverage == pytest.approx(2 / 5)  # items 2 and 3
    first = evaluated(case.evaluation(1, 100), case.model)
    assert first.series_left_out == 1
    assert (first.hit_rate, first.mrr) == (0.0, pytest.approx((1 / 3 + 1 / 2) / 2))


@pytest.mark.parametrize("size", [1, 3])
def test_series_with_repeats_alone_tell_nothing(size: int) -> None:
    # Items of each series: 3, 1 and 2 distinct ones. The positive is best in the first series and the last.
    items = [4, 0, 1, 0, 3, 3, 3, 3, 4, 2, 2, 4]
    rows = [(place // 4, item, float(place % 4 == 0), 0) for place, item in enumerate(items)]
    table = np.tile(np.arange(5, dtype=np.float32)[None, :, None], (3, 1, N_HOURS))
    case = Case(rows, 4, {user: set() for user in range(3)}, table)

    def found(world: ProcessGroup, k: int) -> EvalMetrics | str:
        evaluation = case.evaluation(k, 4, world, full=False, in_memory=True)
        try:
            evaluation.check_topk()
            return evaluated(evaluation, case.model)
        except UserError as err:
            return str(err)

    for k, left_out in ((1, 1), (2, 2)):
        for scores in on_ranks(size, lambda world, k=k: found(world, k)):
            assert isinstance(scores, EvalMetrics)
            assert ranked(scores)[:3] == (1.0, 1.0, 1.0)
            assert scores.series_left_out == left_out
    for message in on_ranks(size, lambda world: found(world, 3)):
        assert "no series has more than 3 distinct items, so every model would hit; lower it to 2" in str(message)


@pytest.mark.parametrize("in_memory", [False, True])
def test_pieces_without_a_positive_are_skipped(in_memory: bool) -> None:
    whole = Case.random(5, None)
    rows = [(user, item, float(10 <= place < 13), hour) for place, (user, item, _, hour) in enumerate(whole.rows)]
    case = Case(rows, None, {user: {user, 7} for user in range(whole.n_users)}, whole.table)
    check_full(evaluated(case.evaluation(3, 5, in_memory=in_memory), case.model), case, case.table, 3)


@pytest.mark.parametrize("length", [None, 3])
def test_popularity_also_ranks_all_items(train_rows: Callable, length: int | None) -> None:
    case = Case.random(6, length)
    rng = np.random.default_rng(6)
    train = sorted((int(u), int(i), float(label)) for u, i, label in rng.integers(0, [5, 8, 2], (60, 3)))
    counts = Counter(item for _, item, label in train if label)
    table = np.broadcast_to(np.array([counts[item] for item in range(8)], float)[None, :, None], case.table.shape)
    check_full(evaluated(case.evaluation(3, 30), by_popularity(train_rows([train], 5, 8))), case, table, 3)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_coverage_of_series_counts_items_in_any_top_k(k: int) -> None:
    case = Case.random(7, 4, n_series=6, n_items=20, ties=False)
    found = evaluated(case.evaluation(k, 9, full=False), case.model)
    first: set[int] = set()
    for start in range(0, len(case.rows), 4):
        series = case.rows[start : start + 4]
        best = sorted(series, key=lambda row: -case.table[row[0], row[1], row[3]])[:k]
        first |= {item for _, item, _, _ in best}
    assert found.coverage == pytest.approx(len(first) / 20)


MODES = {"series": (3, False), "all items": (3, True), "labelled rows": (None, True)}


def exact(scores: EvalMetrics) -> tuple[float | None, ...]:
    """The metrics that are bit-identical for any number of ranks; the loss is summed in another order."""
    return scores.hit_rate, scores.ndcg, scores.mrr, scores.coverage, scores.auc, scores.series_left_out


@pytest.mark.parametrize(("length", "full"), MODES.values(), ids=MODES.keys())
@pytest.mark.parametrize("in_memory", [False, True], ids=["streamed", "memory"])
def test_any_number_of_ranks_gives_the_same_metrics(length: int | None, full: bool, in_memory: bool) -> None:
    case = Case.random(9, length)
    for batch_size in (6, 40):  # ten pieces, and two, so that some ranks have none
        one = evaluated(case.evaluation(2, batch_size, full=full), case.model)

        def twice(world: ProcessGroup, batch_size: int = batch_size) -> list[EvalMetrics]:
            evaluation = case.evaluation(2, batch_size, world, full, in_memory=in_memory)
            return [evaluated(evaluation, case.model), evaluated(evaluation, case.model)]

        for size in (1, 2, 3, 4):
            everyone = [scores for both in on_ranks(size, twice) for scores in both]
            assert len(everyone) == 2 * size
            assert {exact(scores) for scores in everyone} == {exact(one)}
            assert len({scores.loss for scores in everyone}) == 1
            assert everyone[0].loss == pytest.approx(one.loss, rel=1e-9)


def test_every_rank_measures_all_rows_without_series() -> None:
    case = Case.random(9, None)
    one = evaluated(case.evaluation(2, 6, full=False), case.model)
    everyone = on_ranks(3, lambda world: evaluated(case.evaluation(2, 6, world, full=False), case.model))
    assert one.auc is not None
    assert {(scores.auc, scores.loss) for scores in everyone} == {(one.auc, one.loss)}


@pytest.mark.parametrize(("length", "full"), MODES.values(), ids=MODES.keys())
def test_ranks_split_the_pieces_of_a_single_rank(length: int | None, full: bool) -> None:
    case = Case.random(11, length)
    scored: list[tuple[tuple[int, ...], ...]] = []

    def score(*columns: Tensor) -> Tensor:
        scored.append(tuple(tuple(column.tolist()) for column in columns))
        return torch.zeros(len(columns[0]))

    evaluated(case.evaluation(2, 6, full=full), Scoring(score))
    pieces = Counter(scored)
    for size in (2, 3, 4):
        scored.clear()
        on_ranks(size, lambda world: evaluated(case.evaluation(2, 6, world, full), Scoring(score)))
        assert Counter(scored) == pieces


@pytest.mark.parametrize(("length", "full"), MODES.values(), ids=MODES.keys())
def test_rows_in_memory_are_read_once(monkeypatch: pytest.MonkeyPatch, length: int | None, full: bool) -> None:
    case = Case.random(13, length)
    reads: list[int] = []
    stream = Rows.stream

    def counted(self: Rows, *args: object) -> object:
        reads.append(1)
        return stream(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(Rows, "stream", counted)
    other = Case.random(14, length)
    models = [case.model, other.model]
    for in_memory in (False, True):
        reads.clear()
        evaluation = case.evaluation(2, 6, full=full, in_memory=in_memory)
        found = [exact(evaluated(evaluation, model)) for model in (*models, *models)]
        assert len(reads) == (1 if in_memory else 4)
        assert found[:2] == found[2:]
        assert found[0] == exact(evaluated(case.evaluation(2, 6, full=full), models[0]))
        assert found[0] != found[1]


@pytest.mark.parametrize("full", [False, True], ids=["series", "all items"])
def test_a_piece_in_memory_waits_for_a_gpu_once_at_most(full: bool) -> None:
    case = Case.random(18, 3)
    side = (SideFeature("hour", 4),)
    scorer = Scorer(
        NeuMF(NeuMFConfig(n_users=5, n_items=8, factors=4, layers=(8, 4), row_side=side)).eval(), compiled=False
    )
    waits, n_pieces = [], []
    for batch_size in (24 if full else 6, 120 if full else 60):
        evaluation = case.evaluation(2, batch_size, full=full, in_memory=True)
        evaluated(evaluation, scorer)  # reads the rows
        with HostWaits() as mode:
            evaluated(evaluation, scorer)
        waits.append(len(mode.found))
        n_pieces.append(-(-len(case.positives) * (8 if full else 3) // batch_size))
    assert waits[0] - waits[1] <= n_pieces[0] - n_pieces[1], mode.found


@pytest.mark.parametrize("start", [0, 1, 49, 50, 51, 120])
@pytest.mark.parametrize("block", [7, 60, 1000])
def test_rows_between_two_others_are_read_alone(test_rows: Callable, start: int, block: int) -> None:
    rows = random_series(2)
    cuts = [0, 50, 50, 101, 185, len(rows)]
    streamed = test_rows([rows[a:b] for a, b in pairwise(cuts)], N_USERS, N_ITEMS, LENGTH)
    for stop in (start + 1, 160, len(rows)):
        blocks = list(streamed.between(start, stop, block, CPU))
        assert [len(columns[0]) for columns in blocks[:-1]] == [block] * (len(blocks) - 1)
        found = zip(*(torch.cat(column).tolist() for column in zip(*blocks, strict=True)), strict=True)
        assert [pair[:2] for pair in found] == [row[:2] for row in rows[start:stop]]


@pytest.mark.parametrize("constant", [0.0, 5.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("length", "full"), MODES.values(), ids=MODES.keys())
def test_a_constant_model_never_hits(constant: float, length: int | None, full: bool) -> None:
    case = Case.random(15, length)
    nobody = Case(case.rows, length, {user: {0} for user in range(5)}, case.table)
    found = evaluated(
        nobody.evaluation(2, 30, full=full), Scoring(lambda users, *_: torch.full((len(users),), constant))
    )
    candidates = [7 + (item == 0) if full else length for _, item, _ in nobody.positives]
    assert (found.hit_rate, found.ndcg) == (0.0, 0.0)
    assert found.mrr == pytest.approx(np.mean([1 / n for n in candidates]))
    assert math.isfinite(found.loss) == math.isfinite(constant)


def test_nan_scores_rank_before_the_positive_and_are_never_recommended() -> None:
    case = Case.random(16, 1, ties=False)
    table = case.table.copy()
    table[:, ::2] = math.nan  # items 0, 2, 4 and 6
    broken = Case(case.rows, 1, {user: set() for user in range(5)}, table)
    found = evaluated(broken.evaluation(4, 100), broken.model)
    ranks = [
        7 if item % 2 == 0 else 4 + sum(table[user, other, hour] > table[user, item, hour] for other in (1, 3, 5, 7))
        for user, item, hour in broken.positives
    ]
    assert found.hit_rate == found.ndcg == 0.0
    assert found.mrr == pytest.approx(np.mean([1 / (rank + 1) for rank in ranks]))
    assert found.coverage == 0.0
    assert math.isnan(found.loss)


def test_the_auc_of_nan_scores_is_zero() -> None:
    case = Case.random(17, None)
    found = evaluated(case.evaluation(2, 6, full=False), Scoring(lambda users, *_: torch.full((len(users),), math.nan)))
    assert found.auc == 0.0
    assert math.isnan(found.loss)


def test_an_evaluation_of_a_folder_uses_labels_and_history(write_frames: Callable[..., Path]) -> None:
    folder, frame = labelled(write_frames, [1.0, 0.0, 0.0, 1.0, 0.5, 0.0, 0.0, 1.0])
    spec = read_feature_spec(folder)
    test, train = open_test_set(folder, spec, CPU), open_train(folder, spec, CPU)
    assert test is not None
    table = np.random.default_rng(5).integers(-2, 3, (9, 12, 4)).astype(np.float32)
    rows = [(row.user, row.item, row.label, row.hour) for row in frame.itertuples()]
    seen: dict[int, set[int]] = {user: set() for user in range(9)}
    for user, item, label, _ in rows:
        if label > 0:
            seen[user].add(item)
    case = Case(rows, None, seen, table)
    config = EvaluatorConfig(3, 20, in_memory=True)
    evaluation = Evaluator(test, config, ALONE, UserItems.from_rows(train, CPU))
    check_full(evaluated(evaluation, case.model), case, table, 3)
