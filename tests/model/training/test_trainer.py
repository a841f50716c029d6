"""Steps against plain torch, and the training loop."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from model.data.batch import Batch
from model.data.test_set import TestSet
from model.data.train_loader import SamplingConfig, TrainLoader
from model.distributed.process_group import ProcessGroup
from model.evaluation.evaluator import Evaluator, EvaluatorConfig
from model.evaluation.metrics import EvalMetrics
from model.network.neumf import NeuMF, NeuMFConfig
from model.scoring.scorer import Scorer
from model.training.config import TrainConfig
from model.training.step import Step
from model.training.trainer import DivergedError, History, Training
from preprocessing.spec.feature_columns import SideFeature
from workflows.common.progress import stage

CPU = torch.device("cpu")


def network(dropout: float = 0.0) -> NeuMF:
    shape = NeuMFConfig(n_users=20, n_items=30, factors=4, layers=(16, 8), dropout=dropout)
    return NeuMF(shape, torch.Generator().manual_seed(0))


def batches(count: int, size: int = 50) -> list[Batch]:
    g = torch.Generator().manual_seed(1)
    return [
        Batch(
            torch.randint(20, (size,), generator=g),
            torch.randint(30, (size,), generator=g),
            torch.randint(2, (size,), generator=g).float(),
        )
        for _ in range(count)
    ]


def train(config: TrainConfig, data: list[Batch]) -> tuple[NeuMF, list[float]]:
    model = network()
    step = Step(model, config, ProcessGroup(CPU))
    return model, [step(batch, len(batch)).item() for batch in data]


def assert_close(first: nn.Module, second: nn.Module, atol: float) -> None:
    for name, value in first.state_dict().items():
        torch.testing.assert_close(
            value, second.state_dict()[name], rtol=0.0, atol=atol, msg=lambda m, n=name: f"{n}: {m}"
        )


def plain_steps(config: TrainConfig, data: list[Batch]) -> tuple[NeuMF, list[float]]:
    """Adam as in Kingma and Ba 2015, algorithm 1, on the mean loss."""
    model = network()
    first = [torch.zeros_like(p) for p in model.parameters()]
    second = [torch.zeros_like(p) for p in model.parameters()]
    losses = []
    for number, batch in enumerate(data, 1):
        probability = torch.sigmoid(model(batch.users, batch.items))
        chosen = torch.where(batch.labels > 0, probability, 1 - probability)
        loss = -torch.log(chosen).mean()
        losses.append(loss.item() * len(batch))
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        with torch.no_grad():
            for p, g, m, v in zip(model.parameters(), gradients, first, second, strict=True):
                m.mul_(config.beta1).add_((1 - config.beta1) * g)
                v.mul_(config.beta2).add_((1 - config.beta2) * g * g)
                m_hat, v_hat = m / (1 - config.beta1**number), v / (1 - config.beta2**number)
                p.sub_(config.learning_rate * m_hat / (v_hat.sqrt() + config.eps))
    return model, losses


# A larger epsilon keeps Adam from amplifying rounding errors of tiny gradients into full steps.
CONFIG = TrainConfig(eps=1e-3)


def test_steps_match_adam_on_the_mean_loss() -> None:
    data = batches(5)
    (model, losses), (expected, expected_losses) = train(CONFIG, data), plain_steps(CONFIG, data)
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    assert_close(model, expected, atol=1e-5)


@pytest.mark.parametrize("pieces", [2, 3, 7, 50])
def test_accumulated_gradients_match_the_whole_batch(pieces: int) -> None:
    data = batches(5) + batches(1, 13)  # the last batch is not divisible
    whole, losses = train(CONFIG, data)
    parts, losses_of_parts = train(TrainConfig(eps=1e-3, grads_accumulated=pieces), data)
    assert losses_of_parts == pytest.approx(losses, rel=1e-5)
    assert_close(whole, parts, atol=1e-5)


@pytest.mark.parametrize("how", [{"amp": True}, {"precision": "bf16"}, {"precision": "fp16"}])
def test_mixed_precision_on_a_cpu_stays_close(monkeypatch: pytest.MonkeyPatch, how: dict[str, Any]) -> None:
    # As on a processor with fast bfloat16.
    monkeypatch.setattr("workflows.device.torch_device.multiplies_bfloat16", lambda _: True)
    data = batches(5)
    exact, losses = train(CONFIG, data)
    mixed, mixed_losses = train(TrainConfig(eps=1e-3, **how), data)
    assert mixed_losses == pytest.approx(losses, rel=0.02)
    assert mixed_losses != losses  # bfloat16 was used
    for value in mixed.state_dict().values():
        assert value.dtype == torch.float32
    assert_close(exact, mixed, atol=0.02)


def test_amp_uses_float32_where_bfloat16_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workflows.device.torch_device.multiplies_bfloat16", lambda _: False)
    data = batches(5)
    assert train(TrainConfig(eps=1e-3, amp=True), data)[1] == train(CONFIG, data)[1]


class FixedBatches:
    """Stub of `TrainLoader`."""

    def __init__(self, data: list[Batch]) -> None:
        self.data = data

    def steps(self, number: int) -> Iterator[tuple[Batch, int]]:
        yield from ((batch, len(batch)) for batch in self.data)

    def samples_per_epoch(self) -> int:
        return sum(map(len, self.data))


def fit_with(
    scores: list[EvalMetrics] | None, data: list[Batch] | None = None, **config: Any
) -> tuple[History, list[tuple[int, bool]]]:
    """Train with given scores after each epoch (None: no evaluation).

    Returns the history, and for each epoch whether it was the best so far."""
    coming, told = iter(scores or []), []
    settings = TrainConfig(**{"epochs": len(scores or []), **config})
    source: Any = FixedBatches(data or batches(2) + batches(1, 7))
    model = network(0.5)
    training = Training(model, Step(model, settings, ProcessGroup(CPU)))

    def on_epoch(training: Training) -> None:
        history = training.history
        told.append((history.epochs[-1].epoch, history.best_epoch is history.epochs[-1]))

    def evaluation(_: nn.Module) -> EvalMetrics:
        return next(coming)

    with stage("train", 1, "samples", show_progress=False) as progress:
        return training.fit(source, evaluation if scores else None, settings, on_epoch, progress), told


def hits(*rates: float) -> list[EvalMetrics]:
    return [EvalMetrics(rate, 0.0, 0.5, 1.0, 1.0) for rate in rates]


def test_the_earliest_best_epoch_is_kept() -> None:
    report, told = fit_with(hits(0.2, 0.5, 0.5, 0.1, 0.6, 0.6))
    assert told == [(0, True), (1, True), (2, False), (3, False), (4, True), (5, False)]
    assert report.best_epoch.epoch == 4
    assert [epoch.epoch for epoch in report.epochs] == list(range(6))
    assert report.time_to_target_s is None
    assert 0 < report.time_to_best_s <= sum(epoch.train_s for epoch in report.epochs) + 60


def test_a_model_that_never_hits_still_has_a_best_epoch() -> None:
    report, told = fit_with(hits(0.0, 0.0))
    assert (report.best_epoch.epoch, told) == (0, [(0, True), (1, False)])


@pytest.mark.parametrize(("schedule", "until"), [("constant", None), ("cosine", None), ("cosine", 2)])
def test_the_learning_rate_follows_its_schedule(
    schedule: str, until: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = []
    step = Step.__call__

    def watched(self: Step, batch: Batch | None, samples: int) -> torch.Tensor:
        rates.append(self.optimizer.param_groups[0]["lr"])
        return step(self, batch, samples)

    monkeypatch.setattr(Step, "__call__", watched)
    data = batches(2) + batches(1, 25)  # 125 samples per epoch, 4 epochs
    fit_with(hits(*[0.1] * 4), data, schedule=schedule, learning_rate=0.1, patience=until)
    shares = [(epoch * 125 + done) / 500 for epoch in range(1 + until if until else 4) for done in (0, 50, 100)]
    half_turns = [0.5 * (1 + math.cos(math.pi * share)) for share in shares]
    assert rates == pytest.approx([0.1 * (turn if schedule == "cosine" else 1.0) for turn in half_turns])


def test_without_evaluation_the_last_epoch_is_kept() -> None:
    report, told = fit_with(None, epochs=3, threshold=0.0)
    assert told == [(0, True), (1, True), (2, True)]
    assert report.best_epoch is report.epochs[-1]
    assert [epoch.scores for epoch in report.epochs] == [None] * 3
    assert report.time_to_target_s is None


def test_training_stops_at_the_threshold() -> None:
    report, told = fit_with(hits(0.2, 0.5, 0.9), threshold=0.5)
    assert told == [(0, True), (1, True)]
    assert report.time_to_target_s is not None
    assert report.time_to_target_s >= report.time_to_best_s


def test_an_epoch_reports_its_samples_and_mean_loss() -> None:
    data = batches(2) + batches(1, 7)
    report, _ = fit_with(hits(0.1), data, learning_rate=1e-12)
    epoch = report.epochs[0]
    assert epoch.train_samples == 107
    assert epoch.train_throughput == pytest.approx(107 / epoch.train_s)
    assert epoch.train_loss == pytest.approx(math.log(2), abs=0.1)  # near-zero weights: all probabilities are about 1/2


def test_a_nan_loss_is_reported() -> None:
    for bad in (math.nan, math.inf):
        broken = batches(2)
        broken[1].labels[3] = bad
        with pytest.raises(DivergedError, match=r"training loss of epoch 0 is (nan|-inf); lower --learning_rate"):
            fit_with(hits(0.1, 0.1), broken)


def test_nan_scores_end_training_and_name_the_best_epoch_before() -> None:
    broken = replace(hits(0.0)[0], loss=math.nan)
    with pytest.raises(DivergedError, match=r"scores after epoch 2 are NaN.*; epoch 0 was the best before it; lower"):
        fit_with([*hits(0.3, 0.2), broken, *hits(0.4)])


def test_a_real_epoch_trains_each_sample(train_rows: Callable, test_rows: Callable) -> None:
    parts = [[(user, item, 1.0) for user in (0, 1, 2) for item in range(5)]]
    rows, series = train_rows(parts, 20, 30, name="a"), test_rows([[(0, 7, 1.0), (0, 8, 0.0)]], 20, 30, 2)
    sampling = SamplingConfig(batch_size=8, per_positive=2, kind="exact", in_memory=False, seed=0)
    model = network(0.5)
    before = copy.deepcopy(model.state_dict())
    config = TrainConfig(epochs=2, topk=1, threshold=2.0)
    world = ProcessGroup(CPU)
    evaluator = Evaluator(TestSet(series, 2), EvaluatorConfig(config.topk, config.valid_batch_size), world)
    training = Training(model, Step(model, config, world))
    with stage("train", 90, "samples", show_progress=False) as progress:
        loader = TrainLoader(rows, sampling, world)
        report = training.fit(
            loader, lambda model: evaluator.evaluate(lambda: Scorer(model)), config, lambda _: None, progress
        )
    assert [epoch.train_samples for epoch in report.epochs] == [45, 45]
    assert not torch.equal(before["mlp.0.weight"], model.state_dict()["mlp.0.weight"])
    # Users without samples do not move: their gradient is zero from the first step on.
    assert torch.equal(before["mf_user_embed.weight"][3:], model.state_dict()["mf_user_embed.weight"][3:])


def test_without_series_epochs_are_compared_by_auc() -> None:
    areas = [EvalMetrics(None, None, 0.5, 1.0, 1.0, auc=area) for area in (0.4, 0.7, 0.6, 0.8)]
    report, told = fit_with(areas, threshold=0.75)
    assert [best for _, best in told] == [True, True, False, True]
    assert (report.best_epoch.epoch, report.best_epoch.quality) == (3, 0.8)
    assert report.time_to_target_s is not None


def test_with_only_the_loss_the_last_epoch_is_kept() -> None:
    report, _ = fit_with([EvalMetrics(None, None, 0.5, 1.0, 1.0)] * 3, threshold=0.0)
    assert report.best_epoch.epoch == 2


@pytest.mark.parametrize(
    ("rates", "patience", "epochs"),
    [
        ((0.1, 0.2, 0.2, 0.1, 0.9), 2, 4),
        ((0.1, 0.2, 0.2, 0.3, 0.1, 0.1, 0.9), 2, 6),
        ((0.3, 0.2, 0.9), 1, 2),
        ((0.1, 0.2, 0.3), 1, 3),
    ],
)
def test_patience_stops_training_without_improvement(rates: tuple[float, ...], patience: int, epochs: int) -> None:
    report, told = fit_with(hits(*rates), patience=patience)
    assert len(report.epochs) == len(told) == epochs


def test_a_history_round_trips_through_json() -> None:
    history, _ = fit_with(hits(0.1, 0.7, 0.3), threshold=0.6)
    assert len(history.epochs) == 2
    assert History.from_json(json.loads(json.dumps(history.to_json()))) == history
    assert History.from_json(json.loads(json.dumps(History().to_json()))) == History()
    for change in (
        {"best": len(history.epochs)}, {"best": -1}, {"best": 0.0}, {"seconds": "1"}, {"seconds": float("inf")},
        {"time_to_best_s": None}, {"time_to_target_s": []}, {"epochs": None}, {"more": 1},
    ):  # fmt: skip
        with pytest.raises((KeyError, TypeError, ValueError)):
            History.from_json({**history.to_json(), **change})
    first, *others = history.to_json()["epochs"]
    assert first["scores"] is not None
    for change in (
        {"epoch": 1}, {"epoch": "0"}, {"train_loss": 1}, {"train_loss": float("nan")}, {"train_samples": 1.5},
        {"train_s": 0.0}, {"train_s": True}, {"scores": 3}, {"scores": {**first["scores"], "ndcg": "x"}},
        {"scores": {**first["scores"], "loss": None}}, {"scores": {**first["scores"], "hit_rate": float("inf")}},
    ):  # fmt: skip
        with pytest.raises((KeyError, TypeError, ValueError)):
            History.from_json({**history.to_json(), "epochs": [{**first, **change}, *others]})


@pytest.mark.parametrize("pieces", [1, 3])
def test_a_step_uses_the_side_features_of_its_rows(pieces: int) -> None:
    side = (SideFeature("kind", 5), SideFeature("age"))
    model = NeuMF(NeuMFConfig(n_users=20, n_items=30, factors=4, layers=(16, 8), dropout=0.0, row_side=side))
    plain = copy.deepcopy(model)
    g = torch.Generator().manual_seed(1)
    (batch,) = batches(1)
    columns = (torch.randint(5, (50,), generator=g), torch.randn(50, generator=g))
    step = Step(model, TrainConfig(eps=1e-3, grads_accumulated=pieces), ProcessGroup(CPU))
    loss = step(Batch(batch.users, batch.items, batch.labels, columns), 50).item()
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.0045, betas=(0.25, 0.5), eps=1e-3)
    logits = plain(batch.users, batch.items, *columns)
    expected = nn.functional.binary_cross_entropy_with_logits(logits, batch.labels)
    expected.backward()
    optimizer.step()
    assert loss == pytest.approx(50 * expected.item(), rel=1e-5)
    assert_close(model, plain, atol=1e-5)


# Each rank trains on its share of the same global batches and prints the loss of each step over all ranks.
STEPS = """
from pathlib import Path
from model.data.train_loader import TrainLoader, SamplingConfig
from model.training.config import TrainConfig
from model.data.dataset import open_train
from model.network.neumf import NeuMF, NeuMFConfig
from model.training.step import Step
from preprocessing.spec.feature_spec import read_feature_spec
folder = Path({folder!r})
rows = open_train(folder, read_feature_spec(folder), world.device)
sampling = SamplingConfig(batch_size={batch_size}, per_positive=3, kind="exact", in_memory={in_memory}, seed=1)
for dtype, pieces, steps in {cases}:
    batches = TrainLoader(rows, sampling, world)
    shape = NeuMFConfig(n_users=20, n_items=30, factors=4, layers=(16, 8), dropout=0.0)
    model = NeuMF(shape, torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    step = Step(model, TrainConfig(learning_rate=0.01, grads_accumulated=pieces), world)
    losses = []
    for epoch in range({epochs}):
        for batch, samples in batches.steps(epoch):
            losses.append(world.sum(step(batch, samples).double()).item() / samples)
    print(json.dumps([losses[:steps], sum(p.double().sum().item() for p in model.parameters())]))
"""
CASES = {("float64", 1, 50): 1e-10, ("float64", 3, 50): 1e-10, ("float32", 1, 10): 1e-5}


def positives(seed: int) -> list[list[tuple[int, int, float]]]:
    """Interactions of 20 users in parts of very different lengths, including an empty one."""
    g = torch.Generator().manual_seed(seed)
    users = [[(u, int(i), 1.0) for i in torch.randperm(30, generator=g)[: 3 + u % 9].tolist()] for u in range(20)]
    return [[row for rows in users[start:end] for row in rows] for start, end in ((0, 1), (1, 1), (1, 14), (14, 20))]


def test_any_number_of_ranks_takes_the_same_steps(write_folder: Callable, in_processes: Callable) -> None:
    folder = write_folder(positives(0), 20, 30)
    body = STEPS.format(folder=str(folder), batch_size=37, in_memory=True, cases=list(CASES), epochs=5)
    alone, *several = (in_processes(size, f"import json{body}") for size in (1, 2, 4))
    for ranks in several:
        for rank in ranks:
            for line, expected, ((_, _, steps), tolerance) in zip(rank, alone[0], CASES.items(), strict=True):
                (losses, _), (expected_losses, _) = json.loads(line), json.loads(expected)
                assert len(losses) == steps
                assert losses == pytest.approx(expected_losses, rel=tolerance)
                assert losses[-1] < losses[0]  # training makes progress
    # Ranks of one run have bit-identical networks.
    assert all(rank == ranks[0] for ranks in several for rank in ranks)


def test_ranks_without_samples_take_part(write_folder: Callable, in_processes: Callable) -> None:
    # When streaming, the third rank has no partition, and the others have different numbers of batches.
    parts = [positives(1)[0], positives(1)[2]]
    folder = write_folder(parts, 20, 30)
    cases = [("float32", 1, 10_000)]
    body = STEPS.format(folder=str(folder), batch_size=12, in_memory=False, cases=cases, epochs=2)
    ranks = in_processes(3, f"import json{body}")
    assert all(rank == ranks[0] for rank in ranks)
    losses, _ = json.loads(ranks[0][0])
    assert len(losses) == 2 * len(parts[1])  # each rank takes 4 samples per step, and each positive makes 4
    assert len(parts[0]) < len(parts[1])
