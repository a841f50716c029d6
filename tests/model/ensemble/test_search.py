"""Ensembles: weights against brute force, and whole runs on small folders, including interrupted ones."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import model.export.__main__
import train
from model.data.dataset import Rows
from model.distributed.process_group import ProcessGroup
from model.ensemble import ease
from model.ensemble.members import Factors, MemberConfig, MemberTrainer
from model.ensemble.search import _START, Ensemble, ValidationRanking, _searched
from model.network.checkpoint import load_factors, load_run, load_weights
from model.network.neumf import NeuMF
from model.recommend.recommender import Recommender
from model.training.config import TrainConfig
from model.training.threads import torch_threads
from model.training.trainer import DivergedError
from workflows.common.errors import UserError
from workflows.common.progress import Stage

pytestmark = pytest.mark.usefixtures("one_thread", "forked")

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[3]
N_USERS, N_ITEMS = 60, 40
SHAPE = ["--arch", "gmf", "-f", "9"]
TRAINING = ["-e", "2", "-b", "400", "-l", "0.05", "-k", "3", "--device", "cpu", "-s", "1"]
FLAGS = [*SHAPE, *TRAINING, "--validation", "leave-one-out"]
MEMBERS = ["--members", "softmax", "bce-all", "item-item"]
MEASURED = {"train_throughput", "eval_throughput", "peak_rss_mib"}
Row = tuple[int, int, float]
_NUMBERS = itertools.count()


def rows_of_users() -> tuple[list[list[Row]], list[Row]]:
    """Train positives in three parts, where users prefer every third item and popular ones; series of 7 test items."""
    rng = np.random.default_rng(0)
    parts: list[list[Row]] = [[], [], []]
    series: list[Row] = []
    for user in range(N_USERS):
        likes = np.where(np.arange(N_ITEMS) % 3 == user % 3, 6.0, 1.0) / (1 + np.arange(N_ITEMS) / 10)
        items = rng.choice(N_ITEMS, N_ITEMS, replace=False, p=likes / likes.sum()).tolist()
        own = 3 + user % 9
        parts[0 if user < 30 else 1 + user % 2] += [(user, item, 1.0) for item in items[:own]]
        others = rng.permutation(items[own + 1 :]).tolist()[:6]
        series += [(user, item, float(not place)) for place, item in enumerate([items[own], *others])]
    return parts, series


@pytest.fixture
def data(write_folder: Callable[..., Path]) -> Path:
    parts, series = rows_of_users()
    return write_folder(parts, N_USERS, N_ITEMS, [series], 7)


def trained(data: Path, name: str, *flags: str) -> Path:
    output = data.parent / name
    train.main(["--data", str(data), "--output", str(output), *FLAGS, *flags])
    return output


def metrics_of(run: Path) -> dict[str, Any]:
    metrics = json.loads((run / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if name not in MEASURED}


def recipe_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text())["recipe"]


def tried(run: Path) -> list[str]:
    """Names of the members evaluated on the validation split, in order."""
    lines = [json.loads(line.removeprefix("DLLL ")) for line in (run / "log.json").read_text().splitlines()]
    return [line["data"]["member"] for line in lines if "member" in line.get("data", {})]


# Weights and quality of known scores.


def held_out_users(n_users: int = 40, n_items: int = 15, seed: int = 0) -> tuple[ValidationRanking, torch.Generator]:
    g = torch.Generator().manual_seed(seed)
    items = torch.randint(n_items, (n_users,), generator=g)
    seen = torch.rand(n_users, n_items, generator=g) < 0.3
    seen[torch.arange(n_users), items] = False
    return ValidationRanking(torch.arange(n_users), items, seen, drawn=4, k=3), g


def test_quality_is_the_mean_over_all_draws_of_unseen_items() -> None:
    users, g = held_out_users(12, 9)
    scores = torch.randint(4, (12, 9), generator=g).float()  # with ties
    scores[3, users.items[3]] = math.nan  # never recommended
    scores[4, (users.items[4] + 1) % 9] = math.nan
    hits, gains = [], []
    for user, own in enumerate(users.items.tolist()):
        others = [item for item in range(9) if item != own and not users.seen[user, item]]
        draws = list(itertools.combinations(others, min(4, len(others))))
        ranks = [sum(not scores[user, item] < scores[user, own] for item in draw) for draw in draws]
        hits.append(np.mean([rank < 3 for rank in ranks]))
        gains.append(np.mean([1 / math.log2(rank + 2) if rank < 3 else 0.0 for rank in ranks]))
    assert users.quality(scores) == pytest.approx((np.mean(hits), np.mean(gains)))


def likelihood(users: ValidationRanking, features: list[Tensor], weights: Tensor) -> Tensor:
    total = sum(weight * feature.double() for weight, feature in zip(weights, features, strict=True))
    assert isinstance(total, Tensor)
    chances = torch.log_softmax(total.masked_fill(users.seen, -torch.inf), dim=1)
    return chances.gather(1, users.items[:, None]).mean()


def test_weights_maximise_the_likelihood() -> None:
    users, g = held_out_users(700)  # more than one chunk
    features = [torch.randn(700, 15, generator=g) * scale for scale in (1.0, 100.0, 0.01)]
    features[0][torch.arange(700), users.items] += 1.0
    weights = torch.tensor(users.weights(features), dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(likelihood(users, features, weights), weights)
    scales = torch.tensor([1.0, 100.0, 0.01])
    assert (gradient / scales).abs().max() < 1e-4
    best = likelihood(users, features, weights)
    for change in (1.1, 0.9):  # the maximum, not another stationary point
        assert likelihood(users, features, weights * change) < best


def test_few_passes_find_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where rounding limits the likelihood: large scores that are nearly equal."""
    users, g = held_out_users(600)
    base, passes, fit = 50.0 + torch.randn(600, 15, generator=g), [], ValidationRanking._fit
    monkeypatch.setattr(ValidationRanking, "_fit", lambda *args: passes.append(1) or fit(*args))
    users.weights([base, base + 0.01 * torch.randn(600, 15, generator=g), 70.0 + torch.randn(600, 15, generator=g)])
    assert len(passes) < 60


