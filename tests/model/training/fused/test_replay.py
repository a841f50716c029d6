"""The replay of the fused step: its dropout against Python's integers and statistics, its gradients against torch's."""

from __future__ import annotations

import copy
from fractions import Fraction

import pytest
import torch
from fused_cases import TOLERANCE, WEIGHT, assert_close, network, replayed, run, samples
from torch import Tensor, nn

from model.data.batch import Batch
from model.network.neumf import NeuMF
from model.training.fused.plan import Plan, Tile
from model.training.fused.replay import kept, replay, rounded
from model.training.fused.step import FusedStep

pytestmark = pytest.mark.usefixtures("one_thread")

MOST_DEVIATIONS = 6  # from what independent decisions give, of thousands of counts


def _limit(rate: float) -> int:
    return round(rate * 2**32)


def test_decisions_are_those_of_the_hash() -> None:
    def product(a: int, b: int) -> int:
        return a * b % 2**32

    def lowbias32(x: int) -> int:
        x = product(x ^ x >> 16, 0x7FEB352D)
        x = product(x ^ x >> 15, 0x846CA68B)
        return x ^ x >> 16

    def decision(seed: int, sample: int, unit: int, limit: int) -> bool:
        x = lowbias32(sample ^ lowbias32(seed % 2**32)) ^ lowbias32((product(unit, 0x9E3779B9) + 1) % 2**32)
        x = product(x, 0x7FEB352D)
        return product(x ^ x >> 15, 0x846CA68B) >= limit

    positions, units = torch.tensor([0, 1, 4, 2**20, 2**31 - 1]), torch.tensor([0, 1, 255, 511])
    for seed in (0, 1, 2**31, 2**32 + 5, 2**63 - 1):
        for rate in (0.2, 0.5, 0.8):
            found = kept(seed, _limit(rate), positions, units).tolist()
            assert found == [[decision(seed, s, u, _limit(rate)) for u in units.tolist()] for s in positions.tolist()]


def _deviations(counts: Tensor, draws: int, probability: float) -> float:
    """The largest distance of binomial counts from their mean, in standard deviations."""
    mean, spread = draws * probability, (draws * probability * (1 - probability)) ** 0.5
    return float((counts - mean).abs().max() / spread)


