"""Expected HR and NDCG against the mean over all enumerated draws."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.evaluation.expected_metrics import expected_means


def over_all_draws(ahead: int, others: int, drawn: int, k: int) -> tuple[float, float]:
    """One user's HR@k and NDCG@k, averaged over every possible draw; the first `ahead` items score as high as the
    positive."""
    ranks = [sum(item < ahead for item in draw) for draw in itertools.combinations(range(others), min(drawn, others))]
    hits = [rank < k for rank in ranks]
    gains = [1.0 / math.log2(rank + 2) if rank < k else 0.0 for rank in ranks]
    return sum(hits) / len(ranks), sum(gains) / len(ranks)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=1, max_size=4), st.integers(1, 9), st.data())
def test_means_match_enumerating_all_draws(users: list[tuple[int, int]], drawn: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 10))
    counts = [(min(pair), max(pair)) for pair in users]  # `ahead` is at most `others`
    ahead, others = (torch.tensor(column) for column in zip(*counts, strict=True))
    # With k distinct items or fewer, any model hits.
    each = [over_all_draws(a, n, drawn, k) for a, n in counts if 1 + min(n, drawn) > k]
    if not each:
        assert all(map(math.isnan, expected_means(ahead, others, drawn, k)))
        return
    expected = [sum(column) / len(each) for column in zip(*each, strict=True)]
    assert expected_means(ahead, others, drawn, k) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("drawn", [20, 21, 10_000])
def test_drawing_all_candidates_gives_the_plain_rank(drawn: int) -> None:
    ahead = torch.tensor([0, 1, 9, 10, 20])
    hit_rate, ndcg = expected_means(ahead, torch.full((5,), 20), drawn, 10)
    assert hit_rate == pytest.approx(3 / 5, rel=1e-12)
    assert ndcg == pytest.approx((1.0 + 1.0 / math.log2(3) + 1.0 / math.log2(11)) / 5, rel=1e-12)


def test_a_single_draw_gives_its_probability() -> None:
    # 2,700 of 27,000 items score higher: the positive ranks first in 9 of 10 draws of one item.
    assert expected_means(torch.tensor([2_700]), torch.tensor([27_000]), 1, 1) == pytest.approx((0.9, 0.9), rel=1e-9)
    # Two draws have two such items in 1 % of the cases, and one in 18 %.
    both = expected_means(torch.tensor([2_700]), torch.tensor([27_000]), 2, 2)
    assert both == pytest.approx((0.99, 0.81 + 0.18 / math.log2(3)), abs=1e-5)


def test_large_catalogues_stay_exact() -> None:
    # C(N - a, n) / C(N, n) as a product, with n = 100 and N = 10 million items.
    a, n_items, n = 50_000, 10_000_000, 100
    none = math.prod((n_items - a - i) / (n_items - i) for i in range(n))
    assert expected_means(torch.tensor([a]), torch.tensor([n_items]), n, 1)[0] == pytest.approx(none, rel=1e-6)