def test_weights_that_generated_the_choices_are_recovered() -> None:
    g, n_users = torch.Generator().manual_seed(1), 20_000
    features = [torch.randn(n_users, 8, generator=g) * scale for scale in (2.0, 0.5)]
    known = [0.7, -1.5]
    seen = torch.rand(n_users, 8, generator=g) < 0.2
    seen[:, 0] = False
    scores = sum(weight * feature for weight, feature in zip(known, features, strict=True))
    assert isinstance(scores, Tensor)
    items = scores.masked_fill(seen, -torch.inf).softmax(1).multinomial(1, generator=g).squeeze(1)
    users = ValidationRanking(torch.arange(n_users), items, seen, drawn=4, k=3)
    assert users.weights(features) == pytest.approx(known, abs=0.1)


def test_weights_are_finite_for_uninformative_and_for_perfect_features() -> None:
    users, g = held_out_users()
    same = torch.full((40, 15), 3.0)
    certain = torch.zeros(40, 15)
    certain[torch.arange(40), users.items] = 1.0
    for features in ([same, torch.randn(40, 15, generator=g)], [certain], [certain, same, certain]):
        scales = [float(feature.std()) or 1.0 for feature in features]
        found = [weight * scale for weight, scale in zip(users.weights(features), scales, strict=True)]
        assert max(map(abs, found)) < 1e3  # finite, and none dominates the others
    assert users.weights([certain])[0] > 5.0
    assert users.quality(users.weights([certain])[0] * certain)[0] == 1.0


