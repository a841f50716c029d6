"""The comparison with peers: a fake peer run by this interpreter, failures, the split, tables."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
import yaml

from benchmark.peers import command, comparison
from benchmark.peers.adapters.host import top_items
from benchmark.peers.fit import Job, OverLimitError, fit
from benchmark.peers.models import MODELS, OURS, Model, program_lines
from benchmark.peers.report import markdown
from benchmark.peers.split import write_split
from benchmark.quality.data import Data
from benchmark.quality.run import Done
from benchmark.quality_baselines import SCORES_NAME
from workflows.common.errors import UserError

USERS, ITEMS, NEGATIVES, ROWS_PER_USER = 16, 40, 20, 6

# Scores are popularity without ties, times the setting `sign`; the user's number is added, which tells users apart.
POPULARITY = """
import numpy as np

def fit(run):
    counts = np.bincount(run.items, minlength=run.n_items).astype(np.float32)
    run.loaded()
    sign = run.settings.get("sign", 1)
    values = sign * (counts + np.arange(run.n_items) / 1000)
    scores = lambda users: values[None, :] + users[:, None]
    for _ in range(3):
        run.epoch(len(run.users), scores)
    if run.held_out is not None:
        run.chosen["noticed"] = int((run.held_out >= 0).sum())
    return scores
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Users with random items, the first items more often; the last is the test item."""
    data = tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    popular = 1.0 / np.arange(1, ITEMS + 1)
    train, test = [], []
    for user in range(USERS):
        own = rng.choice(ITEMS, ROWS_PER_USER + 1, replace=False, p=popular / popular.sum())
        train += [(user, item, 1.0) for item in own[:-1]]
        series = [own[-1], *rng.choice(np.setdiff1d(np.arange(ITEMS), own), NEGATIVES, replace=False)]
        test += [(user, item, float(number == 0)) for number, item in enumerate(series)]
    names, chunks = ["user", "item", "label"], {}
    for name, rows in (("train", train), ("test", test)):
        pq.write_table(pa.table(dict(zip(names, zip(*rows, strict=True), strict=True))), data / f"{name}.parquet")
        chunks[name] = [{"type": "parquet", "features": names, "files": [f"{name}.parquet"]}]
    spec = {
        "channel_spec": {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"]},
        "feature_spec": {"user": {"cardinality": USERS}, "item": {"cardinality": ITEMS}, "label": {}},
        "metadata": {"time_ordered": True, "test_samples_per_series": 1 + NEGATIVES},
        "source_spec": chunks,
    }
    (data / "feature_spec.yaml").write_text(yaml.safe_dump(spec))
    return data


def pairs(folder: Path, name: str) -> list[tuple[int, int]]:
    """Positives in order, read without the product's code."""
    table = pq.read_table(folder / f"{name}.parquet").to_pydict()
    rows = zip(table["user"], table["item"], table["label"], strict=True)
    return [(user, item) for user, item, label in rows if label]


def popularity(folder: Path) -> np.ndarray:
    counts = np.bincount([item for _, item in pairs(folder, "train")], minlength=ITEMS)
    return counts + np.arange(ITEMS) / 1000


def own_scores() -> np.ndarray:
    """Random scores: stand in for our rows."""
    return np.random.default_rng(4).random((USERS, ITEMS)).astype(np.float32)


@dataclass
class Fake:
    """A comparison with one fake peer; `adapters` is where its program lies."""

    adapters: Path
    output: Path
    data: Path

    def write(self, name: str, text: str) -> None:
        (self.adapters / f"{name}.py").write_text(text)

    def run(self, *flags: object) -> dict[str, Any]:
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        given = ["--data", self.data, "--output", self.output, "--peers", *sorted({m.peer for m in MODELS.values()})]
        command.main(parser.parse_args([str(flag) for flag in (*given, *flags)]))
        return json.loads((self.output / "peers.json").read_text())


