"""Steps on losses over all items, against autograd of the losses as written in the papers."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model.data.user_loader import UserBatch
from model.distributed.process_group import ProcessGroup
from model.network.neumf import NeuMF, NeuMFConfig
from model.training.all_items_step import AllItemsStep, has_item_bias, start_from_popularity
from model.training.config import TrainConfig

CPU = torch.device("cpu")
N_USERS, N_ITEMS, FACTORS = 9, 12, 5


def network(counts: Tensor, loss: str = "softmax") -> NeuMF:
    shape = NeuMFConfig(n_users=N_USERS, n_items=N_ITEMS, factors=FACTORS, arch="gmf")
    model = NeuMF(shape, torch.Generator().manual_seed(0))
    with torch.no_grad():  # away from 0, where the softmax is uniform
        for table in (model.mf_user_embed, model.mf_item_embed):
            table.weight.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(1))
    start_from_popularity(model, counts, loss)
    return model


def batch_of(users: list[int], seed: int) -> UserBatch:
    """Users with 1 to 6 weighted positives each; some have their first item twice."""
    g = torch.Generator().manual_seed(seed)
    own = [torch.randperm(N_ITEMS, generator=g)[: 1 + (user + seed) % 6] for user in users]
    own = [torch.cat((items, items[:1])) if user % 3 == 2 else items for user, items in zip(users, own, strict=True)]
    counts = torch.tensor([len(items) for items in own])
    weights = torch.rand(int(counts.sum()), generator=g) + 0.1
    parts = [part * len(part) / part.sum() for part in weights.split(counts.tolist())]
    return UserBatch(torch.tensor(users), counts, torch.cat(own), torch.cat(parts))


BATCHES = [batch_of([3, 0, 5], 1), batch_of([8, 2, 6, 1], 2), batch_of([4], 3), batch_of([7, 3, 2], 4)]
COUNTS = sum((torch.bincount(batch.items, minlength=N_ITEMS) for batch in BATCHES), torch.zeros(N_ITEMS).long())


def plain_loss(kind: str, model: NeuMF, batch: UserBatch, weight_decay: float) -> tuple[Tensor, Tensor]:
    """The summed loss, positive by positive, without and with the penalty.

    softmax: -log of the softmax. bce-all: cross-entropy of all pairs; positives have their own weight, others 1.
    """
    users, items = model.mf_user_embed.weight, model.mf_item_embed.weight
    loss = torch.zeros((), dtype=users.dtype)
    for user, items_of, weights in zip(
        batch.users, batch.items.split(batch.counts.tolist()), batch.weights.split(batch.counts.tolist()), strict=True
    ):
        logits = model(user.expand(N_ITEMS), torch.arange(N_ITEMS))
        if kind == "softmax":
            loss = loss - (weights * torch.log_softmax(logits, 0)[items_of]).sum()
        else:
            chance = torch.sigmoid(logits)
            others = torch.ones(N_ITEMS, dtype=torch.bool)
            others[items_of] = False
            loss = loss - (weights * torch.log(chance[items_of])).sum() - torch.log(1 - chance[others]).sum()
    penalty = torch.zeros((), dtype=users.dtype)
    for user, count in zip(batch.users.tolist(), batch.counts.tolist(), strict=True):
        penalty = penalty + math.sqrt(count) * users[user, :-1].square().sum()
    share = len(batch) / int(COUNTS.sum())
    for item, count in enumerate(COUNTS.tolist()):
        penalty = penalty + share * math.sqrt(count) * items[item, :-1].square().sum()
    return loss, loss + weight_decay / 2 * penalty


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
@pytest.mark.parametrize("kind", ["softmax", "bce-all"])
def test_steps_are_adam_on_the_mean_loss_with_its_penalty(kind: str, weight_decay: float) -> None:
    config = TrainConfig(loss=kind, weight_decay=weight_decay, eps=1e-3, learning_rate=0.05)
    model = network(COUNTS, kind)
    expected = copy.deepcopy(model)
    step = AllItemsStep(model, config, ProcessGroup(CPU), COUNTS)
    tables = [expected.mf_user_embed.weight, expected.mf_item_embed.weight]
    optimizer = torch.optim.Adam(tables, lr=0.05, betas=(config.beta1, config.beta2), eps=1e-3)
    last_layer = copy.deepcopy(model.final.state_dict())
    for batch in BATCHES * 3:
        loss, penalised = plain_loss(kind, expected, batch, weight_decay)
        optimizer.zero_grad()
        (penalised / len(batch)).backward()
        tables[0].grad[:, -1] = 0.0  # the user side of the item bias stays 1
        optimizer.step()
        assert float(step(batch, len(batch))) == pytest.approx(loss.item(), rel=1e-5)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=0.0, atol=1e-5)
    assert (model.mf_user_embed.weight[:, -1] == 1.0).all()
    assert not torch.equal(model.mf_item_embed.weight[:, -1], network(COUNTS, kind).mf_item_embed.weight[:, -1])
    assert all(torch.equal(last_layer[name], value) for name, value in model.final.state_dict().items())


def test_the_penalty_shrinks_all_but_the_bias() -> None:
    models = []
    for weight_decay in (0.0, 50.0):
        model = network(COUNTS)
        config = TrainConfig(loss="softmax", weight_decay=weight_decay, learning_rate=0.02)
        step = AllItemsStep(model, config, ProcessGroup(CPU), COUNTS)
        for batch in BATCHES * 30:
            step(batch, len(batch))
        models.append(model)
    free, held = (model.mf_item_embed.weight.detach()[COUNTS > 0] for model in models)
    assert held[:, :-1].abs().max() < 0.1 < free[:, :-1].abs().max()
    assert held[:, -1].std() > 0.1


def test_bfloat16_stays_close() -> None:
    models, losses = [], []
    for precision in ("fp32", "bf16"):
        model = network(COUNTS)
        config = TrainConfig(loss="softmax", weight_decay=0.1, eps=1e-3, learning_rate=0.01, precision=precision)
        step = AllItemsStep(model, config, ProcessGroup(CPU), COUNTS)
        losses.append([float(step(batch, len(batch))) for batch in BATCHES])
        models.append(model)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]  # bfloat16 was used
    for exact, mixed in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert mixed.dtype is torch.float32
        torch.testing.assert_close(exact, mixed, rtol=0.0, atol=0.02)


def test_without_users_on_this_rank_a_step_only_applies_the_item_penalty() -> None:
    nothing = BATCHES[0].take(torch.zeros(0, dtype=torch.int64))
    models = [network(COUNTS), network(COUNTS)]
    for model, batch in zip(models, (None, nothing), strict=True):
        step = AllItemsStep(model, TrainConfig(loss="softmax", weight_decay=0.1, eps=1e-3), ProcessGroup(CPU), COUNTS)
        before = copy.deepcopy(model.state_dict())
        assert float(step(batch, 10)) == 0.0  # the positives are on other ranks
        assert torch.equal(model.mf_user_embed.weight, before["mf_user_embed.weight"])
        moved = model.mf_item_embed.weight.abs() - before["mf_item_embed.weight"].abs()
        assert (moved[:, :-1][COUNTS > 0] < 0).all()
        assert (moved[:, -1] == 0).all()
    assert all(torch.equal(*both) for both in zip(models[0].parameters(), models[1].parameters(), strict=True))


def of_popularity_alone(counts: Tensor, loss: str) -> Tensor:
    """Scores before training for a user with zero factors."""
    model = NeuMF(NeuMFConfig(n_users=1200, n_items=12, factors=2, arch="gmf"), torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.mf_user_embed.weight.zero_()
    assert not has_item_bias(model)
    start_from_popularity(model, counts, loss)
    assert has_item_bias(model)
    return model(torch.full((12,), 7), torch.arange(12)).detach()


def test_scores_before_training_reproduce_popularity() -> None:
    counts = torch.tensor([0, 1, 3, 7, 15, 100, 1000, 0, 2, 5, 9, 4])
    scores = of_popularity_alone(counts, "softmax")
    torch.testing.assert_close(scores.exp() / scores.exp().sum(), (counts + 1.0) / (counts + 1.0).sum())
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-6)
    # Share of 1,200 users, smoothed away from 0 and 1.
    torch.testing.assert_close(of_popularity_alone(counts, "bce-all").sigmoid(), (counts + 1.0) / 1202.0)


def test_the_bias_is_finite_for_items_with_more_positives_than_users() -> None:
    counts = torch.tensor([1199, 1200, 1201, 5000, 0, 0, 0, 0, 0, 0, 0, 0])  # of 1,200 users
    scores = of_popularity_alone(counts, "bce-all")
    assert torch.isfinite(scores).all()
    assert (scores[1:4] >= scores[:3]).all()


@pytest.mark.parametrize("change", ["users", "final.weight", "final.bias"])
def test_a_network_of_another_form_is_recognised(change: str) -> None:
    model = network(COUNTS)
    assert has_item_bias(model)
    with torch.no_grad():
        {"users": model.mf_user_embed.weight, "final.weight": model.final.weight[0], "final.bias": model.final.bias}[
            change
        ][-1] += 0.5
    assert not has_item_bias(model)


# Each rank trains on its share of the same global batches and prints the losses over all ranks and a network checksum.
STEPS = """
import json
from pathlib import Path
from model.training.all_items_step import AllItemsStep, start_from_popularity
from model.training.config import TrainConfig
from model.data.dataset import open_train
from model.data.popularity import item_popularity
from model.network.neumf import NeuMF, NeuMFConfig
from model.data.user_loader import UserLoader, UserLoaderConfig
from preprocessing.spec.feature_spec import read_feature_spec
folder = Path({folder!r})
rows = open_train(folder, read_feature_spec(folder), world.device)
config = TrainConfig(loss="softmax", weight_decay=0.2, recency=0.5, learning_rate=0.05, eps=1e-3)
counts = item_popularity(rows, world)
model = NeuMF(NeuMFConfig(n_users=9, n_items=12, factors=5, arch="gmf"), torch.Generator().manual_seed(0))
start_from_popularity(model, counts, "softmax")
step, batches, losses = AllItemsStep(model, config, world, counts), UserLoader(rows, UserLoaderConfig(
    batch_size=36, recency=0.5, in_memory=True), world), []
for epoch in range(4):
    for batch, samples in batches.steps(epoch):
        losses.append(world.sum(step(batch, samples).double()).item() / samples)
print(json.dumps([losses, [table.weight.double().square().sum().item() for table in (model.mf_user_embed, \
model.mf_item_embed)], counts.tolist()]))
"""


def test_two_ranks_take_the_steps_of_one(write_folder: Callable[..., Any], in_processes: Callable[..., Any]) -> None:
    parts = [[(user, (user * 5 + n) % N_ITEMS, 1.0) for n in range(1 + user)] for user in range(N_USERS)]
    folder = write_folder(parts, N_USERS, N_ITEMS)
    body = STEPS.format(folder=str(folder))
    (alone,), both = (in_processes(size, body) for size in (1, 2))
    assert both[0] == both[1]  # bit for bit
    for found, expected in zip(json.loads(both[0][0])[:2], json.loads(alone[0])[:2], strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    losses, _, counts = json.loads(alone[0])
    assert len(losses) == 4 * 3  # 36 user-item pairs are 3 of 9 users
    assert sum(losses[-3:]) < sum(losses[:3])  # it learns
    assert counts == [sum(row[1] == item for part in parts for row in part) for item in range(N_ITEMS)]
