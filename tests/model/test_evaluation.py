"""Streamed evaluation against loops over the series."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from model.columns import Columns
from model.data import open_train
from model.evaluation import Evaluation, evaluate, evaluate_rows, item_popularity
from model.neumf import NeuMF, NeuMFConfig
from model.series import open_test
from preprocessing.feature_spec import read_feature_spec
from workflows.errors import UserError

CPU = torch.device("cpu")
N_USERS, N_ITEMS, LENGTH, SERIES = 9, 12, 6, 31
Row = tuple[int, int, float]


def random_series(seed: int) -> list[Row]:
    """Consecutive series with repeats of items in them."""
    rng = np.random.default_rng(seed)
    return [
        (int(user), int(item), float(place == 0))
        for user in rng.integers(0, N_USERS, SERIES)
        for place, item in enumerate(rng.integers(0, N_ITEMS, LENGTH))
    ]


def brute(rows: list[Row], table: np.ndarray, k: int) -> tuple[float, float, float]:
    hits, gains, losses = [], [], []
    for start in range(0, len(rows), LENGTH):
        block = rows[start : start + LENGTH]
        scores = [float(table[user, item]) for user, item, _ in block]
        ahead = {item for (_, item, _), score in zip(block, scores, strict=True) if score >= scores[0]}
        rank = len(ahead - {block[0][1]})
        hits.append(rank < k)
        gains.append(1 / math.log2(rank + 2) if rank < k else 0.0)
        for place, score in enumerate(scores):
            probability = 1 / (1 + math.exp(-score))
            losses.append(-math.log(probability if place == 0 else 1 - probability))
    return tuple(float(np.mean(values)) for values in (hits, gains, losses))


# Series in parts that need not end where a series does, one part without rows.
CUTS = {"one part": [], "whole series": [60, 120], "within series": [1, 50, 50, 101, 185]}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("batch_size", [1, 13, 60, 10**6])
def test_metrics_are_those_of_a_loop(test_rows: Callable, cuts: list[int], batch_size: int) -> None:
    rows = random_series(len(cuts))
    parts = [rows[a:b] for a, b in zip([0, *cuts], [*cuts, len(rows)], strict=True)]
    table = np.random.default_rng(5).integers(-2, 3, (N_USERS, N_ITEMS)).astype(np.float32)  # ties abound
    scores = torch.from_numpy(table)
    streamed = test_rows(parts, N_USERS, N_ITEMS, LENGTH)
    found = evaluate(lambda users, items: scores[users, items], streamed, LENGTH, 2, batch_size, CPU)
    expected = brute(rows, table, 2)
    assert (found.hit_rate, found.ndcg, found.loss) == pytest.approx(expected, rel=1e-6)
    assert found.samples_per_s == pytest.approx(len(rows) / found.seconds)


def test_every_series_is_scored_once_the_last_partial_batch_too(test_rows: Callable) -> None:
    rows = random_series(1)
    streamed = test_rows([rows], N_USERS, N_ITEMS, LENGTH)
    seen: list[tuple[int, int]] = []

    def score(users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        assert len(users) <= 24
        seen.extend(zip(users.tolist(), items.tolist(), strict=True))
        return torch.zeros(len(users))

    evaluate(score, streamed, LENGTH, 2, 29, CPU)  # 29 samples are 4 series
    assert seen == [(user, item) for user, item, _ in rows]


def test_parts_are_stacked_in_the_order_of_the_spec(write_folder: Callable[..., Path]) -> None:
    rows = random_series(2)
    folder = write_folder([[(0, 0, 1.0)]], N_USERS, N_ITEMS, [rows[100:], rows[:100]], LENGTH)
    path = folder / "feature_spec.yaml"
    spec = yaml.safe_load(path.read_text())
    spec["source_spec"]["test"][0]["files"].reverse()  # a series begins in part 1 and ends in part 0
    path.write_text(yaml.safe_dump(spec))
    streamed = open_test(folder, read_feature_spec(folder), CPU).rows
    blocks = [zip(users.tolist(), items.tolist(), strict=True) for users, items in streamed.stream(30, CPU)]
    assert [pair for block in blocks for pair in block] == [(user, item) for user, item, _ in rows]


def test_a_model_is_evaluated_without_dropout_and_gets_its_mode_back(test_rows: Callable) -> None:
    rows = random_series(3)
    streamed = test_rows([rows], N_USERS, N_ITEMS, LENGTH)
    config = NeuMFConfig(n_users=N_USERS, n_items=N_ITEMS, factors=3, layers=(8, 8), dropout=0.9)
    model = NeuMF(config, torch.Generator().manual_seed(3))
    users, items = (grid.flatten() for grid in torch.meshgrid(torch.arange(9), torch.arange(12), indexing="ij"))
    table = model.eval()(users, items).detach().reshape(N_USERS, N_ITEMS).double().numpy()
    for training in (True, False):
        model.train(training)
        found = Evaluation(streamed, LENGTH, 3, 100, CPU)(model)
        assert (found.hit_rate, found.ndcg, found.loss) == pytest.approx(brute(rows, table, 3), rel=1e-5)
        assert model.training is training


def test_the_mode_comes_back_after_an_error(test_rows: Callable) -> None:
    streamed = test_rows([[(0, 99, 1.0), (0, 1, 0.0)]], 3, 4, 2)
    model = NeuMF(NeuMFConfig(n_users=3, n_items=4, factors=1, layers=(2,))).train()
    with pytest.raises(UserError, match="id 99"):
        Evaluation(streamed, 2, 1, 10, CPU)(model)
    assert model.training


def test_popularity_counts_train_positives(train_rows: Callable) -> None:
    rng = np.random.default_rng(0)
    rows = [(int(u), int(i), float(label)) for u, i, label in rng.integers(0, [5, 7, 2], (90, 3))]
    parts = [sorted(rows[:40]), [], sorted(rows[40:])]
    counts = item_popularity(train_rows(parts, 5, 8), CPU, block_rows=17)
    expected = Counter(item for _, item, label in rows if label)
    assert counts.tolist() == [expected[item] for item in range(8)]


def test_popularity_as_a_scorer(train_rows: Callable, test_rows: Callable) -> None:
    # Items 0, 1, 2 were chosen 3, 2 and 1 times, item 3 never; ties do not favour the positive.
    train = [(user, item, 1.0) for item, users in enumerate([3, 2, 1]) for user in range(users)]
    popular = train_rows([sorted(train)], 3, 5, name="popular")
    series = [(0, 0), (0, 1), (0, 3), (1, 2), (1, 0), (1, 1), (2, 3), (2, 4), (2, 2)]
    streamed = test_rows([[(user, item, 0.0) for user, item in series]], 3, 5, 3)
    for k, hits in ((1, 1 / 3), (2, 1 / 3), (3, 1.0)):
        assert Evaluation(streamed, 3, k, 6, CPU).popularity(popular).hit_rate == pytest.approx(hits)


def labelled(write_frames: Callable[..., Path], labels: list[float], **metadata: int) -> tuple[Path, pd.DataFrame]:
    """A folder whose test rows have a label and the hour of the row."""
    rng = np.random.default_rng(8)
    n = len(labels)
    columns = {"user": rng.integers(0, 9, n), "item": rng.integers(0, 12, n), "label": labels, "hour": np.arange(n) % 4}
    frame = pd.DataFrame(columns)
    channels = {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"], "user_hours": ["hour"]}
    sizes = {"user": 9, "item": 12, "hour": 4}
    return write_frames({"train": frame, "test": frame}, channels, sizes, **metadata), frame


def evaluation_of(folder: Path, batch_size: int) -> Evaluation:
    spec = read_feature_spec(folder)
    test = open_test(folder, spec, CPU)
    assert test is not None
    return Evaluation.of(test, Columns.of(spec), 2, batch_size, CPU)


@pytest.mark.parametrize("batch_size", [1, 7, 10**6])
def test_rows_that_are_no_series_have_loss_and_auc(write_frames: Callable[..., Path], batch_size: int) -> None:
    labels = [1.0, 0.0, 0.0, 1.0, 0.5, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0]
    folder, frame = labelled(write_frames, labels)
    table = np.random.default_rng(5).integers(-2, 3, (9, 12, 4)).astype(np.float32)  # ties abound
    scores = torch.from_numpy(table)
    evaluation = evaluation_of(folder, batch_size)
    assert evaluation.length is None
    assert evaluation.rows.names == ("user", "item", "label", "hour")
    found = evaluate_rows(lambda users, items, hours: scores[users, items, hours], evaluation.rows, batch_size, CPU)
    known = table[frame["user"], frame["item"], frame["hour"]].astype(float)
    positives, negatives = known[frame["label"] > 0], known[frame["label"] == 0]
    pairs = [(p > n) + (p == n) / 2 for p in positives for n in negatives]
    assert found.auc == pytest.approx(np.mean(pairs))
    probability = 1 / (1 + np.exp(-known))
    losses = -(frame["label"] * np.log(probability) + (1 - frame["label"]) * np.log(1 - probability))
    assert found.loss == pytest.approx(losses.mean(), rel=1e-6)
    assert (found.hit_rate, found.ndcg, found.quality) == (None, None, found.auc)
    assert found.named(2) == {"auc": found.auc}
    assert found.samples_per_s == pytest.approx(len(labels) / found.seconds)


def test_rows_of_one_label_have_a_loss_alone(write_frames: Callable[..., Path]) -> None:
    folder, _ = labelled(write_frames, [1.0] * 5)
    evaluation = evaluation_of(folder, 10)
    found = evaluate_rows(lambda users, *_: torch.zeros(len(users)), evaluation.rows, 10, CPU)
    assert (found.quality, found.named(2)) == (None, {})
    assert found.loss == pytest.approx(math.log(2))


def test_series_are_scored_with_the_side_features_of_their_rows(write_frames: Callable[..., Path]) -> None:
    folder, frame = labelled(write_frames, [1.0, 0.0, 0.0] * 4, test_samples_per_series=3)
    evaluation = evaluation_of(folder, 6)
    assert evaluation.rows.names == ("user", "item", "hour")
    seen: list[int] = []

    def score(users: torch.Tensor, items: torch.Tensor, hours: torch.Tensor) -> torch.Tensor:
        seen.extend(hours.tolist())
        return torch.zeros(len(users))

    evaluate(score, evaluation.rows, 3, 2, 6, CPU)
    assert seen == frame["hour"].tolist()


def test_popularity_ranks_rows_that_are_no_series_too(write_frames: Callable[..., Path]) -> None:
    folder, frame = labelled(write_frames, [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0])
    found = evaluation_of(folder, 100).popularity(open_train(folder, read_feature_spec(folder), CPU))
    counts = Counter(frame.loc[frame["label"] > 0, "item"])
    known = np.array([counts[item] for item in frame["item"]])
    pairs = [(p > n) + (p == n) / 2 for p in known[frame["label"] > 0] for n in known[frame["label"] == 0]]
    assert found.auc == pytest.approx(np.mean(pairs))
