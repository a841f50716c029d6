"""`Recommender` against the network's forward pass over all pairs and a brute-force ranking."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.data.record import encode_users
from model.network.checkpoint import load_run, save_model
from model.network.neumf import NeuMF, NeuMFConfig
from model.recommend import recommender as module
from model.recommend.recommendations import Recommendations
from model.recommend.recommender import Recommender
from workflows.common.errors import UserError
from workflows.device import memory

CPU = torch.device("cpu")
N_USERS, N_ITEMS, PARTS = 1000, 90, 3
rng = np.random.default_rng(5)
# Original ids in the order of internal ids: text for users, integers for items.
USERS = [f"u{number:04d}" for number in range(N_USERS)]
ITEMS = (np.arange(N_ITEMS) * 7 + 3).tolist()
TRAIN = [rng.permutation(N_ITEMS)[: rng.integers(1, 40)].tolist() for _ in range(N_USERS)]
TRAIN[10] = []  # only the held-out item
TRAIN[11] = list(range(N_ITEMS - 1))  # everything but the held-out item
HELD_OUT = [next(item for item in rng.permutation(N_ITEMS).tolist() if item not in seen) for seen in TRAIN]


def network() -> NeuMF:
    model = NeuMF(
        NeuMFConfig(n_users=N_USERS, n_items=N_ITEMS, factors=4, layers=(8, 6, 4)), torch.Generator().manual_seed(3)
    )
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "embed" in name:
                weights *= 50.0  # distinct scores
    return model.eval()


def write_run(folder: Path, data: Path, model: NeuMF, **about: object) -> Path:
    folder.mkdir()
    save_model(folder, model, {"data": str(data), "feature_spec_file": "feature_spec.yaml", **about})
    return folder


@pytest.fixture
def run(write_folder: Callable[..., Path]) -> Path:
    # Users are spread over parts as by a hash, and sorted within each part.
    parts = [
        [(user, item, 1.0) for user in range(part, N_USERS, PARTS) for item in TRAIN[user]] for part in range(PARTS)
    ]
    parts[0].append((999, 5, 0.0))  # a negative on disk is not an interaction
    test = [[(user, HELD_OUT[user], 1.0), (user, 0, 0.0)] for user in range(N_USERS)]
    data = write_folder(parts, N_USERS, N_ITEMS, [list(chain(*test))], 2)
    (data / "categories").mkdir()
    for name, ids in (("user", USERS), ("item", ITEMS)):
        table = pa.table({"id": pa.array(range(len(ids)), pa.int32()), "original": ids})
        pq.write_table(table, data / "categories" / f"{name}.parquet")
    return write_run(data.parent / "run", data, network())


@pytest.fixture
def recommender(run: Path) -> Recommender:
    return Recommender.load(run, device="cpu")


PROBABILITIES = torch.sigmoid(network()(*torch.cartesian_prod(torch.arange(N_USERS), torch.arange(N_ITEMS)).T))
BY_HAND = PROBABILITIES.reshape(N_USERS, N_ITEMS).detach().numpy()


def check_against_brute_force(
    found: Recommendations, k: int, exclude_seen: bool = True, candidates: Sequence[int] = range(N_ITEMS)
) -> None:
    """All users, in order."""
    assert list(found.users) == USERS
    for user, ranking in enumerate(found):
        seen = {*TRAIN[user], HELD_OUT[user]} if exclude_seen else set()
        scores = sorted((BY_HAND[user, item] for item in set(candidates) - seen), reverse=True)[:k]
        items = [ITEMS.index(item) for item in ranking.items]
        assert len(set(items)) == len(items)
        assert set(items) <= set(candidates) - seen
        np.testing.assert_allclose(BY_HAND[user, items], scores, atol=1e-6)
        np.testing.assert_allclose(ranking.scores, scores, atol=1e-6)
        assert ranking.scores == sorted(ranking.scores, reverse=True)
        assert ranking.basis == "model"


@pytest.mark.parametrize("k", [1, 10, 500])
def test_a_thousand_users_match_brute_force(recommender: Recommender, k: int) -> None:
    check_against_brute_force(recommender.recommend(USERS, k), k)


def test_seen_items_can_be_included(recommender: Recommender) -> None:
    check_against_brute_force(recommender.recommend(USERS, 5, exclude_seen=False), 5, exclude_seen=False)


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_only_candidates_are_recommended(recommender: Recommender, exclude_seen: bool) -> None:
    chosen = [40, 7, 7, 89, 0, 21, 33]
    originals = [str(ITEMS[item]) for item in chosen]  # integer ids may be given as text
    found = recommender.recommend(USERS, 4, candidates=originals, exclude_seen=exclude_seen)
    check_against_brute_force(found, 4, exclude_seen, chosen)


@pytest.mark.parametrize("in_memory", [False, True])
def test_all_users_get_the_same_as_each_alone(run: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool) -> None:
    monkeypatch.setattr(module, "_BLOCK_SCORES", 7 * N_ITEMS)
    monkeypatch.setattr(module, "_PART", 39)
    recommender = Recommender.load(run, device="cpu", in_memory=in_memory)
    parts = list(recommender.recommend_all(10))
    assert all(1 <= len(part) <= 3 for part in parts)
    rankings = {one.user: one for part in parts for one in part}
    assert len(rankings) == N_USERS
    alone = recommender.recommend(USERS, 10)
    for one in alone:
        assert rankings[one.user].items == one.items
        np.testing.assert_allclose(rankings[one.user].scores, one.scores, rtol=1e-5)
    check_against_brute_force(alone, 10)


def test_ties_are_ordered_by_item(run: Path) -> None:
    model = network()
    with torch.no_grad():
        for table in (model.mf_item_embed.weight, model.mlp_item_embed.weight):
            table[:] = table[torch.arange(N_ITEMS) % 3]  # three kinds of items
    equal = write_run(run.parent / "equal", Path(load_run(run, CPU).config["data"]), model)
    recommender = Recommender.load(equal, device="cpu")
    for k in (1, 2, 31, 90):
        found = recommender.recommend(["u0002"], k, exclude_seen=False)[0]
        by_score = sorted(range(3), key=lambda kind: -model(torch.tensor([2]), torch.tensor([kind])).item())
        expected = [ITEMS[item] for kind in by_score for item in range(kind, N_ITEMS, 3)]
        assert found.items == expected[:k]


@pytest.mark.parametrize("in_memory", [False, True])
def test_unknown_users_raise_or_get_popular_items(run: Path, in_memory: bool) -> None:
    recommender = Recommender.load(run, device="cpu", in_memory=in_memory)
    with pytest.raises(UserError, match=r"users 'nobody', '7' are not among the 1,000 users"):
        recommender.recommend(["u0001", "nobody", "7"])
    with pytest.raises(UserError, match="users 'a', 'b', 'c' and 2 more are not"):
        recommender.recommend(["a", "b", "c", "d", "e"])
    found = recommender.recommend(["nobody", "u0001", "nobody"], 4, unknown_users="popular")
    counts = np.bincount(list(chain(*TRAIN)), minlength=N_ITEMS)
    order = sorted(range(N_ITEMS), key=lambda item: (-counts[item], item))
    for place in (0, 2):
        assert (found[place].user, found[place].basis) == ("nobody", "popularity")
        assert found[place].items == [ITEMS[item] for item in order[:4]]
        assert found[place].scores == pytest.approx([counts[item] / N_USERS for item in order[:4]])
    assert found[1] == recommender.recommend(["u0001"], 4)[0]
    of_three = recommender.recommend(["nobody"], 4, candidates=ITEMS[:3], unknown_users="popular")[0]
    assert of_three.items == [ITEMS[item] for item in order if item < 3]


@pytest.mark.parametrize("in_memory", [False, True])
def test_users_that_the_run_was_not_trained_on_are_unknown(run: Path, in_memory: bool) -> None:
    trained = np.random.default_rng(1).random(N_USERS) < 0.75
    trained[:3] = False, True, False
    data = Path(load_run(run, CPU).config["data"])
    some = write_run(run.parent / "some", data, network(), trained_users=encode_users(trained))
    recommender, every = (Recommender.load(folder, device="cpu", in_memory=in_memory) for folder in (some, run))
    told = f"users 'u0000', 'u0002' are not among the {trained.sum()} users this run was trained on .such as u0001"
    with pytest.raises(UserError, match=told):
        recommender.recommend(["u0000", "u0001", "u0002"])
    with pytest.raises(UserError, match="user 'u0002' is not among"):
        recommender.score(["u0001", "u0002"], [3, 3])
    found = recommender.recommend(["u0000", "u0001", "nobody"], 4, unknown_users="popular")
    assert [one.basis for one in found] == ["popularity", "model", "popularity"]
    assert found[0].items == found[2].items
    assert found[1] == every.recommend(["u0001"], 4)[0]
    rankings = {one.user: one.items for part in recommender.recommend_all(5) for one in part}
    expected = [user for user, is_trained in zip(USERS, trained, strict=True) if is_trained]
    assert sorted(rankings) == [USERS[number] for number in recommender.trained] == expected
    assert all(rankings[one.user] == one.items for one in every.recommend(expected, 5))


@pytest.mark.parametrize("wrong", ["", "none", 3, encode_users(np.array([True, False]))])
def test_an_invalid_set_of_users_is_reported(run: Path, wrong: object) -> None:
    data = Path(load_run(run, CPU).config["data"])
    with pytest.raises(UserError, match=r"config\.json: trained_users is not a set of users"):
        Recommender.load(write_run(run.parent / "wrong", data, network(), trained_users=wrong), device="cpu")


def test_the_probability_of_pairs(recommender: Recommender) -> None:
    users, items = rng.integers(N_USERS, size=200), rng.integers(N_ITEMS, size=200)
    found = recommender.score([USERS[user] for user in users], [ITEMS[item] for item in items])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, BY_HAND[users, items], atol=1e-6)
    assert recommender.score([], []).shape == (0,)


@pytest.mark.parametrize(
    ("users", "items", "message"),
    [
        (["u0001"], [3, 10], "1 and 2"),
        (["u1"], [3], "user 'u1'"),
        (["u0001"], [4], "item 4"),
        (["u0001"], ["3.5"], "3.5"),
    ],
)
def test_invalid_pairs_are_rejected(
    recommender: Recommender, users: list[str], items: list[int | str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        recommender.score(users, items)


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_history_is_ordered_by_time(run: Path, in_memory: bool) -> None:
    recommender = Recommender.load(run, device="cpu", in_memory=in_memory)
    for user in (0, 10, 11, 999):
        assert recommender.history(USERS[user]) == [ITEMS[item] for item in [*TRAIN[user], HELD_OUT[user]]]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"k": 0}, "-k"),
        ({"candidates": []}, "candidates"),
        ({"candidates": [3, 4]}, "item 4 is not among the 90 items"),
    ],
)
def test_invalid_arguments_are_rejected(recommender: Recommender, wrong: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        recommender.recommend(["u0001"], **wrong)
    with pytest.raises(UserError, match=message):
        list(recommender.recommend_all(**wrong))


def test_more_recommendations_than_fit_are_refused(recommender: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 20 * 2 * 10)
    assert len(recommender.recommend(["u0001", "u0002"], 10)) == 2
    with pytest.raises(UserError, match=r"recommending 90 items to each of 2 users needs .* lower -k"):
        recommender.recommend(["u0001", "u0002"], 10**30)


def test_no_users_get_no_rankings(recommender: Recommender) -> None:
    assert list(recommender.recommend([])) == []
    assert recommender.recommend([]).to_table().num_rows == 0


@pytest.mark.parametrize("scale", [1e25, 1e30])
def test_scores_that_overflow_are_reported(run: Path, scale: float) -> None:
    model = network()  # weights are finite, scores infinite or NaN
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    broken = write_run(run.parent / "broken", Path(load_run(run, CPU).config["data"]), model)
    with pytest.raises(UserError, match="broken are NaN or infinite"):
        Recommender.load(broken, device="cpu").recommend(["u0001"])