def members_of(rows: Rows, folder: Path, validation_items: Tensor | None = None, **change: Any) -> MemberTrainer:
    settings = {"epochs": 2, "batch_size": 400, "learning_rate": 0.05, "loader": "memory", "seed": 1, **change}
    config = TrainConfig(**settings)
    return MemberTrainer(rows, config, ProcessGroup(CPU), validation_items, lambda: folder, show_progress=False)


def last_of_users(rows: list[Row], leave: int = 5) -> Tensor:
    """The last train item of each user except the first `leave`."""
    validation_items = torch.full((N_USERS,), -1, dtype=torch.int32)
    for user, item, _ in rows:
        validation_items[user] = item if user >= leave else -1
    return validation_items


def test_held_out_users_and_their_seen_items(
    train_rows: Callable[..., Rows], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, _ = rows_of_users()
    rows = [row for part in parts for row in part]
    validation_items = last_of_users(rows)
    members = members_of(train_rows(parts, N_USERS, N_ITEMS), tmp_path / "stages", validation_items)
    found = ValidationRanking.from_rows(members, validation_items, 6, 3, seed=0)
    assert found.users.tolist() == list(range(5, N_USERS))
    assert found.items.tolist() == validation_items[5:].tolist()
    expected = torch.zeros(N_USERS, N_ITEMS, dtype=torch.bool)
    for user, item, _ in rows:
        expected[user, item] = item != validation_items[user]
    assert torch.equal(found.seen, expected[5:])
    # Above the limit, users are sampled.
    monkeypatch.setattr("model.ensemble.search._VALIDATION_PAIRS", 20 * N_ITEMS + 1)
    draws = [ValidationRanking.from_rows(members, validation_items, 6, 3, seed) for seed in (0, 0, 1)]
    assert [len(draw.users) for draw in draws] == [20] * 3
    assert draws[0].users.tolist() == draws[1].users.tolist() != draws[2].users.tolist()
    assert torch.equal(draws[2].seen, expected[draws[2].users])


def test_members_with_equal_settings_are_trained_once(train_rows: Callable[..., Rows], tmp_path: Path) -> None:
    parts, _ = rows_of_users()
    rows, folder = train_rows(parts, N_USERS, N_ITEMS), tmp_path / "stages"
    choices = [MemberConfig(kind, 5, 4, penalty, 0.0) for kind, penalty in (("softmax", 0.5), ("item-item", 4.0))]
    first = members_of(rows, folder).factors(choices)
    files = sorted(folder.iterdir())
    assert len(files) == 2
    again = members_of(rows, folder)
    for known, factors in zip(again.factors(choices), first, strict=True):
        assert torch.equal(known.users, factors.users)
        assert torch.equal(known.items, factors.items)
    assert again.samples == 0
    for path in files:  # as left by a killed run or another program
        path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(again.factors(choices[:1])[0].users, first[0].users)
    assert again.samples == 2 * sum(map(len, parts))
    held_out = last_of_users([row for part in parts for row in part])
    for others in (members_of(rows, folder, schedule="cosine"), members_of(rows, folder, held_out)):
        assert not torch.equal(others.factors(choices[:1])[0].users, first[0].users)
    assert len(list(folder.iterdir())) == 4
    assert load_factors(files[1], N_USERS, N_ITEMS, 5) is None


def test_members_trained_at_the_same_time_are_those_trained_alone(
    train_rows: Callable[..., Rows], tmp_path: Path
) -> None:
    parts, _ = rows_of_users()
    rows = train_rows(parts, N_USERS, N_ITEMS)
    kinds = ["softmax", "bce-all", "item-item", "softmax", "bce-all"]
    choices = [MemberConfig(kind, seed, 4, 0.5, 0.5) for seed, kind in enumerate(kinds)]
    alone = [members_of(rows, tmp_path / "alone").factors([choice])[0] for choice in choices]
    with torch_threads(3):
        members = members_of(rows, tmp_path / "together")
        together = members.factors(choices)
        assert torch.get_num_threads() == 3
    for choice, own, other in zip(choices, alone, together, strict=True):
        tolerance = 1e-4 if choice.kind == "item-item" else 0.0  # which uses all threads, and sums depend on them
        torch.testing.assert_close(own.users, other.users, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(own.items, other.items, rtol=tolerance, atol=tolerance)
    assert members.samples == 4 * 2 * sum(map(len, parts))  # item-item has no epochs
    assert members.seconds > 0.0
    assert len(list((tmp_path / "together").iterdir())) == 5


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The samples of each step of a stage."""
    found, advance = list[float](), Stage.advance
    monkeypatch.setattr(Stage, "advance", lambda stage, amount: found.append(amount) or advance(stage, amount))
    return found


def test_a_member_that_diverges_ends_the_others(
    train_rows: Callable[..., Rows], tmp_path: Path, steps: list[float]
) -> None:
    parts, _ = rows_of_users()
    members = members_of(train_rows(parts, N_USERS, N_ITEMS), tmp_path / "stages", epochs=3000)
    with torch_threads(2), pytest.raises(DivergedError):
        members.factors([MemberConfig("softmax", seed, 4, penalty, 0.0) for seed, penalty in enumerate((0.5, 1e300))])
    assert not (tmp_path / "stages").exists()
    assert len(steps) < 3000


def test_ctrl_c_ends_all_members(
    train_rows: Callable[..., Rows], tmp_path: Path, steps: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, _ = rows_of_users()
    members = members_of(train_rows(parts, N_USERS, N_ITEMS), tmp_path / "stages", epochs=3000)
    monkeypatch.setattr(Stage, "note", lambda *_: os.kill(os.getpid(), signal.SIGINT))  # after an epoch
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with torch_threads(2), pytest.raises(KeyboardInterrupt):
            members.factors([MemberConfig("softmax", seed, 4, 0.5, 0.0) for seed in range(3)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(steps) < 3000


class KnownMembers:
    """Stub of `MemberTrainer`: the quality of a choice is a function of its penalty and recency."""

    def __init__(self, best: tuple[float, float]) -> None:
        self.best, self.asked = best, list[MemberConfig]()

    def scores(self, choices: list[MemberConfig], users: Tensor) -> list[MemberConfig]:
        self.asked += choices
        return choices

    def quality(self, choice: Any) -> tuple[float, float]:
        off = abs(math.log2(choice.penalty / self.best[0])) + 4 * abs(choice.recency - self.best[1])
        return 1.0 / (1.0 + off), 0.0


@pytest.mark.parametrize("time_ordered", [True, False])
@pytest.mark.parametrize("best", [(0.5, 0.5), (4.0, 0.0), (0.125, 1.0)])
def test_the_search_continues_while_quality_improves(best: tuple[float, float], time_ordered: bool) -> None:
    members: Any = KnownMembers(best)
    users: Any = type("Users", (), {"users": None, "quality": members.quality})()
    told: list[str] = []
    first = MemberConfig("softmax", 1, 4, 0.5, 0.5 if time_ordered else 0.0)
    found = _searched(members, users, first, time_ordered, lambda name, _: told.append(name))
    assert found.penalty == pytest.approx(best[0])
    assert found.recency == (best[1] if time_ordered else 0.0)
    assert len(members.asked) == len(set(members.asked)) == len(told)  # nothing is trained twice
    assert {choice.recency for choice in members.asked} == ({0.0, 0.5, 1.0} if time_ordered else {0.0})


@pytest.mark.parametrize(("steps", "asked"), [(0.4, [0.5, 1.0, 0.25, 0.5 * 2.0**0.4]), (0.2, [0.5, 1.0, 0.25])])
def test_the_top_of_a_parabola_is_found_with_few_members(steps: float, asked: list[float]) -> None:
    """It is not tried where it would be hardly better."""

    class Parabola(KnownMembers):
        def quality(self, choice: Any) -> tuple[float, float]:
            return 1.0 - 0.01 * math.log2(choice.penalty / self.best[0]) ** 2, 0.5

    members: Any = Parabola((0.5 * 2.0**steps, 0.0))
    users: Any = type("Users", (), {"users": None, "quality": members.quality})()
    found = _searched(members, users, MemberConfig("softmax", 1, 4, 0.5, 0.0), False, lambda *_: None)
    assert found.penalty == pytest.approx(asked[-1] if len(asked) > 3 else 0.5)
    assert [choice.penalty for choice in members.asked] == pytest.approx(asked)


def test_the_second_loss_starts_where_the_first_ended(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[MemberConfig] = []

    def searched(_: Any, __: Any, first: MemberConfig, *___: Any) -> MemberConfig:
        starts.append(first)
        return replace(first, penalty=first.penalty * 3.0)

    monkeypatch.setattr("model.ensemble.search._searched", searched)
    recipe = recipe_of(trained(data, "run", *MEMBERS))
    assert [start.kind for start in starts] == MEMBERS[1:]
    assert [start.penalty for start in starts] == pytest.approx([_START["softmax"], 3 * _START["bce-all"], 4.0])
    assert [member["penalty"] for member in recipe["members"]] == pytest.approx([1.5, 9 * _START["bce-all"], 12.0])


@pytest.mark.parametrize("best", [1e-9, 1e9])
def test_the_search_is_bounded(best: float) -> None:
    members: Any = KnownMembers((best, 0.0))
    users: Any = type("Users", (), {"users": None, "quality": members.quality})()
    found = _searched(members, users, MemberConfig("softmax", 1, 4, 0.5, 0.0), False, lambda *_: None)
    assert 16 <= max(found.penalty / 0.5, 0.5 / found.penalty) < 32
    assert len(members.asked) < 15


@pytest.mark.parametrize("kinds", list(itertools.permutations(["softmax", "bce-all", "item-item"])))
def test_the_fused_model_scores_like_the_sum_of_its_members(
    train_rows: Callable[..., Rows], tmp_path: Path, kinds: tuple[str, ...]
) -> None:
    parts, _ = rows_of_users()
    members = members_of(train_rows(parts, N_USERS, N_ITEMS), tmp_path / "stages")
    choices = [MemberConfig(kind, seed, 3 + seed, 0.5, 0.0) for seed, kind in enumerate(kinds)]
    weights = (0.8, -0.3, 1.7)
    merge_factors = Ensemble(tuple(choices), weights, -0.4, (0.0, 0.0)).merge_factors(members)
    counts = torch.bincount(torch.tensor([item for part in parts for _, item, _ in part]), minlength=N_ITEMS)
    expected = -0.4 * torch.log(counts + 1.0).expand(N_USERS, -1)
    for choice, weight in zip(choices, weights, strict=True):
        own: Factors = members.factors([choice])[0]
        assert ((own.users[:, -1] == 1.0).all()) == (choice.kind != "item-item")
        expected = expected + weight * (own.users @ own.items.T)
    pairs = torch.cartesian_prod(torch.arange(N_USERS), torch.arange(N_ITEMS)).T
    torch.testing.assert_close(merge_factors(*pairs).view(N_USERS, N_ITEMS), expected, rtol=1e-4, atol=1e-5)
    assert (merge_factors.config.arch, merge_factors.config.factors) == ("gmf", 3 + 4 + 5)


# Whole runs.


@pytest.mark.parametrize("loader", ["merlin", "memory"])
@pytest.mark.parametrize("time_ordered", [True, False])
def test_a_run_is_reproducible_byte_for_byte(
    write_folder: Callable[..., Path], loader: str, time_ordered: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, series = rows_of_users()
    data = write_folder(parts, N_USERS, N_ITEMS, [series], 7, time_ordered=time_ordered)
    first, second = (trained(data, name, *MEMBERS, "--loader", loader) for name in ("first", "second"))
    for name in ("model.safetensors", "README.md", "config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    assert metrics_of(first) == metrics_of(second)
    assert {path.name for path in first.iterdir()} == {
        "README.md", "config.json", "config.yaml", "log.json", "metrics.json", "model.safetensors",
    }  # fmt: skip
    metrics, recipe = metrics_of(first), recipe_of(first)
    assert metrics["selected_on"] == "validation"
    assert metrics["hr@3"] > metrics["popularity_hr@3"]
    assert [member["kind"] for member in recipe["members"]] == MEMBERS[1:]
    assert [member["width"] for member in recipe["members"]] == [3, 3, 3]
    assert len({member["seed"] for member in recipe["members"]}) == 3
    names = tried(first)
    assert names[-1] == "all together"
    assert {name.rsplit("-", 1)[1] for name in names[:-1]} == ({"0", "0.5", "1"} if time_ordered else {"0"})
    assert f"expected HR@3 {metrics['validation_hr@3']:.4f}" in capsys.readouterr().out


def test_other_seeds_give_other_runs(data: Path) -> None:
    runs = [trained(data, f"run-{seed}", "--members", "softmax", "-s", str(seed)) for seed in (1, 2)]
    assert (runs[0] / "model.safetensors").read_bytes() != (runs[1] / "model.safetensors").read_bytes()


def killed(run: Path, pattern: str, n_files: int, *flags: str) -> None:
    """Start a run and kill it once `n_files` of its members are on disk."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "train.py", *flags]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        while len(list((run / "stages").glob(pattern))) < n_files:
            assert process.poll() is None
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert not (run / "metrics.json").exists()
    assert json.loads((run / "stages/data.json").read_text())["trained_users"] == "all"


def test_a_killed_run_resumes_to_the_same_result(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--members", "softmax", "item-item", "-e", "8"]
    whole, run = trained(data, "whole", *flags), data.parent / "run"
    killed(run, "validation-*", 5, "--data", str(data), "--output", str(run), *FLAGS, *flags)
    killed(run, "all-*", 1, "--resume", str(run))
    for _ in range(2):  # the second time it is already finished
        capsys.readouterr()
        train.main(["--resume", str(run)])
        assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
        assert metrics_of(run) == metrics_of(whole)
        assert tried(run) == tried(whole)
        assert not (run / "stages").exists()
        (run / "stages").mkdir()  # as if killed between its last two steps
    assert capsys.readouterr().out == f"{run} is finished\n"


def test_an_ensemble_run_is_an_ordinary_run(data: Path) -> None:
    checkpoints = data.parent / "checkpoints"
    run = trained(data, "run", *MEMBERS, "--checkpoint_dir", str(checkpoints))
    network = load_run(run, CPU).model
    pairs = torch.cartesian_prod(torch.arange(N_USERS), torch.arange(N_ITEMS)).T
    expected = network(*pairs).detach()
    tested = data.parent / "tested"
    for checkpoint in (run / "model.safetensors", checkpoints / "model.pth"):
        flags = ["--config", str(run / "config.yaml"), "--output", str(tested), "--overwrite", "--mode", "test"]
        train.main([*flags, "--load_checkpoint_path", str(checkpoint)])
        for name in ("hr@3", "ndcg@3", "mrr", "coverage@3"):
            assert metrics_of(tested)[name] == metrics_of(run)[name]
    for name in ("nvidia", "safetensors", "onnx", "torch-export", "embeddings"):
        model.export.__main__.main(["--run", str(run), "--format", name])
    for name in ("model.pth", "neumf.safetensors"):
        again = NeuMF(network.config)
        load_weights(run / name, again)
        assert torch.equal(again(*pairs), expected)
    users, items = (column.numpy() for column in pairs)
    (found,) = onnxruntime.InferenceSession(run / "model.onnx").run(["logits"], {"users": users, "items": items})
    torch.testing.assert_close(torch.from_numpy(found), expected)
    torch.testing.assert_close(torch.export.load(run / "model.pt2").module()(*pairs), expected)
    vectors = [np.stack(pd.read_parquet(run / f"embeddings/{side}.parquet")["gmf"]) for side in ("users", "items")]
    np.testing.assert_allclose(vectors[0] @ vectors[1].T, expected.view(N_USERS, N_ITEMS), rtol=1e-4, atol=1e-5)
    seen = {(user, item) for part in rows_of_users()[0] for user, item, _ in part}
    seen |= {(user, item) for user, item, label in rows_of_users()[1] if label}
    for user, ranking in enumerate(Recommender.load(run, device="cpu").recommend(list(range(N_USERS)), k=4)):
        own = expected.view(N_USERS, N_ITEMS)[user]
        left = [item for item in own.argsort(descending=True).tolist() if (user, item) not in seen]
        assert list(ranking.items) == left[:4]


def test_flags_of_an_ensemble_run(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exact = trained(data, "exact", *MEMBERS)
    mixed = trained(data, "mixed", *MEMBERS, "--precision", "bf16")
    assert (exact / "model.safetensors").read_bytes() != (mixed / "model.safetensors").read_bytes()
    assert metrics_of(mixed)["validation_hr@3"] == pytest.approx(metrics_of(exact)["validation_hr@3"], abs=0.05)
    capsys.readouterr()
    run = trained(
        data, "amp", *MEMBERS, "--amp", "--schedule", "cosine", "--eval", "full", "--without", "progress", "log"
    )
    assert {path.name for path in run.iterdir()} == {
        "README.md", "config.json", "config.yaml", "metrics.json", "model.safetensors",
    }  # fmt: skip
    assert len(capsys.readouterr().out.splitlines()) == 2  # HR and NDCG, and the location of the results


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 5), max_size=7), min_size=2, max_size=6), st.booleans())
@example([[0, 0, 0, 1]], False)  # an item with more positives than there are users
@example([[0, 1], [0, 1]], True)  # indistinguishable users
def test_runs_on_tiny_data_finish(write_folder: Callable[..., Path], users: list[list[int]], order: bool) -> None:
    rows = [(user, item, 1.0) for user, items in enumerate(users) for item in items]
    series = [(user, item, float(not item)) for user in range(len(users)) for item in range(3)]
    name = f"folder{next(_NUMBERS)}"
    if not any(1 < len(set(items)) < 6 for items in users):
        return
    data = write_folder([rows], len(users), 6, [series], 3, time_ordered=order, name=name)
    run = trained(data, f"{name}-run", *MEMBERS, "-e", "1", "-k", "1")
    weights = load_run(run, CPU).model.state_dict().values()
    assert all(torch.isfinite(weight).all() for weight in weights)


