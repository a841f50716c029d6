"""Ranks and metrics against plain-Python counts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.evaluation.metrics import RankMeans, auc, full_ranks, positive_ranks

# Few distinct values make ties common.
_SCORE = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 1.0, math.inf, math.nan])


@st.composite
def series(draw) -> tuple[list[list[float]], list[list[int]]]:
    length, count = draw(st.integers(1, 8)), draw(st.integers(1, 5))
    scores = draw(st.lists(st.lists(_SCORE, min_size=length, max_size=length), min_size=count, max_size=count))
    item = st.integers(0, 5)  # fewer than the series length, so items repeat, including the positive
    items = draw(st.lists(st.lists(item, min_size=length, max_size=length), min_size=count, max_size=count))
    return scores, items


def brute_rank(scores: list[float], items: list[int]) -> int:
    counted, rank = {items[0]}, 0
    for score, item in zip(scores[1:], items[1:], strict=True):
        if item not in counted:
            counted.add(item)
            rank += not score < scores[0]
    return rank


@given(series())
def test_ranks_match_a_plain_count(case: tuple[list[list[float]], list[list[int]]]) -> None:
    scores, items = case
    found = positive_ranks(torch.tensor(scores), torch.tensor(items))
    assert found.dtype == torch.int64
    assert found.tolist() == [brute_rank(*pair) for pair in zip(scores, items, strict=True)]


def means(ranks: Sequence[int], k: int, n_ranks: int = 0) -> RankMeans:
    """Means of the ranks, counted as `Evaluator` does."""
    counts = torch.bincount(torch.tensor(ranks), minlength=max(n_ranks, *ranks, 0))
    return RankMeans.from_counts(counts.double().tolist(), k)


def brute_means(ranks: Sequence[int], k: int) -> RankMeans:
    hits = [float(rank < k) for rank in ranks]
    gains = [1.0 / math.log2(rank + 2) if rank < k else 0.0 for rank in ranks]
    reciprocal = [1.0 / (rank + 1) for rank in ranks]
    return RankMeans(*(sum(values) / len(ranks) for values in (hits, gains, reciprocal)))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.integers(1, 40), st.integers(0, 50))
def test_means_match_the_definition(ranks: list[int], k: int, n_ranks: int) -> None:
    for some in (ranks, *([rank] for rank in ranks)):
        assert astuple(means(some, k, n_ranks)) == pytest.approx(astuple(brute_means(some, k)), rel=1e-12)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=20), st.integers(1, 40), st.randoms(use_true_random=False))
def test_means_do_not_depend_on_how_ranks_were_counted(ranks: list[int], k: int, random: Random) -> None:
    shuffled = random.sample(ranks, len(ranks))
    whole = [ranks.count(rank) for rank in range(31)]
    assert (
        means(shuffled, k)
        == means(ranks, k)
        == RankMeans.from_counts(whole, k)
        == RankMeans.from_counts([*whole, 0, 0], k)
    )


def test_means_by_hand() -> None:
    # Positions 1, 2, 4 and 8 in the list: 1/log2(2), 1/log2(3), 1/log2(5), 1/log2(9).
    gains = [1.0, 0.6309297536, 0.4306765581, 0.3154648768]
    for rank, gain in zip((0, 1, 3, 7), gains, strict=True):
        assert means([rank], k=8).ndcg == pytest.approx(gain, rel=1e-9)
    found = means([0, 1, 3, 7], k=8)
    assert astuple(found) == pytest.approx((1.0, sum(gains) / 4, (1 + 1 / 2 + 1 / 4 + 1 / 8) / 4), rel=1e-9)
    assert means([0, 1, 3, 7], k=7).hit_rate == 0.75


def test_beyond_k_only_the_reciprocal_rank_counts() -> None:
    assert astuple(means([7], k=7)) == (0.0, 0.0, 1 / 8)


def test_a_tie_ranks_before_the_positive() -> None:
    scores, items = torch.tensor([[0.5, 0.5, 0.5, 0.1]]), torch.tensor([[1, 2, 3, 4]])
    assert positive_ranks(scores, items).tolist() == [2]


@pytest.mark.parametrize("constant", [0.0, math.nan, math.inf, -math.inf])
def test_a_constant_model_never_hits(constant: float) -> None:
    ranks = positive_ranks(torch.full((3, 11), constant), torch.arange(11).repeat(3, 1))
    assert ranks.tolist() == [10, 10, 10]
    assert astuple(means(ranks.tolist(), 10)) == pytest.approx((0.0, 0.0, 1 / 11))


def test_duplicates_count_once_and_duplicates_of_the_positive_not_at_all() -> None:
    scores = torch.tensor([[0.5, 0.9, 0.9, 0.5, 0.9, 0.7]])
    items = torch.tensor([[4, 2, 2, 4, 4, 7]])  # 2 twice, the positive 4 three times
    assert positive_ranks(scores, items).tolist() == [2]


def test_the_first_score_of_a_duplicate_counts() -> None:
    assert positive_ranks(torch.tensor([[0.5, 0.1, 0.9]]), torch.tensor([[0, 3, 3]])).tolist() == [0]
    assert positive_ranks(torch.tensor([[0.5, 0.9, 0.1]]), torch.tensor([[0, 3, 3]])).tolist() == [1]


def test_int32_items_and_half_precision_scores_rank_the_same() -> None:
    scores, items = torch.tensor([[0.5, 0.25, 1.0, 1.0]]), torch.tensor([[3, 1, 2, 2]])
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert positive_ranks(scores.to(dtype), items.int()).tolist() == [1]


def test_k_above_the_series_length_always_hits() -> None:
    ranks = positive_ranks(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor([[0, 1, 2]]))
    found = means(ranks.tolist(), 10, n_ranks=3)
    assert found.hit_rate == 1.0
    assert found.ndcg == pytest.approx(0.5)  # third position: 1 / log2(4)


def test_series_of_one_sample() -> None:
    assert positive_ranks(torch.tensor([[0.3], [math.nan]]), torch.tensor([[1], [2]])).tolist() == [0, 0]


@st.composite
def users_and_seen(draw) -> tuple[list[list[float]], list[int], list[tuple[int, int]]]:
    """Scores of all items for some users, each user's positive, and seen (user, item) pairs."""
    n_items, n_users = draw(st.integers(1, 7)), draw(st.integers(1, 5))
    scores = draw(st.lists(st.lists(_SCORE, min_size=n_items, max_size=n_items), min_size=n_users, max_size=n_users))
    item = st.integers(0, n_items - 1)
    positives = draw(st.lists(item, min_size=n_users, max_size=n_users))
    # About as many as possible pairs: some users have seen all items, pairs repeat and include the positive.
    seen = draw(st.lists(st.tuples(st.integers(0, n_users - 1), item), max_size=2 * n_items * n_users))
    return scores, positives, seen


