"""Recommendations against a brute-force ranking of all unseen items."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from model.network.checkpoint import load_run, save_model
from model.network.neumf import NeuMF, NeuMFConfig
from model.recommend import __main__ as recommend
from model.recommend.recommender import Recommender
from preprocessing.spec.feature_columns import SideFeature
from workflows.common.errors import UserError

ROOT = Path(__file__).parents[3]
CPU = torch.device("cpu")
N_USERS, N_ITEMS = 4, 12
ITEM_NAMES = [f"item-{number * 7 % 12}" for number in range(N_ITEMS)]
USER_NAMES = [1007, 3, 55, 20]
# Each user's train positives; user 3 has seen all but the held-out item.
TRAIN = [{0, 4, 5}, {2}, {1, 3, 9}, set(range(11))]
HELD_OUT = [7, 0, 11, 11]


@pytest.fixture
def prepared(write_folder: Callable[..., Path]) -> Path:
    train = [[(user, item, 1.0) for item in sorted(TRAIN[user])] for user in range(N_USERS)]
    train[0].append((0, 8, 0.0))  # a negative on disk is not an interaction
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
        assert found.items == []  # nothing left to recommend


def test_users_may_be_requested_in_any_order_and_repeatedly(prepared: Path, run: Path) -> None:
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
            expected.append([str(rank), item, f"{score:.6g}", *title])
    assert lines == expected


def test_the_folder_may_have_moved(prepared: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = prepared.rename(prepared.with_name("moved"))
    with pytest.raises(UserError, match="prepared"):
        recommend.main(["--run", str(run), "--user", "3"])
    recommend.main(["--run", str(run), "--user", "3", "--data", str(moved)])
    assert expected_ranking(run, 1)[0][0] in capsys.readouterr().out


@pytest.mark.parametrize("user", ["4", "3 3", "", "nobody", "3.5"])
def test_the_error_for_an_unknown_user_lists_examples(prepared: Path, run: Path, user: str) -> None:
    with pytest.raises(UserError, match=r"not among the 4 users.*1007, 3, 55"):
        Recommender(load_run(run, CPU), prepared).recommend(["3", user], 3)


def test_a_user_id_is_printed_verbatim(prepared: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["[red]", "[/x]", "a[1]", "ü"]
    table = pa.table({"id": pa.array(range(4), pa.int32()), "original": names})
    pq.write_table(table, prepared / "categories" / "user.parquet")
    recommend.main(["--run", str(run), "--user", *names, "-k", "1"])
    out = capsys.readouterr().out
    assert all(f"user {name}\n" in out for name in names)


def test_a_folder_without_categories_uses_its_own_ids(prepared: Path, run: Path) -> None:
    shutil.rmtree(prepared / "categories")
    found = Recommender(load_run(run, CPU), prepared).recommend(["1"], 100)[0]
    assert [ITEM_NAMES[int(str(item))] for item in found.items] == [item for item, _ in expected_ranking(run, 1)]


def test_another_folder_is_rejected(prepared: Path, run: Path, write_folder: Callable[..., Path]) -> None:
    other = write_folder([[(0, 0, 1.0)]], N_USERS + 1, N_ITEMS, name="other")
    with pytest.raises(UserError, match=r"5 users and 12 items.*4 and 12"):
        recommend.main(["--run", str(run), "--user", "3", "--data", str(other)])


def test_categories_that_do_not_fit_are_rejected(prepared: Path, run: Path) -> None:
    table = pa.table({"id": pa.array(range(3), pa.int32()), "original": USER_NAMES[:3]})
    pq.write_table(table, prepared / "categories" / "user.parquet")
    with pytest.raises(UserError, match="categories"):
        recommend.main(["--run", str(run), "--user", "3"])


@pytest.mark.parametrize(
    "change", [{"train": "text"}, {"data": "x" * 1_000_000}, {"feature_spec_file": "x" * 1_000_000}, {"features": [1]}]
)
def test_a_config_with_other_values_is_rejected_by_a_short_message(run: Path, change: dict[str, Any]) -> None:
    path = run / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match=r"config\.json is not the config of a trained run") as raised:
        recommend.main(["--run", str(run), "--user", "3"])
    assert len(str(raised.value)) < 500 + len(str(path))


@pytest.mark.parametrize("missing", ["data", "feature_spec_file"])
def test_a_config_without_data_is_rejected(run: Path, missing: str) -> None:
    path = run / "config.json"
    config = json.loads(path.read_text())
    del config[missing]
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json"):
        recommend.main(["--run", str(run), "--user", "3"])


def test_k_below_one_is_rejected(run: Path) -> None:
    with pytest.raises(UserError, match="-k"):
        recommend.main(["--run", str(run), "--user", "3", "-k", "0"])


# User 2 has no train row; ages and hours vary between rows, and the last train row counts.
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
def test_side_features_come_from_the_last_train_row(
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


def test_a_user_with_unknown_side_features_is_rejected(side_run: Path) -> None:
    with pytest.raises(UserError, match=r"no row of user 3.*hour, age"):
        recommend.main(["--run", str(side_run), "--user", "3"])


def test_a_folder_without_the_side_features_of_the_run_is_rejected(
    side_run: Path, write_frames: Callable[..., Path]
) -> None:
    channels = {**SIDE_CHANNELS, "categorical_item_inputs": ["book"]}
    sizes = {"reader": 4, "book": 6, "hour": 4, "kind": 2}  # kind is in no channel
    other = write_frames({"train": SIDE_TRAIN, "test": SIDE_TEST}, channels, sizes, name="other")
    with pytest.raises(UserError, match=r"side feature 'kind' \(cardinality 2\), which .*other does not have"):
        recommend.main(["--run", str(side_run), "--user", "1", "--data", str(other)])


def test_users_and_candidates_from_files(prepared: Path, run: Path, tmp_path: Path) -> None:
    # Blanks around ids are none of theirs, as in a log.
    (tmp_path / "users.txt").write_text("\ufeff 55\t\n \n\n1007 \r\n\r\n  nobody\n", encoding="utf-8", newline="")
    (tmp_path / "items.txt").write_text(" \n ".join(ITEM_NAMES[:7]))
    flags = f"--users-file {tmp_path}/users.txt --candidates {tmp_path}/items.txt --unknown-users popular -k 2"
    for name in ("recs.json", "again.json"):
        recommend.main(["--run", str(run), *flags.split(), "--output", str(tmp_path / name)])
    assert (tmp_path / "recs.json").read_bytes() == (tmp_path / "again.json").read_bytes()
    found = json.loads((tmp_path / "recs.json").read_text())
    assert [(one["user"], one["basis"]) for one in found] == [
        ("55", "model"), ("1007", "model"), ("nobody", "popularity"),
    ]  # fmt: skip
    for user, one in ((2, found[0]), (0, found[1])):
        by_hand = [item for item, _ in expected_ranking(run, user) if item in ITEM_NAMES[:7]]
        assert [ranked["item"] for ranked in one["items"]] == by_hand[:2]


@pytest.mark.parametrize("output", [[], ["--output", "recs.csv"]])
def test_unknown_candidates_can_be_left_out(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], output: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("today.txt").write_text("\n".join([*ITEM_NAMES[:5], "new-1", ITEM_NAMES[0], "new-2"]))
    command = ["--run", str(run), "--user", "3", "-k", "9", "--candidates", "today.txt", *output]
    with pytest.raises(UserError, match=r"items 'new-1', 'new-2' are not .*--unknown-items skip"):
        recommend.main(command)
    assert not Path("recs.csv").exists()
    recommend.main([*command, "--unknown-items", "skip"])
    out = capsys.readouterr().out
    assert "left out 2 of 8 candidates, which the run was not trained on\n" in out
    items = pd.read_csv("recs.csv")["item"].tolist() if output else [line.split()[1] for line in out.splitlines()[3:]]
    assert items == [item for item, _ in expected_ranking(run, 1) if item in ITEM_NAMES[:5]]

    Path("today.txt").write_text("new-1\nnew-2\n")
    with pytest.raises(UserError, match=r"items 'new-1', 'new-2' are not among the 12 items"):
        recommend.main([*command, "--unknown-items", "skip", "--overwrite"])


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["--user", "-1KK"], "--user=-1KK"),
        (["--user", "--1=K", "-k", "1"], "--user=--1=K"),
        (["-k", "1", "--user", "3", "-kab"], "--user=-kab"),
        (["--user", "-k", "1"], None),
        (["--users-file", "-x"], None),
    ],
)
def test_an_id_taken_for_a_flag_is_explained(
    run: Path, given: list[str], shown: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        recommend.main(["--run", str(run), *given])
    assert ended.value.code == 2
    message = capsys.readouterr().err
    assert (f"write {shown}\n" in message) if shown else ("is a user id" not in message)


def test_ids_that_begin_with_a_dash(prepared: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["-1KK", "--x", "-k", "b"]
    table = pa.table({"id": pa.array(range(4), pa.int32()), "original": names})
    pq.write_table(table, prepared / "categories" / "user.parquet")
    recommend.main(["--run", str(run), "--user", "b", *(f"--user={name}" for name in names[:3]), "-k", "1"])
    users = [line for line in capsys.readouterr().out.splitlines() if line.startswith("user")]
    assert users == ["user b", "user -1KK", "user --x", "user -k"]


@pytest.mark.parametrize("train", [{"loss": "softmax", "members": []}, {"loss": "bce", "members": ["softmax"]}])
def test_scores_that_are_no_probabilities_are_shown_as_logits(
    run: Path, capsys: pytest.CaptureFixture[str], train: dict[str, object]
) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "train": train}))
    model = load_run(run, CPU).model
    with torch.no_grad():
        model.final.bias -= 40.0  # probabilities below 1e-16
        logits = model(torch.full((N_ITEMS,), 1), torch.arange(N_ITEMS)).tolist()
    save_model(run, model, {name: value for name, value in config.items() if name != "model"} | {"train": train})
    recommend.main(["--run", str(run), "--user", "3", "-k", "4"])
    _, header, *lines = capsys.readouterr().out.splitlines()
    assert header.split("  ")[-1].strip() == "score (logit)"
    found = {item: float(score) for _, item, score in map(str.split, lines)}
    assert len(set(found.values())) == 4
    for item, score in found.items():
        assert score == pytest.approx(logits[ITEM_NAMES.index(item)], rel=1e-5)
    recommender = Recommender.load(run, device="cpu")
    assert recommender.scale == "logit"
    assert recommender.score([3], ["item-0"]) == pytest.approx(logits[0], rel=1e-5)


def test_all_users_are_written_to_a_file(
    prepared: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--run", str(run), "--all", "-k", "3", "--output", str(tmp_path / "recs.parquet")]
    recommend.main(command)
    assert f"wrote {tmp_path}/recs.parquet for 4 users\n" in capsys.readouterr().out
    frame = pd.read_parquet(tmp_path / "recs.parquet")
    for user, name in enumerate(USER_NAMES):
        assert frame.loc[frame["user"] == name, "item"].tolist() == [
            item for item, _ in expected_ranking(run, user)[:3]
        ]
    with pytest.raises(UserError, match="exists already"):
        recommend.main(command)


def test_seen_items_can_be_included(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recommend.main(["--run", str(run), "--user", "20", "--no-exclude-seen", "-k", "100"])
    assert len(capsys.readouterr().out.splitlines()) == 2 + N_ITEMS
    recommend.main(["--run", str(run), "--user", "nobody", "--unknown-users", "popular"])
    assert "user nobody: unknown, showing popular items\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--user 3 --output recs.xlsx", r"recs\.xlsx.*\.parquet, \.csv, \.json"),
        ("--user 3 --output {tmp}", "--output .* the name should end in"),
        ("--users-file {tmp}/none.txt", "none.txt: not readable"),
        ("--users-file {tmp}/empty.txt", "empty.txt is empty"),
        ("--users-file {tmp}/bytes.txt", "bytes.txt: not readable as UTF-8"),
        ("--user 3 --candidates {tmp}/long.txt", "item 'xxx.*x… is not among .{,300}$"),
        ("--user 3 --candidates {tmp}/pipe", "pipe: not readable .not a file"),
        ("--users-file /dev/zero", "/dev/zero: not readable .not a file"),
        ("--user 3 --candidates {tmp}/other.txt", "item 'item-99' is not among the 12 items"),
        ("--user 3 --output {tmp}/empty.txt/recs.csv", "empty.txt is a file"),
    ],
)
def test_invalid_files_are_rejected(run: Path, tmp_path: Path, flags: str, message: str) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe")
    (tmp_path / "other.txt").write_text("item-1\nitem-99\n")
    (tmp_path / "long.txt").write_text("x" * 1_000_000)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=message):
        recommend.main(["--run", str(run), *flags.format(tmp=tmp_path).split()])


@pytest.mark.parametrize("flags", ["", "--user 3 --all", "--all --users-file f"])
def test_exactly_one_way_to_select_users_is_required(run: Path, flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        recommend.main(["--run", str(run), *flags.split()])
    assert ended.value.code == 2
    assert "--all" in capsys.readouterr().err


def test_all_users_of_a_run_with_side_features(side_run: Path, tmp_path: Path) -> None:
    command = ["--run", str(side_run), "--all", "-k", "10", "--output", str(tmp_path / "recs.parquet")]
    with pytest.raises(UserError, match="no row of user 3"):
        recommend.main(command)
    assert not (tmp_path / "recs.parquet").exists()
    recommend.main([*command, "--unknown-users", "popular"])
    frame = pd.read_parquet(tmp_path / "recs.parquet")
    assert frame.groupby("user")["basis"].unique().map(list).to_dict() == {
        0: ["model"], 1: ["model"], 2: ["model"], 3: ["popularity"],
    }  # fmt: skip
    assert sorted(frame.loc[frame["user"] == 1, "item"]) == [0, 1, 2, 3]


@pytest.mark.usefixtures("forked")
def test_as_processes(run: Path, tmp_path: Path) -> None:
    def status(*arguments: object) -> tuple[int, str]:
        command = [sys.executable, "-m", *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr
        return done.returncode, done.stdout + done.stderr

    code, shown = status("model.recommend", "--run", run, "--all", "--output", tmp_path / "recs.csv")
    assert (code, shown.splitlines()[-1]) == (0, f"wrote {tmp_path}/recs.csv for 4 users")
    code, shown = status("model.recommend", "--run", run, "--user", "3", "nobody")
    assert code == 2
    assert "error: user 'nobody' is not among the 4 users" in shown
    code, shown = status("model.export", "--run", run, "--format", "onnx", "--output", tmp_path / "recs.csv")
    assert code == 2
    assert "recs.csv exists already" in shown