def test_a_validation_split_suffices_without_test_rows(data: Path) -> None:
    spec = yaml.safe_load((data / "feature_spec.yaml").read_text())
    del spec["source_spec"]["test"]
    (data / "feature_spec.yaml").write_text(yaml.safe_dump(spec))
    metrics = metrics_of(trained(data, "run", *MEMBERS))
    assert metrics["hr@3"] is None
    assert 0 < metrics["validation_hr@3"] < 1


def test_an_item_item_member_is_skipped_for_too_many_items(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ease, "MAX_ITEMS", N_ITEMS - 1)
    run = trained(data, "run", "--members", "softmax", "item-item", "softmax")
    assert "no item-item member: there are 40 items, more than 39" in capsys.readouterr().out
    assert [(member["kind"], member["width"]) for member in recipe_of(run)["members"]] == [
        ("softmax", 5),
        ("softmax", 4),
    ]
    monkeypatch.setattr(ease, "MAX_ITEMS", N_ITEMS)
    run = trained(data, "other", "--members", "softmax", "item-item", "softmax")
    assert [member["width"] for member in recipe_of(run)["members"]] == [3, 3, 3]


WORLDS = """
import json
from pathlib import Path
from model.training.config import TrainConfig
from model.data.dataset import open_train
from model.ensemble.members import MemberConfig, MemberTrainer
from preprocessing.spec.feature_spec import read_feature_spec
folder = Path({folder!r})
rows = open_train(folder, read_feature_spec(folder), world.device)
config = TrainConfig(epochs=2, batch_size=400, learning_rate=0.05, loader={loader!r}, seed=1)
for again in range(2):
    disk = folder.parent / f"disk-{{world.rank}}"
    members = MemberTrainer(rows, config, world, None, lambda: disk, show_progress=False)
    for kind in ("softmax", "item-item"):
        [own] = members.factors([MemberConfig(kind, 5, 4, 0.5, 0.5)])
        print(json.dumps([members.samples, (own.users @ own.items.T).double().sum(1).tolist()]))
"""