def _assert_independent(draws: Tensor, keep: float) -> None:
    """Decisions [draws, n] are each, each pair and some triples of the n kept as often as if they were independent."""
    n, draws = draws.shape[1], draws.float()
    assert _deviations(draws.sum(0), len(draws), keep) < MOST_DEVIATIONS
    first, second = torch.triu_indices(n, n, offset=1)
    assert _deviations((draws.T @ draws)[first, second], len(draws), keep**2) < MOST_DEVIATIONS
    for third in (0, 1, n // 2, n - 1):
        others = (first != third) & (second != third)
        triples = (draws * draws[:, third, None]).T @ draws
        assert _deviations(triples[first[others], second[others]], len(draws), keep**3) < MOST_DEVIATIONS


@pytest.mark.parametrize("rate", [0.5, 0.8])
def test_decisions_are_independent(rate: float) -> None:
    def decisions(seed: int, samples: int, units: int) -> Tensor:
        return kept(seed, _limit(rate), torch.arange(samples), torch.arange(units))

    of_units = decisions(77, 8192, 448)  # all units of the reference network
    assert _deviations(of_units.sum(), of_units.numel(), 1 - rate) < MOST_DEVIATIONS
    _assert_independent(of_units, 1 - rate)
    _assert_independent(decisions(77, 256, 8192).T, 1 - rate)  # of samples
    by_seed = torch.stack([decisions(seed, 16, 16).flatten() for seed in range(4096)])
    _assert_independent(by_seed, 1 - rate)
    _assert_independent(torch.stack([decisions(seed, 128, 64).flatten() for seed in range(256)]).T, 1 - rate)


def test_the_statistics_notice_a_weak_hash() -> None:
    # One multiplication: decisions on a sample's units differ by a constant.
    units, positions = torch.arange(64) * 0x9E3779B9, torch.arange(8192) * 0x85EBCA6B
    with pytest.raises(AssertionError):
        _assert_independent((positions[:, None] + units[None, :]) * 0x7FEB352D % 2**32 >= _limit(0.5), 0.5)


@pytest.mark.parametrize(("rate", "group"), [(0.0, 5), (0.2, 1), (0.5, 5), (0.8, 5)])
def test_the_kernel_makes_the_same_decisions(rate: float, group: int) -> None:
    model = network((32, 32, 16), dropout=rate)
    with torch.no_grad():  # all units are positive before dropout, and no logit is saturated
        for parameter in model.parameters():
            parameter.abs_()
        model.final.weight.mul_(0.01)
    step = FusedStep(model, group, "fp32")
    tiles = step.tiles(samples(70 // group, group), step.plan(group), torch.nan)
    seed, limit = step.dropout.tolist()
    for found, units in ((tiles.level(tiles.acts, 0), range(32)), (tiles.level(tiles.grads, 1), range(32, 48))):
        assert torch.equal(found != 0, kept(seed, limit, torch.arange(70), torch.tensor(units)))


def test_a_step_draws_another_seed() -> None:
    step, batch = FusedStep(network(), 5, "fp32"), samples(3, 5)
    seeds = set()
    for _ in range(3):
        step.tiles(batch, step.plan(5))
        seeds.add(step.dropout[0].item())
    assert len(seeds) == 3


def test_tf32_is_rounded_to_nearest_even() -> None:
    plan = Plan.of(network().config, 1, "tf32", Tile())
    halves = torch.tensor([1 + 2**-11, 1 + 3 * 2**-11, 1 + 2**-11 + 2**-23, 1 - 2**-12, -1 - 3 * 2**-11, 0.0])
    x = torch.cat((halves, torch.randn(200, generator=torch.Generator().manual_seed(1)) * 1e3))
    for value, found in zip(x.tolist(), rounded(x, plan).tolist(), strict=True):
        unit = Fraction(2) ** (torch.tensor(value).frexp().exponent.item() - 11)  # ten bits after the first
        assert Fraction(found) == round(Fraction(value) / unit) * unit  # of two equally near, the even one


def dense(model: NeuMF, batch: Batch, masks: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The summed loss and the gradients of WEIGHT times it by torch in float64, without any rounding."""
    model = copy.deepcopy(model).double()
    users, items, labels = batch.users, batch.items, batch.labels
    hidden = torch.cat((model.mlp_user_embed(users), model.mlp_item_embed(items)), dim=1)
    for layer, mask in zip(model.mlp, masks, strict=True):
        hidden = layer(hidden).relu() * mask / (1 - model.config.dropout)
    gmf = model.mf_user_embed(users) * model.mf_item_embed(items)
    logits = model.final(torch.cat((gmf, hidden), dim=1)).squeeze(1)
    loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.double(), reduction="sum")
    gradients = torch.autograd.grad(loss * WEIGHT, list(model.parameters()))
    return loss.detach(), dict(zip(dict(model.named_parameters()), gradients, strict=True))


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
@pytest.mark.parametrize(("layers", "dropout"), [((40, 24, 12), 0.5), ((8, 3, 5, 17, 2), 0.2), ((32, 16), 0.0)])
def test_gradients_are_those_of_torch(precision: str, layers: tuple[int, ...], dropout: float) -> None:
    model, batch = network(layers, dropout=dropout), samples(40, 5)
    plan = Plan.of(model.config, 5, precision, Tile())
    positions = torch.arange(1000, 1200)
    parameters = dict(model.named_parameters())
    found = replay(parameters, batch, plan, (3, _limit(dropout)), 1 / (1 - dropout), WEIGHT, positions)
    at, masks = 0, []
    for width in layers[1:]:
        masks.append(kept(3, _limit(dropout), positions, at + torch.arange(width)))
        at += max(16, 1 << (width - 1).bit_length())  # units of padded levels
    expected_loss, expected = dense(model, batch, masks)
    # A rounded unit may pass ReLU where the exact one does not, so the two are not as near as the step's.
    tolerance = {"fp32": 1e-6}.get(precision, 20 * TOLERANCE[precision])
    assert float(found.loss) == pytest.approx(float(expected_loss), rel=tolerance)
    assert_close(found.gradients, expected, tolerance)


def test_a_part_of_a_batch_is_replayed_at_its_positions() -> None:
    step, batch = FusedStep(network(), 5, "fp32"), samples(20, 5)
    _, found = run(step, batch)
    total = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in found.items()}
    for part in torch.arange(100).split(35):
        for name, value in replayed(step, batch.cut(int(part[0]), int(part[-1]) + 1), part).gradients.items():
            total[name] += value
    assert_close(found, total, TOLERANCE["fp32"])