@given(users_and_seen())
def test_full_ranks_match_a_plain_count(case: tuple) -> None:
    scores, positives, seen = case
    owners, others = torch.tensor(seen, dtype=torch.int64).reshape(-1, 2).unbind(1)
    given_scores = torch.tensor(scores)
    found = full_ranks(given_scores, torch.tensor(positives), owners, others)
    expected = [
        sum(
            not score < row[positive] for item, score in enumerate(row) if item != positive and (user, item) not in seen
        )
        for user, (row, positive) in enumerate(zip(scores, positives, strict=True))
    ]
    assert found.dtype == torch.int64
    assert found.tolist() == expected
    torch.testing.assert_close(given_scores, torch.tensor(scores), rtol=0, atol=0, equal_nan=True)


def test_full_ranks_by_hand() -> None:
    # Seen by the three users: item 0; item 0 and the positive 3; all items.
    scores = torch.tensor([[0.9, 0.8, 0.5, 0.5], [0.9, 0.8, 0.7, 0.5], [0.9, 0.8, 0.7, 0.5]])
    owners, seen = torch.tensor([0, 1, 1, 2, 2, 2, 2]), torch.tensor([0, 0, 3, 0, 1, 2, 3])
    assert full_ranks(scores, torch.tensor([2, 3, 3]), owners, seen).tolist() == [2, 2, 0]


@pytest.mark.parametrize("constant", [0.0, math.nan, math.inf, -math.inf])
def test_a_constant_model_ranks_the_positive_last_of_all_items(constant: float) -> None:
    owners, seen = torch.tensor([0, 0, 1]), torch.tensor([0, 4, 1])
    ranks = full_ranks(torch.full((3, 12), constant), torch.tensor([4, 0, 11]), owners, seen)
    assert ranks.tolist() == [10, 10, 11]
    assert means(ranks.tolist(), 10).hit_rate == 0.0


def test_a_positive_with_a_nan_score_ranks_last() -> None:
    scores = torch.tensor([[math.nan, -math.inf, 0.0, 1.0]])
    none = torch.zeros(0, dtype=torch.int64)
    assert full_ranks(scores, torch.tensor([0]), none, none).tolist() == [3]
    assert positive_ranks(scores, torch.arange(4)[None]).tolist() == [3]


@given(st.lists(st.tuples(_SCORE, st.booleans()), max_size=30))
def test_auc_is_the_share_of_correctly_ordered_pairs(samples: list[tuple[float, bool]]) -> None:
    positives = [score for score, positive in samples if positive]
    negatives = [score for score, positive in samples if not positive]
    won = [
        (p > n) + (p == n) / 2
        for p in (p if not math.isnan(p) else -math.inf for p in positives)
        for n in (n if not math.isnan(n) else math.inf for n in negatives)
    ]
    found = auc(torch.tensor([s for s, _ in samples]), torch.tensor([p for _, p in samples], dtype=torch.bool))
    assert found == (pytest.approx(sum(won) / len(won), abs=1e-12) if won else None)


def test_auc_by_hand() -> None:
    # Pairs (0.8, 0.1), (0.8, 0.4) and (0.4, 0.1) are ordered correctly, (0.4, 0.4) is a tie.
    scores, positive = torch.tensor([0.1, 0.4, 0.4, 0.8]), torch.tensor([False, False, True, True])
    assert auc(scores, positive) == 3.5 / 4
    assert auc(-scores, positive) == 0.5 / 4
    assert auc(torch.full((4,), math.nan), positive) == 0.0
    assert auc(torch.zeros(4), positive) == 0.5


def test_auc_is_exact_for_many_rows() -> None:
    # Positive i of n scores above i + 1 of n negatives.
    n = 300_000
    scores = torch.cat((torch.arange(n) + 0.25, torch.arange(n).float())).double()
    positive = torch.arange(2 * n) < n
    assert auc(scores, positive) == pytest.approx((n + 1) / (2 * n), abs=1e-12)
