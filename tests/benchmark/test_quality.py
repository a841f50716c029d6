"""The quality benchmark: closed forms against brute force, ranks and standard errors, and one real run."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml

import model.run.arguments
from benchmark.quality import command
from benchmark.quality.ablations import leave_out
from benchmark.quality.data import METRICS, Data
from benchmark.quality.report import markdown, measured
from benchmark.quality.rows import ROWS
from benchmark.quality.statistics import difference, estimate, spread
from benchmark.quality_baselines import climbed, ease, ials
from model.evaluation.metrics import RankMeans
from model.network.checkpoint import Run
from model.network.neumf import NeuMF, NeuMFConfig
from workflows.common.errors import UserError

_ROOT = Path(__file__).parents[2]
USERS, ITEMS, NEGATIVES = 24, 40, 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two kinds of users, each consuming the items of their kind in order; the next item is held out."""
    data = tmp_path / "data"
    data.mkdir()
    rng = np.random.default_rng(0)
    train, test = [], []
    for user in range(USERS):
        own = np.arange(user % 2, ITEMS, 2)
        first = rng.integers(0, 10)
        train += [(user, item, 1.0) for item in own[first : first + 8]]
        others = np.setdiff1d(np.arange(ITEMS), own[first : first + 9])
        series = [own[first + 8], *rng.choice(others, NEGATIVES, replace=False)]
        test += [(user, item, float(number == 0)) for number, item in enumerate(series)]
    names = ["user", "item", "label"]
    chunks = {}
    for name, rows in (("train", train), ("test", test)):
        columns = zip(*rows, strict=True)
        pq.write_table(pa.table(dict(zip(names, columns, strict=True))), data / f"{name}.parquet")
        chunks[name] = [{"type": "parquet", "features": names, "files": [f"{name}.parquet"]}]
    spec = {
        "channel_spec": {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"]},
        "feature_spec": {"user": {"cardinality": USERS}, "item": {"cardinality": ITEMS}, "label": {}},
        "metadata": {"time_ordered": True, "test_samples_per_series": 1 + NEGATIVES},
        "source_spec": chunks,
    }
    (data / "feature_spec.yaml").write_text(yaml.safe_dump(spec))
    return data


def parsed(*flags: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([str(flag) for flag in flags])


def histories(n_users: int = 30, n_items: int = 8) -> np.ndarray:
    rng = np.random.default_rng(3)
    return (rng.random((n_users, n_items)) < 0.4) * rng.uniform(0.5, 1.5, (n_users, n_items))


def test_item_weights_are_ridge_regressions_on_all_other_items() -> None:
    x, l2 = histories(), 2.5
    found = ease(x.T @ x, l2)
    for item in range(x.shape[1]):
        others = np.delete(np.arange(x.shape[1]), item)
        left = x[:, others].T @ x[:, others] + l2 * np.eye(len(others))
        np.testing.assert_allclose(found[others, item], np.linalg.solve(left, x[:, others].T @ x[:, item]))
        assert found[item, item] == 0.0


def test_alternating_least_squares_converges_to_zero_gradient() -> None:
    weights, l2, unobserved = histories(), 0.05, 0.3
    users, items = (torch.tensor(each, requires_grad=True) for each in ials(weights, 3, l2, unobserved, 3000, seed=1))
    w = torch.from_numpy(weights)
    scores = users @ items.T
    by_user, by_item = w.sum(1) + unobserved * w.shape[1], w.sum(0) + unobserved * w.shape[0]
    loss = (w * (scores - 1.0) ** 2).sum() + unobserved * (scores**2).sum()
    loss += l2 * ((by_user[:, None] * users**2).sum() + (by_item[:, None] * items**2).sum())
    loss.backward()
    for each in (users, items):
        assert float(each.detach().abs().max()) > 0.1
        assert each.grad is not None
        assert float(each.grad.abs().max()) < 1e-5


def test_hill_climbing_finds_the_best_settings() -> None:
    def quality(settings: dict[str, float]) -> float:
        return -abs(math.log(settings["l2"] / 8.0)) - abs(math.log(settings["factors"] / 16.0))

    best = climbed({"l2": 1.0, "factors": 64.0, "recency": 0.5}, quality)
    assert best == {"l2": pytest.approx(8.0), "factors": 16.0, "recency": 0.5}


def test_hill_climbing_stops_at_the_largest_number_of_factors() -> None:
    best = climbed({"l2": 1.0, "factors": 64.0}, lambda settings: settings["factors"] - abs(settings["l2"] - 1.0))
    assert best == {"l2": 1.0, "factors": 256.0}


def test_standard_errors_cover_users_and_seeds() -> None:
    hits = np.array([[0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 0.0]])
    by_user, seeds = np.array([0.0, 1.0, 1.0, 0.5]), np.std([0.75, 0.5], ddof=1)
    found = estimate(hits)
    assert found.mean == 0.625
    assert found.standard_error == pytest.approx(math.sqrt(by_user.var(ddof=1) / 4 + seeds**2 / 2))
    assert spread(hits) == pytest.approx(seeds)
    assert spread(hits[:1]) == 0.0
    # Users are paired between models: a constant difference has no error.
    assert difference(hits[:1] + 0.25, hits[:1]).standard_error == 0.0
    assert difference(hits, hits[:1]).mean == pytest.approx(-0.125)


def test_ranks_and_histories_match_a_plain_count(folder: Path) -> None:
    data = Data.load(folder)
    scores = torch.randint(0, 12, (USERS, ITEMS), generator=torch.Generator().manual_seed(0)).float()  # with ties
    ranks = data.ranks(lambda users: scores[users])
    train, test = (pq.read_table(folder / f"{name}.parquet").to_pandas() for name in ("train", "test"))
    full, sampled = [], []
    for user, series in test.groupby("user")["item"]:
        positive, *drawn = series
        others = set(range(ITEMS)) - set(train.item[train.user == user]) - {positive}
        full.append(sum(bool(scores[user, item] >= scores[user, positive]) for item in others))
        sampled.append(sum(bool(scores[user, item] >= scores[user, positive]) for item in drawn))
    assert (ranks.full.tolist(), ranks.sampled.tolist()) == (full, sampled)
    assert (ranks.others == ITEMS - 8 - 1).all()
    metrics = ranks.metrics()
    for way, found in (("sampled", sampled), ("full", full)):
        means = RankMeans.from_counts(np.bincount(found).tolist(), 10)
        assert metrics[f"{way} hr@10"].mean() == pytest.approx(means.hit_rate)
        assert metrics[f"{way} ndcg@10"].mean() == pytest.approx(means.ndcg)
    # Without the last item each user has seven, weighted 1, 1/2 … 1/7 from the last one back, normalised to a sum of 7.
    held_out = data.validation_items(1)
    assert held_out.tolist() == train.groupby("user").item.last().tolist()
    weights = data.histories(1.0, held_out)
    expected = 1.0 / np.arange(7, 0, -1)
    items = train.item[train.user == 5].to_numpy()[:-1]
    np.testing.assert_allclose(weights[5, items], expected * 7 / expected.sum(), rtol=1e-6)
    assert (weights > 0).sum() == 7 * USERS


def test_parts_can_be_left_out_of_the_sum_of_members() -> None:
    counts, g = torch.tensor([3, 0, 7, 1, 2]), torch.Generator().manual_seed(0)
    popularity = (counts + 1.0).log()
    users, items = torch.randn(4, 6, generator=g), torch.randn(5, 6, generator=g)
    users[:, 5] = 1.0  # the second member is the first trained one: its last column is the item bias
    members = [{"kind": "item-item", "width": 4, "weight": 0.5}, {"kind": "softmax", "width": 2, "weight": 3.0}]
    recipe = {"members": members, "by_popularity": -0.7}
    for part, weights in (("popularity", (0.5, 3.0)), ("weights", (1.0, 1.0))):
        network = NeuMF(NeuMFConfig(n_users=4, n_items=5, factors=6, arch="gmf"), g)
        with torch.no_grad():
            network.mf_item_embed.weight.copy_(items * torch.tensor([0.5] * 4 + [3.0] * 2))
            network.mf_item_embed.weight[:, 5] += -0.7 * popularity
        leave_out(part, Run(Path(), network, {"recipe": recipe}), counts)
        expected = weights[0] * users[:, :4] @ items[:, :4].T + weights[1] * users[:, 4:] @ items[:, 4:].T
        torch.testing.assert_close(users @ network.mf_item_embed.weight.detach().T, expected)


def test_every_training_run_is_a_valid_command() -> None:
    for row in ROWS.values():
        if row.kind != "baseline":
            flags = row.program[1 + row.program.index("train.py") if "train.py" in row.program else 2 :]
            args = model.run.arguments.parse_args([*flags, "--seed", "1"])
            assert model.run.arguments.run_config(args).train.validation == (
                "none" if row is ROWS["neumf-on-test"] else "leave-one-out"
            )


@pytest.mark.usefixtures("forked")
def test_as_a_process(folder: Path, tmp_path: Path) -> None:
    names = ["ease-recency", "recipe", "no-weights"]
    argv = ["--data", folder, "--seeds", "1", "--output", tmp_path / "out", "--rows", *names]
    run = [sys.executable, "-m", "benchmark", "quality", *argv]
    done = subprocess.run(run, cwd=_ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    target, runs = tmp_path / "out" / "quality.json", tmp_path / "out" / "runs"
    result = json.loads(target.read_text())
    rows = {each["row"]: each for each in result["results"]}
    assert list(rows) == names
    assert result["best_baseline"] == "ease-recency"
    assert result["data"] == {"users": USERS, "negatives": NEGATIVES}
    # Ranks match train.py's own, and two rows share one run.
    recipe, metrics = rows["recipe"], json.loads((runs / "recipe-1" / "metrics.json").read_text())
    for name in METRICS:
        assert recipe["metrics"][f"sampled {name}"]["mean"] == pytest.approx(metrics[name])
    assert not (runs / "no-weights-1").exists()
    assert recipe["commands"] == rows["no-weights"]["commands"]
    assert recipe["metrics"]["full hr@10"]["over"].keys() == {"ease-recency"}
    assert rows["no-weights"]["metrics"]["full hr@10"]["over"].keys() == {"ease-recency", "recipe"}
    # The tables, and the recipe first among the figures.
    text = markdown(result)
    assert f"| `recipe` | {recipe['metrics']['sampled hr@10']['mean']:.3f} ±" in text
    assert "`ease-recency`: expected NDCG@10" in text
    assert measured(result)[0].what == "recipe: HR@10"
    assert measured(result)[0].values == recipe["metrics"]["sampled hr@10"]["runs"]
    # Existing runs are reused, and the plot needs only the JSON.
    written = (runs / "recipe-1.json").stat().st_mtime_ns
    command.main(parsed(*argv[:-3], "recipe"))
    assert (runs / "recipe-1.json").stat().st_mtime_ns == written
    drawn = target.with_suffix(".png").read_bytes()
    target.with_suffix(".png").unlink()
    command.main(parsed("--draw", target))
    assert target.with_suffix(".png").read_bytes() == drawn


@pytest.mark.parametrize("seeds", [["1", "1"], ["-1"]])
def test_invalid_seeds_are_reported_before_anything_runs(folder: Path, tmp_path: Path, seeds: list[str]) -> None:
    with pytest.raises(UserError, match="--seeds"):
        command.main(parsed("--data", folder, "--output", tmp_path / "out", "--seeds", *seeds))
    assert not (tmp_path / "out").exists()


def test_a_folder_without_test_series_is_rejected(folder: Path, tmp_path: Path) -> None:
    spec = yaml.safe_load((folder / "feature_spec.yaml").read_text())
    del spec["source_spec"]["test"]
    (folder / "feature_spec.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(UserError, match="test series"):
        command.main(parsed("--data", folder, "--output", tmp_path / "out"))
    assert not (tmp_path / "out").exists()
