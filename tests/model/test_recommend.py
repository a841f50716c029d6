"""Recommendations against a ranking of every unseen item by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model import recommend
from model.checkpoint import load_run, save_model
from model.columns import SideFeature
from model.neumf import NeuMF, NeuMFConfig
from model.recommender import Recommender
from workflows.errors import UserError

CPU = torch.device("cpu")
N_USERS, N_ITEMS = 4, 12
ITEM_NAMES = [f"item-{number * 7 % 12}" for number in range(N_ITEMS)]
USER_NAMES = [1007, 3, 55, 20]
# Each user's train positives; user 3 has seen all but the held-out one.
TRAIN = [{0, 4, 5}, {2}, {1, 3, 9}, set(range(11))]
HELD_OUT = [7, 0, 11, 11]


@pytest.fixture
def prepared(write_folder: Callable[..., Path]) -> Path:
    train = [[(user, item, 1.0) for item in sorted(TRAIN[user])] for user in range(N_USERS)]
    train[0].append((0, 8, 0.0))  # a negative on disk is no interaction
    test = [[(user, HELD_OUT[user], 1.0), (user, 6, 0.0), (user, 10, 0.0)] for user in range(N_USERS)]
    folder = write_folder(train, N_USERS, N_ITEMS, test, 3)
    (folder / "categories").mkdir()
    for name, ids in (("user", USER_NAMES), ("item", ITEM_NAMES)):
        table = pa.table({"id": pa.array(range(len(ids)), pa.int32()), "original": ids})
        pq.write_table(table, folder / "categories" / f"{name}.parquet")
    return folder


@pytest.fixture
def run(prepared: Path) -> Path:
    shape = NeuMFConfig(n_users=N_USERS, n_items=N_ITEMS, factors=4, layers=(8, 4))
    model = NeuMF(shape, torch.Generator().manual_seed(3))
    folder = prepared.parent / "run"
    folder.mkdir()
    save_model(folder, model, {"data": str(prepared), "feature_spec_file": "feature_spec.yaml"})
    return folder


def expected_ranking(run: Path, user: int) -> list[tuple[str, float]]:
    model = load_run(run, CPU).model
    unseen = sorted(set(range(N_ITEMS)) - TRAIN[user] - {HELD_OUT[user]})
    scores = {item: torch.sigmoid(model(torch.tensor([user]), torch.tensor([item]))).item() for item in unseen}
    return [(ITEM_NAMES[item], scores[item]) for item in sorted(unseen, key=lambda item: -scores[item])]


@pytest.mark.parametrize("user", range(N_USERS))
@pytest.mark.parametrize("k", [1, 4, 100])
def test_recommendations_are_all_unseen_items_by_score(prepared: Path, run: Path, user: int, k: int) -> None:
    found = Recommender(load_run(run, CPU), prepared).recommend([str(USER_NAMES[user])], k)[0]
    expected = expected_ranking(run, user)[:k]
    assert found.items == [item for item, _ in expected]
    assert found.scores == pytest.approx([score for _, score in expected])
    if user == 3:
        assert found.items == []  # nothing is left to recommend


def test_several_users_are_asked_in_any_order_and_more_than_once(prepared: Path, run: Path) -> None:
    order = [2, 0, 3, 0, 1]
    found = Recommender(load_run(run, CPU), prepared).recommend([str(USER_NAMES[user]) for user in order], 4)
    for user, ranked in zip(order, found, strict=True):
        assert (ranked.user, ranked.basis) == (USER_NAMES[user], "model")
        assert ranked.items == [item for item, _ in expected_ranking(run, user)[:4]]


def test_the_command_prints_ranks_ids_scores_and_titles(
    prepared: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    titles = tmp_path / "titles.csv"
    titles.write_text("item,title\n" + "".join(f"{name},Title [{name}]\n" for name in ITEM_NAMES[:6]))
    recommend.main(["--run", str(run), "--user", "1007", "55", "-k", "3", "--titles", str(titles)])
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    expected = []
    for user in (0, 2):
        expected += [["user", str(USER_NAMES[user])], ["rank", "item", "score", "title"]]
        for rank, (item, score) in enumerate(expected_ranking(run, user)[:3], 1):
            title = ["Title", f"[{item}]"] if item in ITEM_NAMES[:6] else []
            expected.append([str(rank), item, f"{score:.4f}", *title])
    assert lines == expected


def test_the_folder_may_have_moved(prepared: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = prepared.rename(prepared.with_name("moved"))
    with pytest.raises(UserError, match="prepared"):
        recommend.main(["--run", str(run), "--user", "3"])
    recommend.main(["--run", str(run), "--user", "3", "--data", str(moved)])
    assert expected_ranking(run, 1)[0][0] in capsys.readouterr().out


@pytest.mark.parametrize("user", ["4", "03", "", "nobody", "3.0"])
def test_an_unknown_user_is_told_with_examples(prepared: Path, run: Path, user: str) -> None:
    with pytest.raises(UserError, match=r"not among the 4 users.*1007, 3, 55"):
        Recommender(load_run(run, CPU), prepared).recommend(["3", user], 3)


def test_a_user_id_is_printed_as_it_is(prepared: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["[red]", "[/x]", "a[1]", "ü"]
    table = pa.table({"id": pa.array(range(4), pa.int32()), "original": names})
    pq.write_table(table, prepared / "categories" / "user.parquet")
    recommend.main(["--run", str(run), "--user", *names, "-k", "1"])
    out = capsys.readouterr().out
    assert all(f"user {name}\n" in out for name in names)


def test_a_folder_without_categories_has_its_own_ids(prepared: Path, run: Path) -> None:
    shutil.rmtree(prepared / "categories")
    found = Recommender(load_run(run, CPU), prepared).recommend(["1"], 100)[0]
    assert [ITEM_NAMES[int(str(item))] for item in found.items] == [item for item, _ in expected_ranking(run, 1)]


def test_another_folder_is_refused(prepared: Path, run: Path, write_folder: Callable[..., Path]) -> None:
    other = write_folder([[(0, 0, 1.0)]], N_USERS + 1, N_ITEMS, name="other")
    with pytest.raises(UserError, match=r"5 users and 12 items.*4 and 12"):
        recommend.main(["--run", str(run), "--user", "3", "--data", str(other)])


def test_categories_that_do_not_fit_are_refused(prepared: Path, run: Path) -> None:
    table = pa.table({"id": pa.array(range(3), pa.int32()), "original": USER_NAMES[:3]})
    pq.write_table(table, prepared / "categories" / "user.parquet")
    with pytest.raises(UserError, match="categories"):
        recommend.main(["--run", str(run), "--user", "3"])


@pytest.mark.parametrize("missing", ["data", "feature_spec_file"])
def test_a_config_without_its_data_is_told(run: Path, missing: str) -> None:
    path = run / "config.json"
    config = json.loads(path.read_text())
    del config[missing]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json"):
        recommend.main(["--run", str(run), "--user", "3"])


def test_k_below_one_is_refused(run: Path) -> None:
    with pytest.raises(UserError, match="-k"):
        recommend.main(["--run", str(run), "--user", "3", "-k", "0"])


# User 2 has no train row; ages and hours change from row to row, and the last train row counts.
SIDE_TRAIN = pd.DataFrame(
    {
        "reader": [1, 0, 0, 1, 0],
        "book": [4, 2, 3, 5, 0],
        "label": [1.0, 1.0, 1.0, 1.0, 0.0],
        "hour": [1, 2, 0, 3, 1],
        "age": [0.1, 0.2, 0.3, 0.4, 0.5],
        "kind": [1, 0, 1, 0, 0],
    }
)
SIDE_TEST = pd.DataFrame(
    {
        "reader": [0, 0, 2, 2, 2],
        "book": [4, 1, 3, 2, 0],
        "label": [1.0, 0.0, 0.0, 1.0, 1.0],
        "hour": [3, 3, 0, 1, 2],
        "age": [0.6, 0.6, 0.7, 0.8, 0.9],
        "kind": [1, 1, 1, 0, 0],
    }
)
SIDE_CHANNELS = {
    "categorical_user_inputs": ["hour", "reader"],
    "user_numbers": ["age"],
    "categorical_item_inputs": ["kind", "book"],
    "label_ch": ["label"],
}


@pytest.fixture
def side_run(write_frames: Callable[..., Path]) -> Path:
    sizes = {"reader": 4, "book": 6, "hour": 4, "kind": 2}
    data = write_frames({"train": SIDE_TRAIN, "test": SIDE_TEST}, SIDE_CHANNELS, sizes)
    shape = NeuMFConfig(
        n_users=4, n_items=6, factors=4, layers=(8, 4),
        row_side=(SideFeature("hour", 4), SideFeature("age")), item_side=(SideFeature("kind", 2),),
    )  # fmt: skip
    model = NeuMF(shape, torch.Generator().manual_seed(3))
    model.set_item_tables((torch.tensor([0, 1, 0, 1, 1, 0]),))
    folder = data.parent / "side-run"
    folder.mkdir()
    about = {
        "data": str(data),
        "feature_spec_file": "feature_spec.yaml",
        "features": {"user": "reader", "item": "book"},
    }
    save_model(folder, model, about)
    return folder


@pytest.mark.parametrize(
    ("user", "hour", "age", "unseen"),
    [(0, 1, 0.5, [0, 1, 5]), (1, 3, 0.4, [0, 1, 2, 3]), (2, 2, 0.9, [1, 3, 4, 5])],
)
def test_side_features_are_those_of_the_last_train_row(
    side_run: Path, user: int, hour: int, age: float, unseen: list[int]
) -> None:
    run = load_run(side_run, CPU)
    found = Recommender(run, Path(run.config["data"])).recommend([str(user)], 10)[0]
    items = torch.tensor(unseen)
    scores = run.model(
        torch.full_like(items, user), items, torch.full_like(items, hour), torch.full((len(items),), age)
    )
    expected = sorted(zip(torch.sigmoid(scores).tolist(), unseen, strict=True), reverse=True)
    assert found.items == [item for _, item in expected]
    assert found.scores == pytest.approx([score for score, _ in expected])


def test_a_user_whose_side_features_nobody_knows_is_told(side_run: Path) -> None:
    with pytest.raises(UserError, match=r"no row of user 3.*hour, age"):
        recommend.main(["--run", str(side_run), "--user", "3"])


def test_a_folder_without_the_side_features_of_the_run_is_refused(
    side_run: Path, write_frames: Callable[..., Path]
) -> None:
    channels = {**SIDE_CHANNELS, "categorical_item_inputs": ["book"]}
    sizes = {"reader": 4, "book": 6, "hour": 4, "kind": 2}  # the kind is in no channel
    other = write_frames({"train": SIDE_TRAIN, "test": SIDE_TEST}, channels, sizes, name="other")
    with pytest.raises(UserError, match=r"side feature 'kind' \(cardinality 2\), which .*other does not have"):
        recommend.main(["--run", str(side_run), "--user", "1", "--data", str(other)])