@pytest.fixture
def fake(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Peers `fake` (popularity) and `absent` (not installed), instead of the real ones; one row of ours."""
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    found = Fake(adapters, tmp_path / "result", folder)
    found.write("fake", POPULARITY)
    found.write("absent", POPULARITY)
    for name in list(MODELS):
        monkeypatch.delitem(MODELS, name)
    monkeypatch.setitem(MODELS, "fake-pop", Model("fake", "pop", "popularity", {"sign": (-1, 2)}))
    monkeypatch.setitem(MODELS, "absent-pop", Model("absent", "pop", "not installed", {}))
    monkeypatch.setattr("benchmark.peers.models.ADAPTERS", adapters)
    monkeypatch.setattr(comparison, "program_lines", lambda row: len(row))
    monkeypatch.setattr(comparison, "OWN", ("popularity",))
    python = {"fake": Path(sys.executable)}
    for module in (command, comparison):
        monkeypatch.setattr(module, "python_of", python.get)
        monkeypatch.setattr(module, "error_of", lambda peer: f"no wheel for {peer}")
    monkeypatch.setattr(command, "versions", lambda python: {"fake": "1.0"})

    def run(program: object, seed: int, data: Path, folder: Path) -> Done:
        folder.mkdir(parents=True)
        safetensors.torch.save_file({"scores": torch.from_numpy(own_scores())}, folder / SCORES_NAME)
        return Done(folder, "python", 1.0, 1.0, 10.0, "a1b2c3")

    monkeypatch.setattr(comparison, "run", run)
    return found


def test_the_split_is_train_in_order_and_never_test(folder: Path, tmp_path: Path) -> None:
    data, test = Data.load(folder), set(pairs(folder, "test"))
    write_split(data.train, tmp_path / "train.npz")
    whole = np.load(tmp_path / "train.npz")
    found = list(zip(whole["users"].tolist(), whole["items"].tolist(), strict=True))
    assert found == pairs(folder, "train")
    assert not test & set(found)
    assert (int(whole["n_users"]), int(whole["n_items"]), "held_out" in whole.files) == (USERS, ITEMS, False)


def test_the_validation_split_holds_out_the_last_train_item_of_each_user(folder: Path, tmp_path: Path) -> None:
    data, train = Data.load(folder), pairs(folder, "train")
    write_split(data.train, tmp_path / "validation.npz", data.validation_items(1))
    split = np.load(tmp_path / "validation.npz")
    last = dict(train)  # of several items of a user, the last stays
    assert dict(enumerate(split["held_out"].tolist())) == last
    kept = list(zip(split["users"].tolist(), split["items"].tolist(), strict=True))
    assert kept == [pair for pair in train if last[pair[0]] != pair[1]]
    assert not set(pairs(folder, "test")) & {*kept, *last.items()}


def test_scores_come_back_in_the_order_of_our_ids_and_are_ranked_by_our_code(fake: Fake) -> None:
    result = fake.run("--trials", 0)
    scores = np.load(fake.output / "runs" / "fake-pop-default-1" / "scores.npy")
    values = popularity(fake.data)
    np.testing.assert_allclose(scores, values[None, :] + np.arange(USERS)[:, None], rtol=1e-6)
    items = np.array(pq.read_table(fake.data / "test.parquet")["item"]).reshape(USERS, 1 + NEGATIVES)
    train = pairs(fake.data, "train")
    unseen = [[item for item in range(ITEMS) if (user, item) not in train] for user in range(USERS)]
    metrics = next(each for each in result["results"] if each["row"] == "fake-pop")["metrics"]
    for way, ranked in (("sampled", items), ("full", unseen)):
        hits = [sum(values[list(row)] > values[own[0]]) < 10 for row, own in zip(ranked, items, strict=True)]
        assert metrics[f"{way} hr@10"]["mean"] == pytest.approx(np.mean(hits))
        assert 0.0 < np.mean(hits) < 1.0  # so that another order of items would give another figure


def test_settings_are_chosen_on_validation_and_the_final_fit_has_all_of_train(fake: Fake) -> None:
    fake.write("fake", POPULARITY.replace('run.settings.get("sign", 1)', 'run.settings.get("sign", -1)'))
    result = fake.run("--trials", 2)
    default, tuned = (each for each in result["results"] if each["row"] == "fake-pop")
    assert "sign" not in tuned["tried"][0]["settings"]  # the defaults come first
    assert sorted(each["settings"]["sign"] for each in tuned["tried"][1:]) == [-1, 2]
    assert tuned["settings"] == {"sign": 2, "noticed": USERS}
    assert default["settings"] == {"noticed": USERS}  # what the peer chose by itself is kept
    best = max(tuned["tried"], key=lambda each: each["expected hr@10"] + each["expected ndcg@10"])
    assert best["settings"] == tuned["settings"]
    assert tuned["runs"][0]["samples"] == 3 * USERS * ROWS_PER_USER  # validation items are trained on, too


def test_tuning_does_not_read_test(fake: Fake) -> None:
    """Other test items lead to the same choice and the same measured validation quality."""
    first = fake.run("--trials", 2)
    table = pq.read_table(fake.data / "test.parquet")
    items = np.array(table["item"]).reshape(USERS, -1)[:, ::-1].reshape(-1)
    pq.write_table(table.set_column(1, "item", pa.array(items)), fake.data / "test.parquet")
    fake.output = fake.output.with_name("other")
    second = fake.run("--trials", 2)
    tried = [
        [(each["settings"], each["expected hr@10"]) for each in row["tried"]]
        for result in (first, second)
        for row in result["results"]
        if row["row"] == "fake-pop"
    ]
    assert tried[:2] == tried[2:]
    files = [np.load(path) for path in sorted(fake.output.glob("*.npz"))]
    earlier = [np.load(path) for path in sorted((fake.output.with_name("result")).glob("*.npz"))]
    for one, other in zip(files, earlier, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in one.files)


def test_peers_that_are_missing_or_crash_are_shown_and_the_others_go_on(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.write("crash", "def fit(run):\n    raise ValueError('no such user')\n")
    monkeypatch.setitem(MODELS, "crash-pop", Model("crash", "pop", "crashes", {}))
    for module in (command, comparison):
        monkeypatch.setattr(module, "python_of", dict.fromkeys(("fake", "crash"), Path(sys.executable)).get)
    result = fake.run("--trials", 0)
    rows = {each["row"]: each for each in result["results"]}
    assert rows["absent-pop"]["error"] == "no wheel for absent"
    assert rows["crash-pop"]["error"] == "exited with status 1: ValueError: no such user"
    assert "metrics" in rows["fake-pop"]
    text = markdown(result)
    assert "| `absent-pop` | no wheel for absent |" in text
    assert "| `crash-pop` | exited with status 1: ValueError: no such user |" in text
    assert result["peers"]["absent"] == {"error": "no wheel for absent"}
    assert (fake.output / "peers.png").stat().st_size
    assert (fake.output / "time-to-quality.png").stat().st_size


def test_our_runs_are_those_of_the_quality_benchmark(fake: Fake, tmp_path: Path) -> None:
    fake.run("--trials", 0, "--runs", tmp_path / "quality" / "runs")
    assert (tmp_path / "quality" / "runs" / "popularity-1" / SCORES_NAME).exists()
    assert not list((fake.output / "runs").glob("popularity*"))


def test_ours_is_fitted_like_a_peer(folder: Path, tmp_path: Path) -> None:
    """In validation it chooses the number of epochs; then it trains that many on all of train."""
    data = Data.load(folder)
    split, held = tmp_path / "train.npz", tmp_path / "validation.npz"
    write_split(data.train, split)
    rng = np.random.default_rng(3)  # series of 101 items need as many
    users, items = np.divmod(np.flatnonzero(rng.random(12 * 150) < 0.1), 150)
    held_out = np.array([next(item for item in range(150) if item not in items[users == user]) for user in range(12)])
    np.savez(held, users=users, items=items, n_users=12, n_items=150, held_out=held_out.astype(np.int32))
    settings = {"factors": 4, "negative_samples": 2, "epochs": 3}
    adapter = str(MODELS["neumf"].adapter)
    chosen = fit(Path(sys.executable), Job(adapter, "neumf", str(held), settings, 1), tmp_path / "tried")["chosen"]
    assert 1 <= chosen["epochs"] <= 3
    figures = fit(Path(sys.executable), Job(adapter, "neumf", str(split), settings, 1, curve=True), tmp_path / "run")
    assert figures["chosen"] == {}
    assert figures["samples"] == 3 * 3 * USERS * ROWS_PER_USER
    scores = [np.load(tmp_path / "run" / f"{name}.npy") for name in ("scores", "epoch-3", "epoch-1")]
    assert scores[0].shape == (USERS, ITEMS)
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5)  # the last epoch, not the best one
    assert not np.allclose(scores[0], scores[2])


def test_a_peer_over_the_limit_is_ended(tmp_path: Path) -> None:
    adapter = tmp_path / "slow.py"
    adapter.write_text("import signal\n\ndef fit(run):\n    while True:\n        pass\n")
    np.savez(tmp_path / "split.npz", users=[0], items=[0], n_users=1, n_items=1)
    job = Job(str(adapter), "slow", str(tmp_path / "split.npz"), {}, 1, limit_s=1.0)
    with pytest.raises(OverLimitError, match="over 1 s"):
        fit(Path(sys.executable), job, tmp_path / "run")


def test_a_finished_fit_is_reused_until_settings_or_adapter_change(fake: Fake, tmp_path: Path) -> None:
    np.savez(tmp_path / "split.npz", users=[0, 1], items=[0, 0], n_users=2, n_items=2)
    job = Job(str(fake.adapters / "fake.py"), "pop", str(tmp_path / "split.npz"), {}, 1)
    python, run = Path(sys.executable), tmp_path / "run"
    first = fit(python, job, run)
    assert fit(python, job, run) == first
    other = fit(python, Job(job.adapter, "pop", job.split, {"sign": 2}, 1), run)
    assert other["epochs"] != first["epochs"]  # with other times
    fake.write("fake", "def fit(run):\n    raise ValueError\n")
    with pytest.raises(UserError, match="exited with status 1: ValueError"):
        fit(python, job, run)


def test_recommended_items_are_the_best_unseen_ones() -> None:
    rng = np.random.default_rng(5)
    scores = rng.random((7, 20)).astype(np.float32)
    users, items = np.nonzero(rng.random((7, 20)) < 0.3)
    found = top_items(lambda block: scores[block], users, items, 7)
    for user in range(7):
        seen = set(items[users == user])
        best = [item for item in np.argsort(-scores[user]) if item not in seen][:10]
        assert found[user].tolist() == best


def test_each_model_of_a_peer_has_an_adapter_and_enough_settings_to_try() -> None:
    for name, model in MODELS.items():
        tried = model.candidates(8, 1)
        assert tried[0] == dict(model.settings)
        assert len(tried) == 9
        assert len({json.dumps(each, sort_keys=True) for each in tried[1:]}) == 8
        assert model.peer == OURS or program_lines(name) > 5