def test_ranks_agree_without_a_shared_disk(data: Path, in_processes: Callable[..., list[list[str]]]) -> None:
    body = WORLDS.format(folder=str(data), loader="merlin")
    first, second = ([json.loads(line) for line in lines] for lines in in_processes(2, body))
    assert first == second  # bit-identical
    softmax, item_item, *again = first
    assert [samples for samples, _ in first] == [softmax[0], softmax[0], 0, 0]
    assert softmax[0] == 2 * sum(map(len, rows_of_users()[0]))
    assert [scores for _, scores in again] == [softmax[1], item_item[1]]


def test_several_processes_train_one_run(data: Path) -> None:
    members = ["--members", "softmax", "item-item"]
    alone, both = trained(data, "alone", *members, "--loader", "memory"), data.parent / "both"
    flags = ["--data", str(data), "--output", str(both), *FLAGS, *members, "--loader", "memory", "--gpus", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "train.py", *flags], cwd=ROOT, env=environment, check=True, capture_output=True)
    choices = [
        [(one["kind"], one["penalty"], one["recency"]) for one in recipe_of(run)["members"]] for run in (alone, both)
    ]
    assert choices[0] == choices[1]
    assert metrics_of(both)["validation_hr@3"] == pytest.approx(metrics_of(alone)["validation_hr@3"], abs=1e-3)
    scores = [load_run(run, CPU).model(torch.arange(40), torch.arange(40)) for run in (alone, both)]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--members item-item", "--members should hold softmax or bce-all at least once"),
        ("--members softmax --loss softmax", "--members come with their own losses; leave --loss out"),
        ("--members softmax --validation none", "add --validation leave-one-out"),
        ("--members softmax --weight_decay 0.1", "leave out --weight_decay and --recency"),
        ("--members softmax --arch neumf", "--members needs --arch gmf"),
        ("--members softmax softmax item-item -f 5", "--arch gmf with --factors 6 or more.*got --arch gmf --factors 5"),
        ("--members softmax --patience 2 -t 0.5", "--patience does nothing with --members.*--threshold does nothing"),
        ("--members softmax --load_checkpoint_path x.pth", "omit --load_checkpoint_path"),
        ("--members softmax --pretrained x", "--pretrained needs a network with both branches .*got --arch gmf"),
        ("--members softmax --cuda-graphs", "--cuda-graphs does nothing with --members"),
    ],
)
def test_invalid_member_flags_are_rejected(data: Path, flags: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        trained(data, "run", *flags.split())
    assert not (data.parent / "run").exists()


def test_members_reject_side_features(write_frames: Callable[..., Path]) -> None:
    rows = [row for part in rows_of_users()[0] for row in part]
    frame = pd.DataFrame(rows, columns=["user", "item", "label"]).assign(age=1.5)
    channels = {"user_ch": ["user"], "item_ch": ["item"], "label_ch": ["label"], "user_context": ["age"]}
    folder = write_frames({"train": frame}, channels, {"user": N_USERS, "item": N_ITEMS})
    with pytest.raises(UserError, match="--arch gmf has no MLP for side features"):
        trained(folder, "run", *MEMBERS)
    assert not (folder.parent / "run").exists()
